"""Answers in the Messages format as chat completions: made with the vendor's types, read with the openai SDK's."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from anthropic.types import ErrorResponse
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_chat import usage_of
from llmproxy.dialects.openai_errors import error_of
from llmproxy.errors import Failure, UpstreamBroken, UpstreamRefused
from llmproxy.providers.anthropic.answer import message_usage
from llmproxy.usage import Usage
from tests.anthropic_messages import (
    AS_SCHEMA,
    CREATED,
    NEW,
    OLD,
    SETTINGS,
    USER,
    message,
    messages_format,
    text,
    whole,
    whole_bytes,
)

THINKING = {"type": "thinking", "thinking": "Let me\n see", "signature": "EqQB=="}
REDACTED = {"type": "redacted_thinking", "data": "Emwk"}
SQL = {"type": "custom", "custom": {"name": "sql"}}


def tool_use(name: str = "weather", **arguments: Any) -> dict[str, Any]:
    """A tool call."""
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": arguments, "caller": {"type": "direct"}}


def test_text() -> None:
    """Text blocks are joined with nothing between, and the vendor's id stays readable."""
    answer = whole(message(text("Hel"), text("lo")))
    assert answer.choices[0].message.content == "Hello"
    assert (answer.id, answer.model, answer.created) == ("chatcmpl-msg_01", NEW, CREATED)
    assert answer.choices[0].finish_reason == "stop"


def test_parallel_tool_calls() -> None:
    """Each call has its id, its name, and arguments that are JSON text, also when there are none."""
    answer = whole(message(text(""), tool_use(city="Köln", n=1.0), tool_use("now"), stop_reason="tool_use"))
    calls = answer.choices[0].message.tool_calls or []
    assert [call.id for call in calls] == ["toolu_weather", "toolu_now"]
    assert [call.to_dict()["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city":"Köln","n":1.0}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert answer.choices[0].message.content is None
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_custom_tool_gets_its_text_back() -> None:
    """A free-form tool is called with the text alone."""
    answer = whole(message(tool_use("sql", input="SELECT 1"), stop_reason="tool_use"), tools=[SQL])
    [call] = answer.choices[0].message.tool_calls or []
    assert call.to_dict()["custom"] == {"name": "sql", "input": "SELECT 1"}


def test_an_answer_through_a_tool_is_unwrapped() -> None:
    """Structured output of an older model is content, and the answer has stopped."""
    answer = whole(message(tool_use("place", city="Bonn"), stop_reason="tool_use"), OLD, response_format=AS_SCHEMA)
    assert answer.choices[0].message.content == '{"city":"Bonn"}'
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


def test_thinking_goes_to_the_client_and_back() -> None:
    """Trap 7: what an answer holds of thinking is, sent back, what Claude had said, to the letter."""
    answer = whole(message(THINKING, REDACTED, text("So"), tool_use(city="Bonn"), stop_reason="tool_use"))
    said = answer.choices[0].message.to_dict()
    assert said["reasoning_content"] == THINKING["thinking"]
    results = {"role": "tool", "tool_call_id": "toolu_weather", "content": "sunny"}
    body = messages_format().request({"messages": [USER, said, results]}, NEW).body
    assert body["messages"][1]["content"][:2] == [THINKING, REDACTED]


def test_hidden_thinking_keeps_its_signature() -> None:
    """Thinking that is not shown is no reasoning text, but a block to send back."""
    said = whole(message({**THINKING, "thinking": ""}, text("So"))).choices[0].message.to_dict()
    assert "reasoning_content" not in said
    assert said["thinking_blocks"] == [{**THINKING, "thinking": ""}]


def test_blocks_of_the_servers_own_tools_are_passed_over() -> None:
    """A search is none of the client's tool calls; its citations count characters of the joined text."""
    cited = {
        "type": "web_search_result_location",
        "cited_text": "x",
        "encrypted_index": "e",
        "title": "T",
        "url": "https://e.com",
    }
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}}
    answer = whole(message(text("Äh. "), {**search, "caller": {"type": "direct"}}, text("Sunny", citations=[cited])))
    [annotation] = answer.choices[0].message.annotations or []
    assert answer.choices[0].message.tool_calls is None
    assert annotation.url_citation.to_dict() == {"start_index": 4, "end_index": 9, "title": "T", "url": "https://e.com"}


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "content_filter"),
    ],
)
def test_finish_reasons(native: str, reason: str) -> None:
    """Each way of ending has OpenAI's name, and keeps its own beside it."""
    choice = whole(message(text("Hi"), stop_reason=native)).choices[0]
    assert choice.finish_reason == reason
    assert choice.to_dict()["native_finish_reason"] == native


def test_an_unknown_end_is_a_stop() -> None:
    """What a later API may say does not break an answer."""
    answer = {**message(text("Hi")), "stop_reason": "sleepy"}
    assert whole(answer).choices[0].finish_reason == "stop"


@pytest.mark.parametrize("explanation", ["Not that.", None])
def test_a_refusal_is_one(explanation: str | None) -> None:
    """A refused answer says so in words, the vendor's if it gave any."""
    details = {"type": "refusal", "category": "bio", "explanation": explanation}
    answer = whole(message(stop_reason="refusal", stop_details=details)).choices[0]
    assert answer.finish_reason == "content_filter"
    assert answer.message.refusal == explanation or (explanation is None and answer.message.refusal)
    assert answer.message.content is None


# Usage

USAGE = {
    "input_tokens": 3,
    "cache_read_input_tokens": 5,
    "cache_creation_input_tokens": 11,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 7},
    "output_tokens": 20,
    "output_tokens_details": {"thinking_tokens": 13},
}


def test_usage_counts_every_token_once() -> None:
    """Trap 14: input apart from the cache becomes a prompt that includes it, and thinking is inside the output."""
    usage = whole(message(text("Hi"), usage=USAGE)).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (19, 20, 39)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 5
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 13


def test_no_class_of_usage_is_lost_on_the_way() -> None:
    """What is priced apart, an hour's cache among it, is read back from the answer as it was."""
    document = orjson.loads(whole_bytes(message(text("Hi"), usage=USAGE)))
    assert usage_of(document) == Usage(
        uncached_input_tokens=3,
        cache_read_input_tokens=5,
        cache_write_5m_input_tokens=4,
        cache_write_1h_input_tokens=7,
        text_output_tokens=7,
        reasoning_output_tokens=13,
    )


COUNTS = st.integers(0, 10**9)


@SETTINGS
@given(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), COUNTS, COUNTS)
def test_classes_add_up(inputs: tuple[int, int, int, int], output: int, thought: int) -> None:
    """Whatever the numbers: classes are never negative and add up to what was reported, there and back."""
    fresh, read, short, long = inputs
    reported = {
        "input_tokens": fresh,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": short + long,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
        "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": thought},
    }
    usage = message_usage(reported)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (fresh + read + short + long, output)
    assert min(usage.text_output_tokens, usage.reasoning_output_tokens) >= 0
    assert usage_of(orjson.loads(whole_bytes({**message(text("Hi")), "usage": reported}))) == usage


JUNK: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
)


@SETTINGS
@given(st.dictionaries(st.sampled_from([*USAGE, "x"]), JUNK))
def test_junk_in_usage_never_raises(usage: dict[str, Any]) -> None:
    """Numbers that cannot be true are left out, and no class gets negative."""
    read = message_usage(usage)
    assert read is None or min(read.input_tokens, read.text_output_tokens, read.cache_write_5m_input_tokens) >= 0


# Errors


def error(kind: str, words: str = "Because.") -> dict[str, Any]:
    """An error as the vendor sends it."""
    return {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_1"}


@pytest.mark.parametrize(
    ("status", "kind", "words", "failure", "seen"),
    [
        (400, "invalid_request_error", "bad", Failure.INVALID_REQUEST, 400),
        (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", Failure.CONTEXT_LENGTH, 400),
        (400, "invalid_request_error", "Your credit balance is too low to go on", Failure.QUOTA, 429),
        (400, "invalid_request_error", "Output blocked by content filtering policy", Failure.CONTENT_POLICY, 400),
        (401, "authentication_error", "invalid x-api-key", Failure.AUTH, 502),
        (402, "billing_error", "pay", Failure.QUOTA, 429),
        (403, "permission_error", "no", Failure.AUTH, 502),
        (404, "not_found_error", "model: claude-x", Failure.MODEL, 404),
        (413, "request_too_large", "big", Failure.INVALID_REQUEST, 413),
        (429, "rate_limit_error", "slow down", Failure.RATE_LIMIT, 429),
        (500, "api_error", "oops", Failure.BROKEN, 502),
        (504, "timeout_error", "late", Failure.TIMEOUT, 504),
        (529, "overloaded_error", "Overloaded", Failure.OVERLOADED, 503),
    ],
)
def test_errors_are_classified(status: int, kind: str, words: str, failure: Failure, seen: int) -> None:
    """Every error of the vendor is of the class that failover needs, with a status OpenAI clients know."""
    document = error(kind, words)
    if kind != "request_too_large":  # which is real, and not in the SDK's types
        ErrorResponse.model_validate(document)
    refused = error_of(status, {}, orjson.dumps(document))
    assert (refused.failure, refused.http_status) == (failure, seen)


def test_an_error_inside_a_200_is_one() -> None:
    """Trap 22: an error where an answer should be is raised as the vendor's error."""
    with pytest.raises(UpstreamRefused) as caught:
        whole(error("overloaded_error"))
    assert caught.value.failure is Failure.OVERLOADED


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"type": "message"},
        {"content": [], "stop_reason": None},
        {"content": {}, "stop_reason": "end_turn"},
        {"content": [{"type": "tool_use"}], "stop_reason": "tool_use"},
        {"choices": []},
    ],
)
def test_what_is_no_message_is_no_answer(document: dict[str, Any]) -> None:
    """Trap 24: half an answer is an error, never a stop."""
    with pytest.raises(UpstreamBroken):
        whole(document)


JSON = st.recursive(JUNK, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
BLOCKS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "web_search_tool_result"])},
    optional={
        name: JSON | st.text() for name in ("text", "thinking", "signature", "data", "name", "id", "input", "citations")
    },
)


@SETTINGS
@given(st.lists(BLOCKS, max_size=4) | JSON, st.sampled_from(["end_turn", "tool_use", "refusal"]) | JSON, JSON)
def test_junk_is_an_answer_or_an_error_of_the_vendors(content: object, stop_reason: object, usage: object) -> None:
    """Whatever JSON comes, the openai SDK can read what is made of it, or it is refused as broken."""
    try:
        answer = whole({"content": content, "stop_reason": stop_reason, "usage": usage, "id": usage, "model": content})
    except UpstreamBroken:
        return
    assert answer.choices[0].finish_reason in ("stop", "tool_calls", "content_filter")
