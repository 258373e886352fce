"""Streams in the Messages format as chat completion chunks: however they are split, and however they end."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_chat import usage_of
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import Failure, UpstreamBroken, UpstreamCut, UpstreamError, UpstreamRefused
from llmproxy.providers.anthropic.answer import message_usage
from tests.anthropic_messages import (
    AS_SCHEMA,
    CREATED,
    NEW,
    OLD,
    SETTINGS,
    USER,
    chunks,
    collected,
    decode,
    events_of,
    message,
    messages_format,
    sse,
    text,
    whole_bytes,
)
from tests.test_anthropic_answer import REDACTED, SQL, THINKING, USAGE, error, tool_use

CITED = {
    "type": "web_search_result_location",
    "cited_text": "x",
    "encrypted_index": "e",
    "title": "T",
    "url": "https://e.com",
}
SEARCH = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}, "caller": {"type": "direct"}}
REFUSAL = {"type": "refusal", "category": "bio", "explanation": "Not that."}
FULL = message(
    THINKING,
    REDACTED,
    text("Äh 🎉"),
    SEARCH,
    tool_use(city="Köln", n=1.0),
    text("Sunny", citations=[CITED]),
    tool_use("now"),
    stop_reason="tool_use",
    usage=USAGE,
)
ANSWERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (NEW, FULL, {}),
    (NEW, message(text("Hello")), {}),
    (NEW, message(), {}),
    (NEW, message(text("Hel"), stop_reason="max_tokens"), {}),
    (NEW, message(stop_reason="refusal", stop_details=REFUSAL), {}),
    (NEW, message(text("Well"), stop_reason="refusal", stop_details=REFUSAL), {}),
    (NEW, message({**THINKING, "thinking": ""}, text("So")), {}),
    (NEW, message(tool_use("sql", input="SELECT 'ü'"), stop_reason="tool_use"), {"tools": [SQL]}),
    (OLD, message(tool_use("place", city="Bonn"), stop_reason="tool_use"), {"response_format": AS_SCHEMA}),
]


@pytest.mark.parametrize(("model", "answer", "members"), ANSWERS)
def test_a_stream_amounts_to_the_whole_answer(model: str, answer: dict[str, Any], members: dict[str, Any]) -> None:
    """Streamed or not, the client gets the same answer."""
    out = decode(sse(events_of(answer)), model=model, **members)
    assert collected(out) == orjson.loads(whole_bytes(answer, model, **members))


@SETTINGS
@given(st.integers(1, 60), st.integers(1, 5))
def test_pieces_do_not_matter(size: int, piece: int) -> None:
    """Trap 18: wherever the stream is split, inside characters and line ends too, the chunks are the same."""
    data = sse(events_of(FULL, piece))
    assert decode(data, size) == decode(data)
    assert decode(data.replace(b"\n", b"\r\n"), size) == decode(data)


def test_the_grammar_of_a_stream() -> None:
    """The role comes first, one finish reason, then usage with no choices, then the end; the head never changes."""
    read = chunks(decode(sse(events_of(FULL))))
    assert {(chunk.id, chunk.model, chunk.created) for chunk in read} == {("chatcmpl-msg_01", NEW, CREATED)}
    assert [bool(chunk.choices[0].delta.role) for chunk in read[:-1]] == [True] + [False] * (len(read) - 2)
    assert [chunk.choices[0].finish_reason for chunk in read[-3:-1]] == [None, "tool_calls"]
    assert (read[-1].choices, [chunk.usage for chunk in read[:-1]]) == ([], [None] * (len(read) - 1))


def test_tools_are_counted_on_their_own() -> None:
    """Trap 1: text, thinking and searches before a tool do not move its index."""
    calls = [
        call for chunk in chunks(decode(sse(events_of(FULL))))[:-1] for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert [(call.index, call.id) for call in calls if call.id] == [(0, "toolu_weather"), (1, "toolu_now")]
    assert {call.index for call in calls} == {0, 1}


def test_a_call_without_arguments_has_an_empty_object() -> None:
    """Trap 2: no fragments at all become "{}", never an empty text."""
    answer = message(tool_use("now"), stop_reason="tool_use")
    [call] = collected(decode(sse(events_of(answer))))["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == "{}"


def test_usage_of_both_ends_is_joined() -> None:
    """The end tells the output, and what it does not tell again stays as the beginning had it."""
    usage = orjson.loads(decode(sse(events_of(FULL))).split(b"\n\n")[-3].removeprefix(b"data: "))
    assert usage_of(usage) == message_usage(USAGE)


def test_thinking_arrives_whole_for_the_way_back() -> None:
    """Reasoning text comes in pieces; the signed block comes once, as Claude made it."""
    read = chunks(decode(sse(events_of(message(THINKING, REDACTED, text("So"))))))[:-1]
    deltas = [chunk.choices[0].delta.to_dict() for chunk in read]
    assert "".join(str(delta.get("reasoning_content", "")) for delta in deltas) == THINKING["thinking"]
    assert [delta["thinking_blocks"] for delta in deltas if "thinking_blocks" in delta] == [[THINKING], [REDACTED]]


@pytest.mark.parametrize("extra", [{"type": "ping"}, {"type": "news", "delta": 1}])
@pytest.mark.parametrize("position", range(0, 12, 3))
def test_events_that_say_nothing_change_nothing(extra: dict[str, Any], position: int) -> None:
    """Trap 19: pings, comments and events of a later API are passed over."""
    events = events_of(FULL)
    with_extra = [*events[:position], extra, *events[position:]]
    assert decode(b": hello\n\n" + sse(with_extra)) == decode(sse(events))


def test_halves_of_a_character_do_no_harm() -> None:
    """Trap 35: half a surrogate pair and NUL arrive as something that can be written."""
    data = sse(events_of(message(text("ab\0c"), stop_reason="end_turn"), 2)).replace(b'"ab"', b'"a\\ud83d"')
    content = collected(decode(data))["choices"][0]["message"]["content"]
    assert content.startswith("a")
    assert content.endswith("\0c")


# Ends that are none


def cut_points() -> list[int]:
    """Every event of a stream but the last one is a place to be cut."""
    return list(range(len(events_of(FULL)) - 1))


@pytest.mark.parametrize("kept", cut_points())
def test_a_stream_that_stops_short_is_cut(kept: int) -> None:
    """Trap 24: without its last event a stream is no answer, however clean it ended."""
    with pytest.raises(UpstreamCut):
        decode(sse(events_of(FULL)[:kept]))


@SETTINGS
@given(st.integers(0, 4000))
def test_a_stream_cut_at_any_byte_is_cut(end: int) -> None:
    """Only the whole of a stream is an answer; the blank line at its end may be missing."""
    data = sse(events_of(FULL))
    end = min(end, len(data) - 3)
    with pytest.raises(UpstreamCut):
        decode(data[:end])
    assert decode(data[:-2]) == decode(data)


def test_an_error_before_content_is_the_vendors_error() -> None:
    """Trap 23: an overload after the start is still one, and nothing that a client could see has come before."""
    decoder = messages_format().stream_decoder({"messages": [USER]}, NEW, CREATED)
    facts = StreamFacts(hide_usage=True)
    facts.feed(b"".join(decoder.feed(sse(events_of(FULL)[:2]))))
    assert not facts.has_content
    with pytest.raises(UpstreamRefused) as caught:
        list(decoder.feed(sse([error("overloaded_error")])))
    assert (caught.value.failure, caught.value.http_status) == (Failure.OVERLOADED, 503)


def test_an_error_after_content_comes_after_it() -> None:
    """What was said before an error in the same read is not lost, and the error is not either."""
    decoder = messages_format().stream_decoder({"messages": [USER]}, NEW, CREATED)
    out: list[bytes] = []
    with pytest.raises(UpstreamRefused):
        out += decoder.feed(sse([*events_of(FULL)[:6], error("api_error")]))
    assert b"reasoning_content" in b"".join(out)


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "x"}}],
        [{"type": "message_stop"}],
        [{"type": "message_start"}],
        [{"type": "error"}],
        [*events_of(FULL)[:3], *events_of(FULL)[:1]],
        [*events_of(FULL)[:3], events_of(FULL)[2]],
        [*events_of(FULL)[:1], {"type": "content_block_delta", "index": 9, "delta": {}}],
        [*events_of(FULL)[:1], {"type": "message_stop"}],
        [*events_of(FULL)[:1], {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}],
    ],
)
def test_events_out_of_order_are_broken(events: list[dict[str, Any]]) -> None:
    """A stream that makes no sense is refused, and is never a stop."""
    with pytest.raises(UpstreamError):
        decode(sse(events))


@pytest.mark.parametrize(
    "data", [b"data: {\n\n", b"data: []\n\n", b"data: \xff\n\n", b"data: " + b"[" * 5000 + b"\n\n"]
)
def test_garbage_is_broken(data: bytes) -> None:
    """What is no JSON object is refused at once."""
    with pytest.raises(UpstreamBroken):
        decode(data + sse(events_of(FULL)))


@SETTINGS
@given(st.data())
def test_a_damaged_stream_never_looks_whole_without_its_end(data: st.DataObject) -> None:
    """Bytes changed, left out or doubled: chunks the SDK can read, or an error of the vendor's; nothing else."""
    stream = bytearray(sse(events_of(FULL)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(stream) - 1))
        length = data.draw(st.integers(0, 30))
        stream[start : start + length] = data.draw(st.binary(max_size=4))
    try:
        out = decode(bytes(stream))
    except UpstreamError:
        return
    assert b'"message_stop"' in stream
    assert sum(bool(chunk.choices and chunk.choices[0].finish_reason) for chunk in chunks(out)) == 1


BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "other"])},
    optional={name: st.none() | st.integers(0, 9) | st.text(max_size=3) for name in ("text", "thinking", "name", "id")},
)
EVENT = st.one_of(
    st.just({"type": "message_start", "message": {"usage": {"input_tokens": 1}}}),
    st.builds(lambda i, b: {"type": "content_block_start", "index": i, "content_block": b}, st.integers(0, 2), BLOCK),
    st.builds(
        lambda i, kind, value: {
            "type": "content_block_delta",
            "index": i,
            "delta": {"type": kind, "text": value, "partial_json": value, "thinking": value, "citation": value},
        },
        st.integers(0, 2),
        st.sampled_from(["text_delta", "input_json_delta", "thinking_delta", "citations_delta"]),
        st.none() | st.text(max_size=3),
    ),
    st.builds(lambda i: {"type": "content_block_stop", "index": i}, st.integers(0, 2)),
    st.builds(
        lambda why: {"type": "message_delta", "delta": {"stop_reason": why}, "usage": {"output_tokens": 2}},
        st.sampled_from(["end_turn", "tool_use", "refusal"]) | st.none() | st.integers(0, 9),
    ),
    st.just({"type": "message_stop"}),
)


@SETTINGS
@given(st.lists(EVENT, max_size=12))
def test_any_order_of_events_is_a_stream_or_an_error(events: list[dict[str, Any]]) -> None:
    """A shuffled stream is chunks with one end, or an error; it never crashes and never ends twice."""
    try:
        out = decode(sse([{"type": "message_start", "message": {}}, *events]))
    except UpstreamError:
        return
    assert sum(bool(chunk.choices and chunk.choices[0].finish_reason) for chunk in chunks(out)) == 1
