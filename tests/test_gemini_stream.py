"""Google's streams as chat completion chunks: made with Google's types, read with OpenAI's."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from llmproxy.dialects.openai_chat import usage_of
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import Failure, UpstreamBroken, UpstreamCut, UpstreamError, UpstreamRefused
from llmproxy.usage import Usage
from tests.gemini import candidate, decode, documents, response, sse

CALL = {"function_call": {"name": "weather", "args": {"city": "Rome"}}}
USAGE = {"prompt_token_count": 10, "candidates_token_count": 4, "thoughts_token_count": 6, "total_token_count": 20}


def piece(*parts: dict[str, Any], finish: str | None = None, **members: Any) -> dict[str, Any]:
    """One event."""
    return response(candidates=[candidate(*parts, finish=finish)], response_id="r1", **members)


STREAM = sse(
    piece({"text": "Let me see…", "thought": True}, usage_metadata={"prompt_token_count": 10}),
    piece({"text": "Grüße 🎉"}),
    piece({"text": "!"}, {**CALL, "thought_signature": b"signed"}, CALL),
    piece({"function_call": {"name": "now"}}, usage_metadata=USAGE),
    piece({"text": "", "thought_signature": b"end"}, finish="STOP", usage_metadata={"candidates_token_count": 4}),
)


def chunks(data: bytes, customs: frozenset[str] = frozenset()) -> list[ChatCompletionChunk]:
    """The chunks, as OpenAI's own type reads them."""
    return [ChatCompletionChunk.model_validate(document) for document in documents(decode(data, customs))]


def deltas(data: bytes) -> list[Any]:
    """The deltas of the first choice, in order."""
    return [choice.delta for chunk in chunks(data) for choice in chunk.choices]


def finish_reasons(data: bytes) -> list[str]:
    """The finish reasons, in order."""
    return [c.finish_reason for chunk in chunks(data) for c in chunk.choices if c.finish_reason]


def with_fixed_ids(events: bytes) -> list[dict[str, Any]]:
    """Chunks in which ids made by chance are all the same."""
    made = documents(events)
    for chunk in made:
        for choice in chunk["choices"]:
            for call in choice["delta"].get("tool_calls", []):
                call.pop("id", None)
    return made


def test_text_and_thoughts_arrive_as_they_come() -> None:
    """Text parts are increments of content, thoughts of reasoning_content; the first delta has the role."""
    said = deltas(STREAM)
    assert said[0].role == "assistant"
    assert "".join(delta.content or "" for delta in said) == "Grüße 🎉!"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in said) == "Let me see…"


def test_trap_1_calls_are_counted_from_zero() -> None:
    """Whatever stands before and between them, in one event or several."""
    calls = [call for delta in deltas(STREAM) for call in delta.tool_calls or []]
    starts = [call for call in calls if call.id]
    assert [(call.index, call.function.name) for call in starts] == [(0, "weather"), (1, "weather"), (2, "now")]
    assert len({call.id for call in starts}) == 3
    arguments = {index: "".join(c.function.arguments for c in calls if c.index == index) for index in range(3)}
    assert arguments == {0: '{"city":"Rome"}', 1: '{"city":"Rome"}', 2: "{}"}


def test_trap_4_a_call_in_an_earlier_event_decides_the_finish_reason() -> None:
    """The event that says STOP need not be the one that called."""
    assert finish_reasons(STREAM) == ["tool_calls"]


def test_trap_5_signatures_are_given_to_the_client_to_keep() -> None:
    """Those of calls with the call, those of text in a delta of their own."""
    said = deltas(STREAM)
    starts = [call for delta in said for call in delta.tool_calls or [] if call.id]
    assert starts[0].extra_content == {"google": {"thought_signature": "c2lnbmVk", "issuer": "gemini"}}
    assert not hasattr(starts[1], "extra_content")
    kept = [delta.extra_content for delta in said if hasattr(delta, "extra_content")]
    assert kept == [{"google": {"thought_signature": "ZW5k", "issuer": "gemini"}}]


def test_trap_16_usage_comes_once_and_last() -> None:
    """Counts are cumulative and may vanish from later events; what is told is the last of each."""
    *before, last = documents(decode(STREAM))
    assert last["choices"] == []
    assert usage_of(last) == Usage(uncached_input_tokens=10, text_output_tokens=4, reasoning_output_tokens=6)
    assert not any("usage" in chunk for chunk in before)
    assert before[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_every_chunk_has_the_same_identity() -> None:
    """Id, model and time are those of the first event throughout."""
    made = documents(decode(sse(piece({"text": "a"}, model_version="v1"), piece({"text": "b"}, finish="STOP"))))
    assert {(chunk["id"], chunk["model"], chunk["created"]) for chunk in made} == {("chatcmpl-r1", "v1", 1_700_000_000)}


def test_a_finish_reason_in_every_event_ends_nothing() -> None:
    """Older models say STOP in each; the stream ends when it is over, with one finish reason."""
    data = sse(*(piece({"text": word}, finish="STOP") for word in "abc"), piece(finish="MAX_TOKENS"))
    assert "".join(delta.content or "" for delta in deltas(data)) == "abc"
    assert finish_reasons(data) == ["length"]


def test_trap_28_candidates_are_choices_of_their_own() -> None:
    """Each has its role, its content and its finish reason."""
    first = response(candidates=[candidate({"text": "a"}, finish=None), candidate({"text": "b"}, finish=None, index=1)])
    second = response(candidates=[candidate(index=1), candidate({"text": "A"}, finish="MAX_TOKENS", index=0)])
    made = [choice for chunk in chunks(sse(first, second)) for choice in chunk.choices]
    by_index = {index: [choice for choice in made if choice.index == index] for index in (0, 1)}
    assert {n: "".join(c.delta.content or "" for c in of) for n, of in by_index.items()} == {0: "aA", 1: "b"}
    assert {n: of[0].delta.role for n, of in by_index.items()} == {0: "assistant", 1: "assistant"}
    assert {n: [c.finish_reason for c in of if c.finish_reason] for n, of in by_index.items()} == {
        0: ["length"],
        1: ["stop"],
    }


def test_a_blocked_prompt_is_a_refusal() -> None:
    """A stream without candidates and with a block reason is a whole answer."""
    data = sse(response(prompt_feedback={"block_reason": "PROHIBITED_CONTENT"}))
    assert deltas(data)[0].refusal == "The provider blocked the prompt: PROHIBITED_CONTENT."
    assert finish_reasons(data) == ["content_filter"]


def test_a_custom_tools_call_is_unwrapped() -> None:
    """A free-form tool's one text comes back as its input."""
    data = sse(piece({"function_call": {"name": "shell", "args": {"input": "ls"}}}, finish="STOP"))
    calls = [
        call
        for chunk in documents(decode(data, frozenset({"shell"})))
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    assert [(call["type"], call["custom"]) for call in calls] == [("custom", {"name": "shell", "input": "ls"})]


def test_citations_images_and_logprobs_have_chunks() -> None:
    """Offsets count bytes of all text so far, and become characters of it."""
    grounded: dict[str, Any] = {
        "grounding_metadata": {
            "grounding_chunks": [{"web": {"uri": "https://a.example", "title": "A"}}],
            "grounding_supports": [{"segment": {"start_index": 2, "end_index": 5}, "grounding_chunk_indices": [0]}],
        },
        "logprobs_result": {"chosen_candidates": [{"token": "abc", "log_probability": -1}]},
    }
    image = {"inline_data": {"mime_type": "image/png", "data": b"png"}}
    data = sse(piece({"text": "é"}), response(candidates=[candidate({"text": "abc"}, image, **grounded)]))
    said = deltas(data)
    [cited] = [delta.annotations for delta in said if hasattr(delta, "annotations")]
    assert cited[0]["url_citation"] == {"start_index": 1, "end_index": 4, "title": "A", "url": "https://a.example"}
    assert [delta.images for delta in said if hasattr(delta, "images")] == [
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}]
    ]
    assert [c.logprobs.content[0].token for k in chunks(data) for c in k.choices if c.logprobs] == ["abc"]  # type: ignore[index]


@given(st.integers(1, len(STREAM)))
def test_trap_18_a_stream_split_anywhere_reads_the_same(step: int) -> None:
    """Inside a character, inside a line end, inside JSON."""
    assert with_fixed_ids(decode(STREAM, step=step)) == with_fixed_ids(decode(STREAM))


def test_trap_19_comments_blank_lines_and_other_events_are_ignored() -> None:
    """What is no data says nothing."""
    noise = b"\xef\xbb\xbf: keep-alive\n\n\n\nevent: ping\nid: 3\n\ndata:\n\n"
    assert with_fixed_ids(decode(noise + STREAM)) == with_fixed_ids(decode(STREAM))


def test_a_last_event_without_its_blank_line_counts() -> None:
    """The end of the stream ends the event too, when it is whole."""
    assert with_fixed_ids(decode(STREAM.rstrip())) == with_fixed_ids(decode(STREAM))


@pytest.mark.parametrize("length", [0, 1, len(STREAM) // 3, len(STREAM) // 2, len(STREAM) - 10])
def test_trap_24_a_stream_that_ends_early_is_cut(length: int) -> None:
    """No finish reason, no finish: the client gets an error and not a stop."""
    with pytest.raises(UpstreamCut):
        decode(STREAM[:length])


def test_trap_24_one_candidate_that_never_finished_is_a_cut() -> None:
    """Every choice must have come to its end."""
    both = response(candidates=[candidate({"text": "a"}), candidate({"text": "b"}, finish=None, index=1)])
    with pytest.raises(UpstreamCut):
        decode(sse(both))


def test_a_body_that_is_no_stream_is_a_cut() -> None:
    """Without `alt=sse` Google sends a JSON array, which must not pass for an answer."""
    with pytest.raises(UpstreamCut):
        decode(orjson.dumps([piece({"text": "a"}, finish="STOP")]))


ERROR = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize("event", [ERROR, [ERROR]])
def test_trap_22_an_error_event_is_an_error(event: Any) -> None:
    """Before content as after it, and in either of the shapes that Google gives it."""
    for before in (b"", sse(piece({"text": "a"}))):
        with pytest.raises(UpstreamRefused, match="overloaded") as caught:
            decode(before + sse(event))
        assert caught.value.failure is Failure.OVERLOADED


def test_unusable_output_is_an_error() -> None:
    """A malformed call ends the stream with an error, with or without output before it."""
    for before in (b"", sse(piece({"text": "a"}))):
        with pytest.raises(UpstreamBroken, match="MALFORMED_FUNCTION_CALL"):
            decode(before + sse(piece(finish="MALFORMED_FUNCTION_CALL")))


@pytest.mark.parametrize("data", [b"{", b"3", b"null", b"<html>", b"[]", b"[{},{}]"])
def test_garbage_is_broken(data: bytes) -> None:
    """An event that is no JSON object is no part of an answer."""
    with pytest.raises(UpstreamBroken):
        decode(b"data: " + data + b"\n\n" + STREAM)


def test_arguments_nested_too_deep_are_broken() -> None:
    """What cannot be written as text again is no call."""
    deep = b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"x":%b}}}]}}]}'
    with pytest.raises(UpstreamBroken):
        decode(b"data: " + deep % (b"[" * 500 + b"]" * 500) + b"\n\n")


def test_an_event_without_end_is_broken() -> None:
    """Memory is bounded."""
    with pytest.raises(UpstreamBroken):
        decode(b"data: " + b"x" * 17_000_000, step=1_048_576)


@pytest.mark.parametrize("index", [-1, 8, "1", 1.5])
def test_candidates_numbered_beyond_reason_are_broken(index: Any) -> None:
    """Nobody can make the gateway keep a state for each of a billion candidates."""
    with pytest.raises(UpstreamBroken):
        decode(sse({"candidates": [{"index": index, "content": {"parts": [{"text": "a"}]}}]}))


# Whoever decodes JSON refuses the others.
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), FINITE, st.text(max_size=3),
    st.sampled_from([[], {}, [None], [[]], {"a": None}, "STOP"]),
)  # fmt: skip


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with each key in it."""
    if not isinstance(node, dict | list):
        return []
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


EVENTS = [orjson.loads(event.removeprefix(b"data: ")) for event in STREAM.split(b"\r\n\r\n") if event]


@given(st.data())
def test_mutated_streams_are_translated_or_refused(data: st.DataObject) -> None:
    """Whatever stands in whatever place, there are chunks that a client can read, or an UpstreamError."""
    events = copy.deepcopy(EVENTS)
    for _ in range(data.draw(st.integers(1, 3))):
        node, key = data.draw(st.sampled_from(places(events)))
        node[key] = copy.deepcopy(data.draw(JUNK))
    raw = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    try:
        chunks(raw)
    except UpstreamError as error:
        assert error.message  # noqa: PT017 - either way is fine


@given(st.integers(0, len(STREAM) - 1), st.binary(min_size=1, max_size=3))
def test_mutated_bytes_never_make_a_stop_of_a_cut(position: int, junk: bytes) -> None:
    """Broken bytes in a stream that has no finish reason never give one."""
    unfinished = sse(piece({"text": "Grüße"}), piece(CALL))
    position %= len(unfinished)
    with pytest.raises(UpstreamError):
        decode(unfinished[:position] + junk + unfinished[position + len(junk) :])


def test_core_sees_content_usage_and_the_end() -> None:
    """What the gateway itself reads along with finds its way through."""
    facts = StreamFacts(hide_usage=True)
    facts.feed(decode(STREAM))
    assert (facts.is_complete, facts.has_content, facts.finish_reasons) == (True, True, ("tool_calls",))
    assert facts.usage is not None
    assert facts.usage["usage"]["completion_tokens"] == 10
