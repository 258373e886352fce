"""Requests to Mistral, judged with the types of Mistral's own SDK."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistralai.client.models import (
    AssistantMessage,
    ChatCompletionRequest,
    ChatCompletionStreamRequest,
    EmbeddingRequest,
    ThinkChunk,
    ToolMessage,
)
from multidict import CIMultiDict

from llmproxy.errors import BadRequest, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.mistral import Mistral
from llmproxy.providers.mistral.request import call_id
from llmproxy.providers.vendor import VendorConfig
from llmproxy.request import Operation, Request
from llmproxy.services import UpstreamRequest
from tests.providers import header, request, services

USER = {"role": "user", "content": "Hi"}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n0000").decode()
CALL = {"id": "toolu_01AbCdEfGh", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
SHELL = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command."}}


def mistral(**section: Any) -> Mistral:
    """A configured Mistral."""
    return Mistral("mistral", VendorConfig.model_validate({"api_key": "key-1", **section}), services())


def prepare(document: dict[str, Any], **section: Any) -> UpstreamRequest:
    """What is sent for a document."""
    asked = {"model": "mistral-large-latest", "messages": [USER], **document}
    return mistral(**section).prepare(request(asked), Target("mistral", asked["model"]), CIMultiDict())


def sent(document: dict[str, Any], **section: Any) -> dict[str, Any]:
    """The body that is sent, once Mistral's SDK has found it right."""
    body: dict[str, Any] = orjson.loads(prepare(document, **section).body)
    model = ChatCompletionStreamRequest if body.get("stream") else ChatCompletionRequest
    unknown = set(body) - {field.alias or name for name, field in model.model_fields.items()}
    assert unknown == set()
    parsed = model.model_validate(body)
    assert len(parsed.messages) == len(body["messages"])
    return body


def messages(*given: dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    """The messages that are sent for some messages."""
    found: list[dict[str, Any]] = sent({"messages": list(given), **members})["messages"]
    return found


# Address and bytes


def test_where_and_with_what_key() -> None:
    """Chat and embeddings have OpenAI's paths; the key is a bearer token."""
    prepared = prepare({})
    assert prepared.url == "https://api.mistral.ai/v1/chat/completions"
    assert header(prepared, "authorization") == "Bearer key-1"
    assert prepare({}, base_url="https://codestral.mistral.ai/v1").url.startswith("https://codestral.mistral.ai/v1/")


def test_a_request_that_fits_keeps_every_byte() -> None:
    """A plain request goes out as it came: spacing, number spelling and members only Mistral knows."""
    body = (
        b'{ "model":"mistral-large-latest" ,"temperature":7e-1, "safe_prompt": true, '
        b'"messages":[ {"role":"user","content":"\\u00e9"} ]}'
    )
    asked = Request(Operation.CHAT, body, orjson.loads(body))
    prepared = mistral().prepare(asked, Target("mistral", "mistral-large-latest"), CIMultiDict())
    assert (prepared.body, prepared.dropped) == (body, ())
    assert not asked.is_edited


def test_the_same_request_gives_the_same_bytes() -> None:
    """Nothing in a translation is left to chance, so that the vendor's cache can work."""
    document = {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}], "tools": [WEATHER], "seed": 1}
    assert prepare(document).body == prepare(document).body


def test_text_completions_are_refused() -> None:
    """Mistral has no such endpoint."""
    asked = request({"model": "m", "prompt": "x"}, Operation.TEXT_COMPLETION)
    with pytest.raises(BadRequest, match="does not offer text completion"):
        mistral().prepare(asked, Target("mistral", "m"), CIMultiDict())


def test_a_missing_key_is_said_plainly() -> None:
    """Without a key Mistral is not asked."""
    with pytest.raises(UpstreamError, match="MISTRAL_API_KEY"):
        prepare({}, api_key=None)


# Scalars


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        ({"max_tokens": 9, "max_completion_tokens": None}, {"max_tokens": 9}),
        ({"seed": 7}, {"random_seed": 7}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"stop": ["a"], "n": 2, "top_p": 0.5, "presence_penalty": 0.1}, None),
        ({"prediction": {"type": "content", "content": "x"}}, None),
        (
            {"prediction": {"type": "content", "content": [{"type": "text", "text": "a"}]}},
            {"prediction": {"type": "content", "content": "a"}},
        ),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"service_tier": "auto"}, None),
        ({"response_format": {"type": "json_object"}}, None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
            None,
        ),
        ({"temperature": None, "tools": None, "tool_choice": None, "response_format": None}, {}),
        ({"modalities": ["text"]}, {}),
        ({"metadata": {"a": "b"}, "prompt_cache_key": "k"}, None),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
    ],
)
def test_parameters_get_mistrals_names(document: dict[str, Any], expected: dict[str, Any] | None) -> None:
    """What has another name is renamed, what is null is left out, all else stays."""
    body = sent(document)
    rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
    assert rest == (document if expected is None else expected)


@pytest.mark.parametrize(
    "name",
    [
        *("logit_bias", "user", "store", "verbosity", "moderation", "safety_identifier"),
        *("prompt_cache_options", "prompt_cache_retention"),
    ],
)
def test_hints_are_left_out_and_named(name: str) -> None:
    """What Mistral does not know and only would have been nice is dropped, and said so."""
    prepared = prepare({name: {"a": 1}})
    assert name not in orjson.loads(prepared.body)
    assert prepared.dropped == (name,)


def test_values_that_mistral_does_not_know_are_left_out_and_named() -> None:
    """A service tier it does not have, and a cache key that is not ASCII."""
    assert prepare({"service_tier": "flex"}).dropped == ("service_tier",)
    assert prepare({"prompt_cache_key": "é"}).dropped == ("prompt_cache_key",)


@pytest.mark.parametrize(
    "document",
    [
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"modalities": ["text", "audio"]},
        {"web_search_options": {}},
    ],
)
def test_what_changes_the_meaning_is_refused(document: dict[str, Any]) -> None:
    """The client is told which parameter it is; an operator may prefer it to be dropped."""
    (name,) = document
    with pytest.raises(BadRequest) as caught:
        prepare(document)
    assert (caught.value.param, caught.value.error_code) == (name, "unsupported_parameter")
    assert prepare(document, drop_params=True).dropped == (name,)


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        ("mistral-medium-3-5", "none", "none"),
        ("mistral-medium-3-5", "minimal", "none"),
        ("mistral-medium-3-5", "medium", "high"),
        ("mistral-small-2603", "xhigh", "high"),
        ("mistral-large-4-0", "low", "low"),
        ("a-model-of-tomorrow", "max", "max"),
        ("codestral-2508", "high", None),
        ("magistral-medium-2509", "high", None),
        ("mistral-small-2506", "none", None),
    ],
)
def test_reasoning_effort_is_what_the_model_knows(model: str, effort: str, expected: str | None) -> None:
    """Levels come from the table; a model that is not in it gets what was asked for."""
    body = sent({"model": model, "reasoning_effort": effort})
    assert body.get("reasoning_effort") == expected
    if expected is None:
        assert prepare({"model": model, "reasoning_effort": effort}).dropped == ("reasoning_effort",)


# Messages


def test_every_form_of_content_is_accepted() -> None:
    """Trap 32: text, a list with one text, null, and a list of several."""
    content = [{"type": "text", "text": "a"}]
    found = messages(
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": [*content, *content]},
    )
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in found] == ["rules", "a", "no", [*content, *content]]


def test_an_assistant_that_says_nothing_is_left_out() -> None:
    """Mistral refuses a message without content and calls."""
    assert messages(USER, {"role": "assistant", "content": ""}, USER) == [USER, USER]


def test_media_have_mistrals_forms() -> None:
    """Images and PDF documents are addresses, audio is bare base64, and a declared type that is wrong is set right."""
    pdf = base64.b64encode(b"%PDF-1.7").decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpg;base64,{PIXEL}", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRgAAAABXQVZF", "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{pdf}", "filename": "a.pdf"}},
    ]
    document = {"messages": [{"role": "user", "content": parts}]}
    assert sent(document)["messages"][0]["content"] == [
        {"type": "image_url", "image_url": f"data:image/png;base64,{PIXEL}"},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "input_audio", "input_audio": "UklGRgAAAABXQVZF"},
        {"type": "document_url", "document_url": f"data:application/pdf;base64,{pdf}", "document_name": "a.pdf"},
    ]
    assert prepare(document).dropped == ("messages.image_url.detail",)


@pytest.mark.parametrize(
    "file", [{"file_id": "file-1"}, {"file_data": "data:text/plain;base64,aGk=", "filename": "a.txt"}]
)
def test_other_files_are_refused(file: dict[str, str]) -> None:
    """A file that Mistral cannot be given is named, not silently lost."""
    document = {"messages": [{"role": "user", "content": [{"type": "file", "file": file}]}]}
    with pytest.raises(BadRequest, match="only PDF documents") as caught:
        prepare(document)
    assert caught.value.param == "messages[0].content[0]"


def test_marks_and_names_are_stripped() -> None:
    """Trap 13: cache marks do not reach a server that refuses unknown fields; names neither."""
    marked = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    tool = {**WEATHER, "cache_control": {"type": "ephemeral"}}
    prepared = prepare({"messages": [{"role": "user", "name": "ann", "content": [marked]}], "tools": [tool]})
    assert b"cache_control" not in prepared.body
    assert b"ann" not in prepared.body
    assert set(prepared.dropped) == {"messages.cache_control", "messages.name", "tools.cache_control"}


def test_an_assistants_prefix_is_kept() -> None:
    """Mistral's own `prefix` makes the answer begin with a message."""
    prefix = {"role": "assistant", "content": "Once", "prefix": True}
    assert messages(USER, prefix)[-1] == prefix


# Tools


def test_ids_of_other_vendors_become_nine_letters_and_digits() -> None:
    """A call and its result get the same id, and an id that fits stays."""
    own = {**CALL, "id": "abcDEF123"}
    found = messages(
        USER,
        {"role": "assistant", "tool_calls": [CALL, own]},
        {"role": "tool", "tool_call_id": CALL["id"], "content": "sunny"},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": "rain", "name": "weather"},
    )
    calls = [call["id"] for call in found[1]["tool_calls"]]
    assert calls == [found[2]["tool_call_id"], found[3]["tool_call_id"]]
    assert calls[1] == "abcDEF123"
    assert found[3]["name"] == "weather"
    assert all(isinstance(ToolMessage.model_validate(message).tool_call_id, str) for message in found[2:])


@given(st.text(max_size=60))
def test_any_id_becomes_one_that_mistral_takes(given_id: str) -> None:
    """Nine letters and digits, the same ones each time."""
    made = call_id(given_id)
    assert made == call_id(given_id)
    assert len(made) == 9
    assert made.isascii()
    assert made.isalnum()


def test_many_ids_stay_apart() -> None:
    """Parallel calls are told apart after their ids were cut."""
    assert len({call_id(f"call_{number}") for number in range(10_000)}) == 10_000


def test_between_tool_results_and_the_user_stands_the_assistant() -> None:
    """Mistral refuses a user's message right after a tool's; several results in a row are fine."""
    result = {"role": "tool", "tool_call_id": "abcDEF123", "content": "x"}
    found = messages(USER, {"role": "assistant", "tool_calls": [CALL]}, result, result, USER)
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert found[4]["content"]


def test_arguments_keep_every_digit() -> None:
    """Trap 34: what the client sends back of a call is what the model wrote."""
    arguments = '{"b": 1.0, "a": 12345678901234567890123, "é": "ü"}'
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    found = messages(USER, {"role": "assistant", "tool_calls": [call]})
    assert found[1]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("written", "expected"), [("", "{}"), ("not json", '{"_raw":"not json"}'), ("[1]", '{"_raw":"[1]"}')]
)
def test_broken_arguments_do_not_break_the_next_turn(written: str, expected: str) -> None:
    """A model's broken JSON is wrapped, and never an error of ours."""
    call = {**CALL, "function": {"name": "f", "arguments": written}}
    found = messages(USER, {"role": "assistant", "tool_calls": [call]})
    assert found[1]["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize(
    ("choice", "expected", "tools"),
    [
        ("auto", "auto", ["weather", "shell"]),
        ("none", "none", ["weather", "shell"]),
        ("required", "required", ["weather", "shell"]),
        (
            {"type": "function", "function": {"name": "weather"}},
            {"type": "function", "function": {"name": "weather"}},
            ["weather", "shell"],
        ),
        (
            {"type": "custom", "custom": {"name": "shell"}},
            {"type": "function", "function": {"name": "shell"}},
            ["weather", "shell"],
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}},
            "any",
            ["weather"],
        ),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WEATHER]}}, "auto", ["weather"]),
    ],
)
def test_tool_choices(choice: Any, expected: Any, tools: list[str]) -> None:
    """Each way of choosing has Mistral's own; a custom tool is a function with one text."""
    body = sent({"tools": [WEATHER, SHELL], "tool_choice": choice, "parallel_tool_calls": False})
    assert body["tool_choice"] == expected
    assert body["parallel_tool_calls"] is False
    assert [tool["function"]["name"] for tool in body["tools"]] == tools


def test_legacy_functions_are_tools() -> None:
    """A client of the old kind works too."""
    body = sent(
        {
            "functions": [{"name": "weather"}],
            "function_call": {"name": "weather"},
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
                {"role": "function", "name": "weather", "content": "sunny"},
            ],
        }
    )
    assert body["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert body["tool_choice"]["function"] == {"name": "weather"}
    assert body["messages"][1]["tool_calls"][0]["id"] == body["messages"][2]["tool_call_id"]


# Thinking

OWN = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "signature": "s1"}


def test_mistrals_own_thinking_goes_back_as_it_came() -> None:
    """Thinking that Mistral signed is replayed first and unchanged."""
    found = messages(
        USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "thinking_blocks": [OWN]}, USER
    )
    assert found[1]["content"] == [OWN, {"type": "text", "text": "Yes."}]
    parsed = AssistantMessage.model_validate(found[1])
    assert isinstance(parsed.content, list)
    assert isinstance(parsed.content[0], ThinkChunk)


def test_plain_reasoning_goes_back_as_thinking_without_a_signature() -> None:
    """Trap 8: another vendor's signed blocks are not sent on; their text is."""
    foreign = {"type": "thinking", "thinking": "Hm.", "signature": "of-claude"}
    found = messages(
        USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "thinking_blocks": [foreign]}
    )
    assert found[1]["content"][0] == {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    assert b"of-claude" not in orjson.dumps(found)


def test_a_model_that_does_not_think_gets_no_thinking() -> None:
    """History from a model that does is stripped for one that does not, and said so."""
    history = [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}, USER]
    prepared = prepare({"model": "codestral-2508", "messages": history})
    assert b"Hm." not in prepared.body
    assert prepared.dropped == ("messages.reasoning_content",)


# Embeddings


def embeddings(**members: Any) -> dict[str, Any]:
    """The body sent for an embeddings request."""
    asked = request({"model": "mistral-embed", "input": ["a", "b"], **members}, Operation.EMBEDDINGS)
    prepared = mistral().prepare(asked, Target("mistral", "mistral-embed"), CIMultiDict())
    assert prepared.url == "https://api.mistral.ai/v1/embeddings"
    body: dict[str, Any] = orjson.loads(prepared.body)
    EmbeddingRequest.model_validate(body)
    return body


def test_embeddings_have_mistrals_names() -> None:
    """`dimensions` has another name, and the user is nobody's business."""
    assert embeddings(dimensions=256, user="ann", encoding_format="float") == {
        "model": "mistral-embed",
        "input": ["a", "b"],
        "output_dimension": 256,
        "encoding_format": "float",
    }


def test_tokens_cannot_be_embedded() -> None:
    """Only OpenAI's own models read OpenAI's tokens."""
    with pytest.raises(BadRequest, match="takes no tokens"):
        embeddings(input=[1, 2])
