"""Streams of the Responses API as chat completion chunks: however they are split, and however they end."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_chat import usage_of
from llmproxy.errors import Failure, UpstreamBroken, UpstreamCut, UpstreamRefused
from llmproxy.providers.responses import ResponsesBridge
from llmproxy.sse import SSEDecoder, event_data
from tests.responses_api import (
    CREATED,
    ISSUER,
    MODEL,
    SETTINGS,
    call,
    collected,
    custom_call,
    decode,
    events_of,
    message,
    reasoning,
    response,
    sse,
    text,
    whole_bytes,
)
from tests.test_responses_bridge_answer import FULL, REFUSAL
from tests.vendor_streams import heard, mutated, outcome

CUT_SHORT: dict[str, Any] = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
ANSWERS = [
    FULL,
    response(message(text("Hello"))),
    response(),
    response(message(REFUSAL)),
    response(call("now", "")),
    response(custom_call("sql", "SELECT 1")),
    response(reasoning("Hm.", "So."), reasoning("And.", number=2), message(text("Yes"))),
    response(reasoning(encrypted=None, content=[{"type": "reasoning_text", "text": "Raw."}]), message(text("Yes"))),
    response(message(text("Hel")), **CUT_SHORT),
    response(call("weather", '{"ci'), **CUT_SHORT),
    response(status="incomplete", incomplete_details={"reason": "content_filter"}),
    response(message(text("Hi")), usage=None),
]
STREAM = sse(events_of(FULL))


def chunks(events: bytes) -> list[dict[str, Any]]:
    """The chunks before the end mark, as JSON."""
    datas = [event_data(raw) or b"" for raw in SSEDecoder(1 << 24).feed(events)]
    assert datas[-1] == b"[DONE]"
    return [orjson.loads(data) for data in datas[:-1]]


@pytest.mark.parametrize("deltas", [True, False])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_stream_amounts_to_the_whole_answer(answer: dict[str, Any], deltas: bool) -> None:  # noqa: FBT001 - a parameter
    """Streamed or not, the client gets the same answer, also from a server that sends no deltas."""
    assert collected(decode(sse(events_of(answer, deltas=deltas)))) == orjson.loads(whole_bytes(answer))


@SETTINGS
@given(st.lists(st.integers(0, len(STREAM)), max_size=8), st.booleans())
def test_pieces_do_not_matter(places: list[int], with_cr: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    """Trap 18: wherever the stream is cut, inside characters and line ends too, the chunks are the same."""
    data = STREAM.replace(b"\n", b"\r\n") if with_cr else STREAM
    assert decode(data, places) == decode(STREAM)


def test_a_stream_of_single_bytes() -> None:
    """Trap 18: one byte at a time gives what the stream gives at once."""
    assert decode(STREAM, range(len(STREAM))) == decode(STREAM)


def test_the_grammar_of_a_stream() -> None:
    """The role comes first, one finish reason, then usage with no choices, then the end; the head never changes."""
    events = decode(STREAM)
    read = chunks(events)
    assert {(chunk["id"], chunk["model"], chunk["created"]) for chunk in read} == {("chatcmpl-resp_1", MODEL, CREATED)}
    answer = heard(events)
    assert (answer.roles, answer.finish_reasons, answer.is_done) == (["assistant"], ["tool_calls"], True)
    assert [bool(chunk.get("usage")) for chunk in read] == [False] * (len(read) - 1) + [True]
    assert read[-1]["choices"] == []
    assert read[-2]["service_tier"] == "priority"


def test_text_comes_as_it_is_written() -> None:
    """Each delta is a chunk of its own at once: nothing waits for the end of its item."""
    events = events_of(response(message(text("Hello"))), piece=1)
    decoder = ResponsesBridge(ISSUER, "auto").stream_decoder(MODEL, 1)
    given = [(event["type"], b"".join(decoder.feed(sse([event])))) for event in events]
    said = [heard(chunk).text for kind, chunk in given if kind == "response.output_text.delta"]
    assert said == ["H", "e", "l", "l", "o"]


def test_tools_are_counted_on_their_own() -> None:
    """Trap 1: neither output indices nor reasoning and searches before a call move its index; ids are call ids."""
    calls = heard(decode(STREAM)).calls
    assert {index: made["id"] for index, made in calls.items()} == {0: "call_1", 1: "call_2", 2: "call_3"}
    assert [calls[0]["arguments"], calls[1]["arguments"]] == ['{"city": "Köln", "n": 1.0}', "{}"]
    assert calls[2]["custom"] == {"name": "sql", "input": "SELECT 'ü'"}


def test_parallel_calls_may_be_interleaved() -> None:
    """Pieces of two calls that come in turn go each to its own."""
    events = events_of(response(call("a", '{"x":1}'), call("b", '{"y":2}', number=2)), piece=2)
    opened = [event for event in events if event["type"] == "response.output_item.added"]
    pieces = [event for event in events if event["type"].endswith("arguments.delta")]
    first, second = ([event for event in pieces if event["output_index"] == index] for index in (0, 1))
    turns = [event for pair in zip(first, second, strict=True) for event in pair]
    rest = [event for event in events[2:] if event not in opened and event not in pieces]
    calls = heard(decode(sse([*events[:2], *opened, *turns, *rest]))).calls
    assert [made["arguments"] for made in calls.values()] == ['{"x":1}', '{"y":2}']


def test_usage_is_told_at_the_end() -> None:
    """Trap 16: the last chunk holds the same usage as a whole answer."""
    assert usage_of(chunks(decode(STREAM))[-1]) == usage_of(orjson.loads(whole_bytes(FULL)))


@pytest.mark.parametrize("extra", [{"type": "response.queued"}, {"type": "response.news", "delta": 1}, {"type": 3}, {}])
def test_events_that_say_nothing_change_nothing(extra: dict[str, Any]) -> None:
    """Trap 19: comments, end marks of others and events of a later API are passed over."""
    events = events_of(FULL)
    news = b"data: " + orjson.dumps(extra) + b"\n\n"
    noisy = b": hello\n\n" + news.join(sse([event]) for event in events) + news + b"data: [DONE]\n\n"
    assert decode(noisy) == decode(STREAM)


def test_halves_of_a_character_do_no_harm() -> None:
    """Trap 35: half a surrogate pair and NUL arrive as something that can be written."""
    events = events_of(response(message(text("ab\0c"))), 2)
    data = sse(events).replace(b'"ab"', b'"a\\ud83d"')
    assert collected(decode(data))["choices"][0]["message"]["content"].startswith("a")


# Ends that are none


@pytest.mark.parametrize("kept", range(len(events_of(FULL)) - 1))
def test_a_stream_that_stops_short_is_cut(kept: int) -> None:
    """Trap 24: without its last event a stream is no answer, however clean it ended."""
    with pytest.raises(UpstreamCut):
        decode(sse(events_of(FULL)[:kept]))


@SETTINGS
@given(st.integers(0, len(STREAM) - 3))
def test_a_stream_that_breaks_off_is_cut(length: int) -> None:
    """Trap 24: wherever the connection ends early, there is an error and no finish."""
    with pytest.raises(UpstreamCut):
        decode(STREAM[:length])


def test_the_last_blank_line_may_be_missing() -> None:
    """A last event that lacks nothing but its blank line still counts."""
    assert decode(STREAM.rstrip(b"\n")) == decode(STREAM)


def test_nothing_follows_the_end() -> None:
    """What a server sends behind its last event is not passed on."""
    assert decode(STREAM + STREAM) == decode(STREAM)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "rate_limit_exceeded", "message": "Slow down.", "param": None},
        {"type": "error", "error": {"type": "x", "code": "rate_limit_exceeded", "message": "Slow down."}},
        {"error": {"code": "rate_limit_exceeded", "message": "Slow down."}},
        {
            "type": "response.failed",
            "response": response(status="failed", error={"code": "rate_limit_exceeded", "message": "Slow down."}),
        },
    ],
)
def test_an_error_in_the_stream_is_an_error(event: dict[str, Any]) -> None:
    """Trap 22: every form of error is raised after the chunks before it, with the vendor's code and its class."""
    decoder = ResponsesBridge(ISSUER, "auto").stream_decoder(MODEL, 1)
    given: list[bytes] = []
    data = sse(events_of(response(message(text("Hello"))))[:6]) + b"data: " + orjson.dumps(event) + b"\n\n"
    with pytest.raises(UpstreamRefused) as caught:
        given.extend(decoder.feed(data))
    assert (caught.value.failure, caught.value.error_code) == (Failure.RATE_LIMIT, "rate_limit_exceeded")
    assert caught.value.message == "Slow down."


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "response.created"}],
        [{"type": "response.output_item.added", "output_index": 0, "item": call("now")}],
        [*events_of(FULL)[:2], {"type": "response.output_text.delta", "output_index": 0, "delta": "x"}],
        [*events_of(FULL)[:3], {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "x"}],
        [events_of(FULL)[0], events_of(FULL)[0]],
        [*events_of(FULL)[:3], events_of(FULL)[2]],
        [*events_of(FULL)[:-1], {"type": "response.completed", "response": {"status": "in_progress"}}],
    ],
)
def test_a_stream_that_makes_no_sense_is_broken(events: list[dict[str, Any]]) -> None:
    """Events out of their order are an error, never a guess."""
    with pytest.raises(UpstreamBroken):
        decode(sse(events))


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: []\n\n", b"data: 1\n\n", b"data: \xff\n\n"])
def test_garbage_is_broken(data: bytes) -> None:
    """What is no JSON object is an error of the provider's."""
    with pytest.raises(UpstreamBroken):
        decode(data + STREAM)


def test_the_last_event_may_hold_the_whole_answer() -> None:
    """A stream of nothing but its start and its end is an answer still."""
    events = events_of(FULL)
    assert collected(decode(sse([events[0], events[-1]]))) == orjson.loads(whole_bytes(FULL))


def test_items_left_open_are_closed_by_the_end() -> None:
    """An item whose own end is missing is completed from the last event."""
    events = [event for event in events_of(FULL) if event["type"] != "response.output_item.done"]
    answer = collected(decode(sse(events)))["choices"][0]["message"]
    assert answer["content"] == "Äh 🎉 one"
    assert [len(answer["tool_calls"]), len(answer["thinking_blocks"])] == [3, 2]


@SETTINGS
@given(mutated(STREAM))
def test_mutated_streams_end_in_an_answer_or_an_error(data: bytes) -> None:
    """Whatever a stream is made of, it comes to an end that the client can tell."""
    ends = {"complete", "UpstreamCut", "UpstreamBroken", "UpstreamRefused"}
    assert outcome(lambda: ResponsesBridge(ISSUER, "auto").stream_decoder(MODEL, 1), [data]) in ends
