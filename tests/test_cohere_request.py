"""Requests to Cohere, judged with what Cohere's own SDK takes as arguments."""

from __future__ import annotations

import base64
from typing import Any, get_type_hints

import orjson
import pytest
from cohere.v2.raw_client import RawV2Client
from multidict import CIMultiDict
from pydantic import TypeAdapter

from llmproxy.errors import BadRequest, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.cohere import Cohere, CohereConfig
from llmproxy.request import Operation
from llmproxy.services import UpstreamRequest
from tests.providers import header, request, services

USER = {"role": "user", "content": "Hi"}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n0000").decode()
CALL = {"id": "toolu_01", "type": "function", "function": {"name": "weather", "arguments": '{"city": 1.0}'}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "d", "parameters": SCHEMA}
WEATHER = {"type": "function", "function": FUNCTION}
SHELL = {"type": "custom", "custom": {"name": "shell"}}
MODEL = "command-a-reasoning-08-2025"


def cohere(**section: Any) -> Cohere:
    """A configured Cohere."""
    return Cohere("cohere", CohereConfig.model_validate({"api_key": "key-1", **section}), services())


def prepare(document: dict[str, Any], **section: Any) -> UpstreamRequest:
    """What is sent for a document."""
    asked = {"model": MODEL, "messages": [USER], **document}
    return cohere(**section).prepare(request(asked), Target("cohere", asked["model"]), CIMultiDict())


def judged(body: dict[str, Any], method: Any) -> dict[str, Any]:
    """The body, once each of its members has been found right by the SDK's type for it."""
    hints = get_type_hints(method, include_extras=True)
    for name, value in body.items():
        if name != "stream":
            TypeAdapter(hints[name]).validate_python(value)
    return body


def sent(document: dict[str, Any], **section: Any) -> dict[str, Any]:
    """The body that is sent for a chat."""
    return judged(orjson.loads(prepare(document, **section).body), RawV2Client.chat_stream)


def rest(document: dict[str, Any], **section: Any) -> dict[str, Any]:
    """The members beside model, stream and messages."""
    body = sent(document, **section)
    return {name: value for name, value in body.items() if name not in ("model", "stream", "messages")}


def messages(*given: dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    """The messages that are sent for some messages."""
    found: list[dict[str, Any]] = sent({"messages": list(given), **members})["messages"]
    return found


def test_where_and_with_what_key() -> None:
    """Chat has a path of its own; the key is a bearer token."""
    prepared = prepare({})
    assert prepared.url == "https://api.cohere.com/v2/chat"
    assert header(prepared, "authorization") == "Bearer key-1"
    assert orjson.loads(prepared.body) == {"model": MODEL, "stream": False, "messages": [USER]}
    assert prepare({}, base_url="http://127.0.0.1:1/").url == "http://127.0.0.1:1/v2/chat"
    with pytest.raises(UpstreamError, match="CO_API_KEY"):
        prepare({}, api_key=None)


def test_text_completions_are_refused() -> None:
    """Cohere has no such endpoint."""
    with pytest.raises(BadRequest, match="does not offer text completion"):
        cohere().prepare(request({"model": "m"}, Operation.TEXT_COMPLETION), Target("cohere", "m"), CIMultiDict())


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        ({"stop": "a"}, {"stop_sequences": ["a"]}),
        ({"temperature": 0.5, "seed": 3}, {"temperature": 0.5, "seed": 3}),
        ({"top_p": 1}, {"p": 0.99}),
        ({"top_p": 0.5, "top_k": 900}, {"p": 0.5, "k": 500}),
        ({"frequency_penalty": -1, "presence_penalty": 1.5}, {"frequency_penalty": 0.0, "presence_penalty": 1.0}),
        ({"logprobs": True, "top_logprobs": 0}, {"logprobs": True}),
        ({"n": 1, "modalities": ["text"], "stop": None, "temperature": None}, {}),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
                }
            },
            {"response_format": {"type": "json_object", "json_schema": SCHEMA}},
        ),
        (
            {"safety_mode": "STRICT", "citation_options": {"mode": "OFF"}, "k": 3, "priority": 1},
            {"safety_mode": "STRICT", "citation_options": {"mode": "OFF"}, "k": 3, "priority": 1},
        ),
        ({"documents": [{"data": {"text": "a"}}]}, {"documents": [{"data": {"text": "a"}}]}),
    ],
)
def test_parameters_get_coheres_names(document: dict[str, Any], expected: dict[str, Any]) -> None:
    """Names and bounds are Cohere's; what only Cohere has passes."""
    assert rest(document) == expected


def test_a_stream_is_asked_for_as_one() -> None:
    """`stream_options` are OpenAI's: usage always comes."""
    prepared = prepare({"stream": True, "stream_options": {"include_usage": True}})
    assert orjson.loads(prepared.body)["stream"] is True
    assert header(prepared, "accept") == "text/event-stream"
    assert prepared.dropped == ()


def test_hints_are_left_out_and_named() -> None:
    """What Cohere does not know is dropped, and said so."""
    hints = {"user": "ann", "logit_bias": {"1": 2}, "parallel_tool_calls": False, "store": True, "x_unknown": 1}
    assert prepare(hints).dropped == tuple(hints)
    assert rest(hints) == {}


@pytest.mark.parametrize(
    "document",
    [
        {"n": 2},
        {"top_logprobs": 3},
        {"web_search_options": {}},
        {"audio": {"voice": "a"}},
        {"modalities": ["audio"]},
        {"stop": ["a", "b", "c", "d", "e", "f"]},
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
    ("document", "expected"),
    [
        ({"reasoning_effort": "none"}, {"type": "disabled"}),
        ({"reasoning_effort": "low"}, {"type": "enabled", "token_budget": 2048}),
        ({"reasoning_effort": "max"}, {"type": "enabled", "token_budget": 31000}),
        ({"reasoning_effort": "high", "max_tokens": 1000}, {"type": "enabled", "token_budget": 500}),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, {"type": "disabled"}),
        ({"model": "command-r-plus-08-2024", "reasoning_effort": "high"}, None),
    ],
)
def test_effort_is_a_budget_below_the_limit(document: dict[str, Any], expected: Any) -> None:
    """Thinking leaves room for the answer, Cohere's own parameter wins, and who cannot think is not asked to."""
    assert rest(document).get("thinking") == expected
    if expected is None:
        assert prepare(document).dropped == ("reasoning_effort",)


def test_an_unknown_effort_is_refused() -> None:
    """A word that means nothing is the client's mistake."""
    with pytest.raises(BadRequest, match="reasoning_effort"):
        prepare({"reasoning_effort": "a lot"})


# Messages


def test_every_form_of_content_is_accepted() -> None:
    """Trap 32; what says nothing is left out."""
    found = messages(
        {"role": "developer", "content": "rules"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]},
    )
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in found] == ["rules", "a", "no", [{"type": "text", "text": "a"}]]


def test_images_and_text_files() -> None:
    """Images are addresses with their detail; text files are documents that can be cited."""
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpg;base64,{PIXEL}", "detail": "original"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,aMOp", "filename": "a.txt"}},
    ]
    body = sent({"messages": [{"role": "user", "content": parts}]})
    assert body["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ]
    assert body["documents"] == [{"data": {"title": "a.txt", "text": "hé"}}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PIXEL}"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ],
)
def test_what_cannot_be_read_is_refused(part: dict[str, Any]) -> None:
    """Sound and other files are named, not silently lost."""
    with pytest.raises(BadRequest) as caught:
        prepare({"messages": [{"role": "user", "content": [part]}]})
    assert caught.value.param == "messages[0].content[0]"


def test_calls_and_results() -> None:
    """What is said before calls is their plan; arguments keep every digit; ids stay."""
    assistant = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL], "reasoning_content": "Hm."}
    found = messages(USER, assistant, {"role": "tool", "tool_call_id": "toolu_01", "content": "sunny"})
    assert found[1] == {
        "role": "assistant",
        "tool_calls": [CALL],
        "tool_plan": "Let me look.",
        "content": [{"type": "thinking", "thinking": "Hm."}],
    }
    assert found[2] == {"role": "tool", "tool_call_id": "toolu_01", "content": "sunny"}


def test_thinking_goes_back_only_to_models_that_think() -> None:
    """Trap 8: signatures of other vendors are never sent on."""
    foreign = {"type": "thinking", "thinking": "Hm.", "signature": "of-claude"}
    assistant = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "thinking_blocks": [foreign]}
    found = messages(USER, assistant)
    assert found[1]["content"] == [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]
    prepared = prepare({"model": "command-r7b-12-2024", "messages": [USER, assistant]})
    assert orjson.loads(prepared.body)["messages"][1] == {"role": "assistant", "content": "Yes."}
    assert prepared.dropped == ("messages.reasoning_content",)


def test_marks_are_stripped() -> None:
    """Trap 13: cache marks do not reach a server that does not know them."""
    marked = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    prepared = prepare({"messages": [{"role": "user", "content": [marked]}]})
    assert b"cache_control" not in prepared.body
    assert prepared.dropped == ("messages.cache_control",)


# Tools


@pytest.mark.parametrize(
    ("choice", "expected", "tools"),
    [
        (None, None, ["weather", "shell"]),
        ("auto", None, ["weather", "shell"]),
        ("none", "NONE", ["weather", "shell"]),
        ("required", "REQUIRED", ["weather", "shell"]),
        ({"type": "function", "function": {"name": "weather"}}, "REQUIRED", ["weather"]),
        ({"type": "custom", "custom": {"name": "shell"}}, "REQUIRED", ["shell"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WEATHER]}}, None, ["weather"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}}, "REQUIRED", ["weather"]),
    ],
)
def test_tool_choices(choice: Any, expected: str | None, tools: list[str]) -> None:
    """A function is forced by offering it alone."""
    body = rest({"tools": [WEATHER, SHELL], "tool_choice": choice})
    assert body.get("tool_choice") == expected
    assert [tool["function"]["name"] for tool in body["tools"]] == tools


def test_tools_without_parameters_and_strict_ones() -> None:
    """Parameters are always there; strictness is asked for when every tool wants it."""
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    bare = {"type": "function", "function": {"name": "now"}}
    assert rest({"tools": [bare]})["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert rest({"tools": [strict]})["strict_tools"] is True
    assert "strict_tools" not in rest({"tools": [strict, bare]})
    assert rest({"tools": [], "tool_choice": "auto"}) == {}


def test_a_choice_of_no_tool_is_refused() -> None:
    """A name that is not among the tools is the client's mistake."""
    with pytest.raises(BadRequest, match="not among the tools"):
        prepare({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}})


# Embeddings


def embeddings(config: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    """The body sent for an embeddings request."""
    asked = request({"model": "embed-v4.0", "input": "a", **members}, Operation.EMBEDDINGS)
    prepared = cohere(**(config or {})).prepare(asked, Target("cohere", "embed-v4.0"), CIMultiDict())
    assert prepared.url == "https://api.cohere.com/v2/embed"
    return judged(orjson.loads(prepared.body), RawV2Client.embed)


def test_embeddings_have_coheres_names() -> None:
    """A single text is a list of one, the required input type has a default, and base64 is made here."""
    assert embeddings(dimensions=256, encoding_format="base64", user="ann") == {
        "model": "embed-v4.0",
        "texts": ["a"],
        "input_type": "search_document",
        "embedding_types": ["float"],
        "output_dimension": 256,
    }


def test_the_input_type_is_the_clients_then_the_operators() -> None:
    """Who asks knows best what the vectors are for."""
    config = {"input_type": "classification"}
    assert embeddings(config)["input_type"] == "classification"
    assert embeddings(config, input_type="search_query", truncate="END")["input_type"] == "search_query"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"input": [1, 2]}, "takes no tokens"),
        ({"input": []}, "a text or a list"),
        ({"dimensions": 0}, "positive integer"),
        ({"encoding_format": "hex"}, "'float' or 'base64'"),
    ],
)
def test_embeddings_that_cannot_be_made_are_refused(members: dict[str, Any], said: str) -> None:
    """The mistake is said before anything is sent."""
    with pytest.raises(BadRequest, match=said):
        embeddings(**members)


def test_a_large_batch_goes_in_parts() -> None:
    """Cohere takes 96 texts in a call."""
    parts = cohere().split(request({"model": "embed-v4.0", "input": ["a"] * 97}, Operation.EMBEDDINGS))
    assert [len(part.document["input"]) for part in parts] == [96, 1]
