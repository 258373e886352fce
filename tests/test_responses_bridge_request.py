"""Chat completions requests for the Responses API: what OpenAI's own types accept, and nothing lost unnamed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import BadRequest
from llmproxy.providers.responses.reasoning import thinking_block
from llmproxy.providers.responses.request import ResponsesRequest
from tests.responses_api import (
    ISSUER,
    JSON,
    MODEL,
    SCHEMA,
    SETTINGS,
    SQL,
    WEATHER,
    mutate,
    native,
    reasoning,
    translate,
)

PNG = "data:image/png;base64,iVBORw0KGgo="
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"n": 1.0, "n":2}'}}
BLOCK = thinking_block(reasoning("Hm."), ISSUER, 0)


def items(*messages: dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    """The input items for some messages."""
    found: list[dict[str, Any]] = native(messages=list(messages), **members)["input"]
    return found


def test_the_least_request() -> None:
    """A question is an item, nothing is stored with the vendor, and reasoning comes encrypted for the way back."""
    assert native() == {
        "model": MODEL,
        "input": [{"type": "message", "role": "user", "content": "Hi"}],
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "stream": False,
    }


def test_the_same_request_gives_the_same_bytes() -> None:
    """The body's order does not depend on anything but the request, so that the vendor's cache finds it again."""
    members = {"tools": [WEATHER, SQL], "reasoning_effort": "high", "top_p": 1, "metadata": {"b": "1", "a": "2"}}
    assert translate(**members).encode() == translate(**members).encode()


def test_members_that_both_know_stay() -> None:
    """What means the same in both APIs keeps its name and value."""
    members = {
        "metadata": {"a": "b"},
        "moderation": {"model": "omni-moderation-latest"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "priority",
        "temperature": 0,
        "top_p": 0.5,
        "user": "u",
        "truncation": "auto",
        "max_tool_calls": 3,
    }
    body = native(**members)
    assert {name: body[name] for name in members} == members
    assert translate(**members).dropped == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_completion_tokens": 20, "max_tokens": 30}, {"max_output_tokens": 20}),
        ({"max_tokens": 30}, {"max_output_tokens": 30}),
        ({"reasoning_effort": "max"}, {"reasoning": {"effort": "max"}}),
        (
            {"reasoning_effort": "low", "reasoning": {"summary": "auto"}},
            {"reasoning": {"summary": "auto", "effort": "low"}},
        ),
        ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"logprobs": True, "top_logprobs": 2},
            {"top_logprobs": 2, "include": ["reasoning.encrypted_content", "message.output_text.logprobs"]},
        ),
        (
            {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
            {"stream": True, "stream_options": {"include_obfuscation": False}},
        ),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"temperature": None, "stop": None, "tools": [], "n": 1, "logit_bias": {}, "modalities": ["text"]}, {}),
    ],
)
def test_members_with_another_name(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each scalar finds its place in the other API; what asks for nothing is not sent."""
    assert native(**given) == {**native(), **expected}
    assert translate(**given).dropped == ()


def test_structured_output() -> None:
    """The schema moves up a level; `strict` is always said, because its default differs."""
    wanted = {"name": "place", "schema": SCHEMA, "description": "A place."}
    body = native(response_format={"type": "json_schema", "json_schema": wanted}, verbosity="high")
    assert body["text"] == {"format": {"type": "json_schema", "strict": False, **wanted}, "verbosity": "high"}
    strict = native(response_format={"type": "json_schema", "json_schema": {**wanted, "strict": True}})
    assert strict["text"]["format"]["strict"] is True


# Tools


def test_tools_are_flat() -> None:
    """Functions and custom tools lose a level and keep their members; legacy functions are functions."""
    bare = {"type": "function", "function": {"name": "now", "strict": True, "type": "custom"}}
    empty = {"type": "object", "properties": {}}
    assert native(tools=[WEATHER, bare, SQL])["tools"] == [
        {"type": "function", "name": "weather", "description": "Weather.", "parameters": SCHEMA, "strict": False},
        {"type": "function", "name": "now", "strict": True, "parameters": empty},
        {
            "type": "custom",
            "name": "sql",
            "description": "A query.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: WORD"},
        },
    ]
    assert native(functions=[WEATHER["function"]])["tools"] == native(tools=[WEATHER])["tools"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "function", "name": "weather"}),
        ({"type": "custom", "custom": {"name": "sql"}}, {"type": "custom", "name": "sql"}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER, SQL]}},
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "weather"}, {"type": "custom", "name": "sql"}],
            },
        ),
    ],
)
def test_the_choice_of_tools(choice: Any, expected: Any) -> None:
    """Every way to choose has its flat form."""
    assert native(tools=[WEATHER, SQL], tool_choice=choice)["tool_choice"] == expected


def test_a_search_of_the_web_is_a_tool_there() -> None:
    """`web_search_options` become the vendor's own tool."""
    place = {"type": "approximate", "approximate": {"country": "DE"}}
    body = native(web_search_options={"search_context_size": "low", "user_location": place}, tools=[WEATHER])
    assert body["tools"][1] == {
        "type": "web_search",
        "search_context_size": "low",
        "user_location": {"type": "approximate", "country": "DE"},
    }


# Messages


def test_roles_and_forms_of_content() -> None:
    """Trap 32: text, parts, null and empty text are all content; system and developer messages keep their places."""
    assert items(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ["Hi", {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}, {"type": "text", "text": "?"}]},
        {"role": "developer", "content": [{"type": "text", "text": "Now"}]},
        {"role": "user", "content": None},
    ) == [
        {"type": "message", "role": "system", "content": "Be brief."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Hi"}, {"type": "input_text", "text": "there"}],
        },
        {"type": "message", "role": "assistant", "content": "Yes?"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Now"}]},
        {"type": "message", "role": "user", "content": ""},
    ]


def test_images_and_files_keep_their_bytes() -> None:
    """Addresses and data go on as they came; cache breakpoints stay on their parts."""
    mark = {"mode": "explicit"}
    parts = [
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}, "prompt_cache_breakpoint": mark},
        {"type": "image_url", "image_url": {"url": "https://e.com/a.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1", "file_data": None}},
    ]
    assert items({"role": "user", "content": parts})[0]["content"] == [
        {"type": "input_image", "image_url": PNG, "detail": "low", "prompt_cache_breakpoint": mark},
        {"type": "input_image", "image_url": "https://e.com/a.png", "detail": "auto"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"},
        {"type": "input_file", "file_id": "file-1"},
    ]


def test_calls_and_results_are_paired_by_call_id() -> None:
    """Trap 31: parallel calls and their results are items with the client's ids; arguments keep every byte."""
    other = {"id": "call_2", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    assert items(
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, other]},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "1"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        tools=[WEATHER, SQL],
    ) == [
        {"type": "message", "role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"n": 1.0, "n":2}'},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "sql", "input": "SELECT 1"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"), [("", "{}"), (" ", "{}"), (None, "{}"), ({"a": 1}, '{"a":1}'), ("no json", "no json")]
)
def test_arguments_are_never_empty(arguments: Any, expected: str) -> None:
    """Trap 2, on the way back: a call without arguments has an empty object."""
    said = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "now", "arguments": arguments}}]}
    assert items(said)[0]["arguments"] == expected


def test_an_id_that_is_too_long_is_replaced_on_both_sides() -> None:
    """Another vendor's id that does not fit is exchanged for the same one in the call and in its result."""
    name = "toolu_" + "x" * 80
    made, result = items(
        {"role": "assistant", "tool_calls": [{**CALL, "id": name}]},
        {"role": "tool", "tool_call_id": name, "content": "rain"},
    )
    assert made["call_id"] == result["call_id"]
    assert len(made["call_id"]) <= 64


def test_legacy_functions_in_the_history() -> None:
    """Trap 43: function calls of old are calls with ids, and their results name them."""
    made, result = items(
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "rain"},
        functions=[WEATHER["function"]],
    )
    assert (made["type"], made["name"], result["output"]) == ("function_call", "weather", "rain")
    assert made["call_id"] == result["call_id"]


def test_an_earlier_refusal_is_what_the_model_said() -> None:
    """A refusal in the history is text, as a member or as a part."""
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}], "refusal": "!"}
    assert items(said) == [{"type": "message", "role": "assistant", "content": "No!"}]


# Reasoning in the history


def test_reasoning_goes_back_to_its_place() -> None:
    """Trap 7: encrypted reasoning is sent back as it came, before the very item that it led to."""
    first, second = reasoning("Hm."), reasoning(number=2, encrypted="gBBB")
    blocks = [thinking_block(first, ISSUER, 0), thinking_block(second, ISSUER, 2)]
    said = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [CALL],
        "thinking_blocks": blocks,
        "reasoning_content": "Hm.",
        "extra_content": {"openai": {"phase": "commentary"}},
    }
    assert items(said) == [
        first,
        {"type": "message", "role": "assistant", "content": "Let me see.", "phase": "commentary"},
        second,
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"n": 1.0, "n":2}'},
    ]
    assert translate(messages=[said]).dropped == ()


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {**(BLOCK or {}), "issuer": "azure"},
        {**(BLOCK or {}), "encrypted_content": None},
        "no block",
    ],
)
def test_reasoning_of_others_stays_behind(block: Any) -> None:
    """Trap 8: what another provider made it alone can read; it is left out, and named."""
    translated = translate(messages=[{"role": "assistant", "content": "Yes", "thinking_blocks": [block]}])
    assert translated.body["input"] == [{"type": "message", "role": "assistant", "content": "Yes"}]
    assert translated.dropped == ("messages.thinking_blocks",)


# What has no place


def test_hints_are_left_out_and_named() -> None:
    """What only would have been nice does not fail a request; unknown members neither."""
    members = {"seed": 1, "prediction": {"type": "content"}, "store": True, "x_new": 1, "top_k": 0}
    marked = {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Hi", "cache_control": {}}]}
    translated = translate(**members, messages=[marked], tools=[{**WEATHER, "cache_control": {}}])
    assert set(translated.dropped) == {
        *("seed", "prediction", "store", "x_new"),
        *("messages.name", "messages.cache_control", "tools.cache_control"),
    }
    assert translated.body["store"] is False
    assert not {"seed", "prediction", "x_new"} & set(translated.body)


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "background", "prompt"])
def test_nothing_reaches_into_the_vendors_store(name: str) -> None:
    """What is stored with the vendor belongs to all who share the gateway's key, so that no client may name it."""
    translated = translate(**{name: "resp_of_somebody"})
    assert name not in translated.body
    assert translated.dropped == (name,)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": ["x"]}, "stop"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_would_change_the_answer_is_refused(members: dict[str, Any], param: str) -> None:
    """What cannot be done and cannot be left out is a 400 that names it."""
    with pytest.raises(BadRequest) as caught:
        translate(**members)
    assert (caught.value.param, caught.value.error_code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot"}]}, "messages[0]"),
        ({"messages": [{"role": ["user"]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": {}}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_a_malformed_request_is_named(members: dict[str, Any], param: str) -> None:
    """A mistake of the client's is a 400 that says where it is."""
    with pytest.raises(BadRequest) as caught:
        translate(**members)
    assert caught.value.param == param


def test_a_request_that_is_nested_too_deep_is_refused() -> None:
    """What the encoder cannot write is the client's mistake, not a crash."""
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    with pytest.raises(BadRequest, match="nested too deep"):
        ResponsesRequest({"a": deep}, ()).encode()


FULL: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
        {"role": "assistant", "tool_calls": [CALL], "thinking_blocks": [BLOCK], "extra_content": {"openai": {}}},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ],
    "tools": [WEATHER, SQL],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}},
    "reasoning_effort": "low",
    "web_search_options": {"user_location": {"approximate": {}}},
    "stream_options": {"include_obfuscation": True},
    "include": ["file_search_call.results"],
    "reasoning": {"summary": "auto"},
    "logprobs": True,
}


@SETTINGS
@given(st.integers(1, 80), JSON)
def test_no_request_breaks_the_translation(place: int, new: Any) -> None:
    """Whatever stands in any place of a request, it is translated or refused as the client's mistake."""
    document = mutate({"model": MODEL, **FULL}, place, new)
    if not isinstance(document.get("model"), str):
        return
    try:
        body = orjson.loads(translate(**document).encode())
    except BadRequest:
        return
    assert body["store"] is False
