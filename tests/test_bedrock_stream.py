"""Bedrock's streams as chat completion chunks; botocore judges the events that come in, the OpenAI SDK the chunks."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import Failure, UpstreamBroken, UpstreamCut, UpstreamError, UpstreamRefused
from llmproxy.providers import StreamDecoder
from llmproxy.usage import Usage
from tests.bedrock import (
    CLAUDE_4,
    CLAUDE_4_5,
    asked,
    bedrock,
    delta,
    deltas,
    ending,
    event,
    exception,
    frame,
    role,
    start,
    stop,
    streamed,
)
from tests.vendor_streams import cut, decoded, heard, mutated, outcome, without_chance

FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": {"type": "object"}}}
CALL_A = start(1, toolUse={"toolUseId": "tooluse_a", "name": "weather"})
CALL_B = start(2, toolUse={"toolUseId": "tooluse_b", "name": "now"})
TEXT = role() + delta(0, text="Hel") + delta(0, text="lö") + stop(0) + ending()
RICH = b"".join(
    [
        role(),
        delta(0, reasoningContent={"text": "Hmm"}),
        delta(0, reasoningContent={"signature": "c2ln"}),
        stop(0),
        CALL_A,
        delta(1, toolUse={"input": '{"city":'}),
        delta(1, toolUse={"input": '"Øsło"}'}),
        stop(1),
        CALL_B,
        stop(2),
        delta(3, text="Wait."),
        stop(3),
        ending("tool_use"),
    ]
)


def decoder(**members: Any) -> StreamDecoder:
    """A decoder for one answer."""
    return bedrock().stream_decoder(asked(CLAUDE_4_5, stream=True, **members))


def test_a_text_answer() -> None:
    """The role first, then the pieces as they come, one finish reason, usage on its own, and the end mark."""
    events = streamed(TEXT)
    assert deltas(events) == [{"role": "assistant", "content": None}, {"content": "Hel"}, {"content": "lö"}]
    answer = heard(events)
    assert (answer.text, answer.roles) == ("Hellö", ["assistant"])
    assert (answer.finish_reasons, answer.is_done) == (["stop"], True)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 5)


@given(st.lists(st.integers(min_value=0), max_size=30))
def test_frames_split_or_joined_give_the_same_chunks(places: list[int]) -> None:
    """Trap 20: frames split over reads, and several in one read, make no difference."""
    assert without_chance(streamed(*cut(RICH, places))) == without_chance(streamed(RICH))


def test_one_byte_a_read_gives_the_same_chunks() -> None:
    """Trap 18, in Amazon's own framing."""
    pieces = [RICH[at : at + 1] for at in range(len(RICH))]
    assert without_chance(streamed(*pieces)) == without_chance(streamed(RICH))


def test_calls_are_counted_from_zero_whatever_stands_between_them() -> None:
    """Trap 1: thoughts, texts and the numbers of blocks do not shift the index of a call."""
    answer = heard(streamed(RICH))
    assert answer.calls == {
        0: {"id": "tooluse_a", "type": "function", "name": "weather", "arguments": '{"city":"Øsło"}'},
        1: {"id": "tooluse_b", "type": "function", "name": "now", "arguments": "{}"},
    }
    assert (answer.text, answer.finish_reasons) == ("Wait.", ["tool_calls"])


def test_calls_may_come_interleaved() -> None:
    """Pieces go to the call of their block, in whatever order they come."""
    pieces = [
        delta(2, toolUse={"input": "{}"}),
        delta(1, toolUse={"input": '{"a"'}),
        delta(1, toolUse={"input": ":1}"}),
    ]
    events = streamed(role() + CALL_A + CALL_B + b"".join(pieces) + stop(2) + stop(1) + ending("tool_use"))
    assert [call["arguments"] for _, call in sorted(heard(events).calls.items())] == ['{"a":1}', "{}"]


@pytest.mark.parametrize("pieces", [b"", delta(1, toolUse={"input": ""})])
@pytest.mark.parametrize("end", [stop(1), b""])
def test_a_call_without_arguments_has_an_empty_object(pieces: bytes, end: bytes) -> None:
    """Trap 2: no pieces, or only empty ones, and even no end of the block, are an object of nothing."""
    events = streamed(role() + CALL_A + pieces + end + ending("tool_use"))
    assert heard(events).calls[0]["arguments"] == "{}"


def test_thoughts_come_with_what_is_needed_to_send_them_back() -> None:
    """Thoughts are reasoning_content as they come; once whole, they are thinking_blocks with their signatures."""
    pieces = [
        delta(0, reasoningContent={"text": "Hm"}),
        delta(0, reasoningContent={"text": "m"}),
        delta(0, reasoningContent={"signature": "c2ln"}),
        delta(0, reasoningContent={"signature": "bmVk"}),
        stop(0),
        delta(1, reasoningContent={"redactedContent": "aGlk"}),
        stop(1),
        delta(2, reasoningContent={"text": "unsigned"}),
        stop(2),
    ]
    events = streamed(role() + b"".join(pieces) + ending())
    assert heard(events).reasoning == "Hmmunsigned"
    assert [each["thinking_blocks"] for each in deltas(events) if "thinking_blocks" in each] == [
        [{"type": "thinking", "thinking": "Hmm", "signature": "c2lnbmVk"}],
        [{"type": "redacted_thinking", "data": "aGlk"}],
    ]


def test_a_structured_answer_through_a_tool_is_the_content() -> None:
    """Where a tool stood in for the format, its input streams as text, and nobody called anything."""
    called = start(0, toolUse={"toolUseId": "t", "name": "place"})
    pieces = delta(0, toolUse={"input": '{"city":'}) + delta(0, toolUse={"input": '"Oslo"}'}) + stop(0)
    answer = heard(streamed(role() + called + pieces + ending("tool_use"), model=CLAUDE_4, response_format=FORMAT))
    assert (answer.text, answer.calls, answer.finish_reasons) == ('{"city":"Oslo"}', {}, ["stop"])


def test_a_custom_tools_call_has_its_text() -> None:
    """The text is inside of JSON, so it comes when that is whole."""
    called = start(0, toolUse={"toolUseId": "t", "name": "run"})
    pieces = delta(0, toolUse={"input": '{"input":"ls '}) + delta(0, toolUse={"input": '-l"}'}) + stop(0)
    tools = [{"type": "custom", "custom": {"name": "run"}}]
    answer = heard(streamed(role() + called + pieces + ending("tool_use"), tools=tools))
    assert answer.calls[0]["custom"] == {"name": "run", "input": "ls -l"}
    assert answer.finish_reasons == ["tool_calls"]


def test_a_tool_that_the_provider_runs_itself_is_no_call() -> None:
    """What Bedrock does on its own is not the client's to do."""
    ran = start(0, toolUse={"toolUseId": "t", "name": "nova_grounding", "type": "server_tool_use"})
    found = start(1, toolResult={"toolUseId": "t"}) + delta(1, toolResult=[{"text": "found"}])
    pieces = delta(0, toolUse={"input": "{}"}) + stop(0) + found + stop(1) + delta(2, text="Yes.") + stop(2)
    answer = heard(streamed(role() + ran + pieces + ending()))
    assert (answer.text, answer.calls, answer.finish_reasons) == ("Yes.", {}, ["stop"])


def test_citations_of_the_web_are_annotations() -> None:
    """They stand for the text of their block, counted in characters of the whole."""
    web = {"title": "Weather", "location": {"web": {"url": "https://example.org"}}}
    pieces = delta(0, text="Ah! ") + stop(0) + delta(1, text="It rains.") + delta(1, citation=web) + stop(1)
    cited = heard(streamed(role() + pieces + ending())).annotations
    assert cited == [
        {
            "type": "url_citation",
            "url_citation": {"start_index": 4, "end_index": 13, "title": "Weather", "url": "https://example.org"},
        }
    ]


def test_an_image_comes_when_it_is_whole() -> None:
    """Its format comes first, its bytes later."""
    pieces = start(0, image={"format": "png"}) + delta(0, image={"source": {"bytes": "iVBORw=="}}) + stop(0)
    images = [each["images"] for each in deltas(streamed(role() + pieces + ending())) if "images" in each]
    assert images == [[{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}]]


def test_an_empty_start_opens_a_text() -> None:
    """Some servers say that a text begins, which Bedrock itself leaves out."""
    opened = frame(b'{"contentBlockIndex":0,"start":{}}', message_type="event", event_type="contentBlockStart")
    assert heard(streamed(role() + opened + delta(0, text="Hi") + stop(0) + ending())).text == "Hi"


def test_the_end_of_a_block_that_never_began_is_passed_over() -> None:
    """A text without a piece has an end only; an end of nothing is none."""
    nothing = frame(b'{"contentBlockIndex":[]}', message_type="event", event_type="contentBlockStop")
    assert heard(streamed(role() + stop(0) + nothing + ending())).finish_reasons == ["stop"]


def test_events_of_the_future_are_passed_over() -> None:
    """An event with a name nobody knows changes nothing, whatever is in it."""
    unknown = frame(b"not json", message_type="event", event_type="somethingNew")
    assert without_chance(streamed(role() + unknown + TEXT[len(role()) :])) == without_chance(streamed(TEXT))


# The end


def test_the_usage_that_comes_after_the_end_is_waited_for() -> None:
    """Trap 21: metadata follows messageStop; its usage is told, cached input included."""
    events = streamed(
        role()
        + delta(0, text="Hi")
        + stop(0)
        + ending(cacheReadInputTokens=600, cacheWriteInputTokens=40, cacheDetails=[{"ttl": "1h", "inputTokens": 30}])
    )
    facts = StreamFacts(hide_usage=True)
    relayed = facts.feed(events)
    assert b"usage" not in relayed
    assert facts.usage is not None
    assert bedrock().usage(facts.usage) == Usage(
        uncached_input_tokens=10,
        cache_read_input_tokens=600,
        cache_write_5m_input_tokens=10,
        cache_write_1h_input_tokens=30,
        text_output_tokens=5,
    )


def test_an_answer_without_usage_ends_all_the_same() -> None:
    """The metadata may be missing; the answer is whole with its stop reason."""
    answer = heard(streamed(role() + delta(0, text="Hi") + event("messageStop", {"stopReason": "end_turn"})))
    assert (answer.text, answer.finish_reasons, answer.usage, answer.is_done) == ("Hi", ["stop"], None, True)


def test_an_end_before_the_stop_reason_is_a_cut() -> None:
    """Trap 24: wherever a stream ends before messageStop, it is an error and never a stop."""
    end = RICH.index(event("messageStop", {"stopReason": "tool_use"}))
    for at in range(0, end, 7):
        with pytest.raises(UpstreamCut):
            streamed(RICH[:at])


@pytest.mark.parametrize("stop_reason", ["malformed_model_output", "malformed_tool_use"])
def test_a_malformed_answer_is_an_error(stop_reason: str) -> None:
    """The model failed, and what there is may be no answer at all."""
    with pytest.raises(UpstreamRefused) as raised:
        streamed(role() + delta(0, text="Hi") + ending(stop_reason))
    assert raised.value.failure is Failure.BROKEN


# Errors


@pytest.mark.parametrize(
    ("name", "status", "failure"),
    [
        ("internalServerException", 502, Failure.BROKEN),
        ("modelStreamErrorException", 502, Failure.BROKEN),
        ("validationException", 400, Failure.INVALID_REQUEST),
        ("throttlingException", 429, Failure.RATE_LIMIT),
        ("serviceUnavailableException", 503, Failure.OVERLOADED),
        ("modelTimeoutException", 504, Failure.TIMEOUT),
        ("somethingNewException", 502, Failure.BROKEN),
    ],
)
def test_an_exception_is_an_error_and_not_an_end(name: str, status: int, failure: Failure) -> None:
    """Trap 20: an exception's frame is the error it names, after whatever came before it."""
    made = decoder()
    chunks = iter(made.feed(role() + delta(0, text="Hi") + exception(name, "Sorry.")))
    assert b"Hi" in next(chunks) + next(chunks)
    with pytest.raises(UpstreamRefused) as raised:
        next(chunks)
    error = raised.value
    assert (error.http_status, error.failure, error.message) == (status, failure, "Sorry.")
    assert error.native_type == name[0].upper() + name[1:]


def test_an_exception_instead_of_an_answer_says_what_is_wrong() -> None:
    """Before the first chunk another target can still be asked, for the right reason."""
    with pytest.raises(UpstreamRefused) as raised:
        streamed(exception("validationException", "Input is too long for requested model."))
    assert raised.value.failure is Failure.CONTEXT_LENGTH


def test_an_error_frame_is_an_error() -> None:
    """Errors that are no exceptions have code and message in their headers."""
    failed = frame(b"", message_type="error", error_code="InternalFailure", error_message="Sorry.")
    with pytest.raises(UpstreamRefused, match="Sorry"):
        streamed(role() + failed)


@pytest.mark.parametrize(
    "broken",
    [
        frame(b"not json", message_type="event", event_type="messageStop"),
        frame(b"[]", message_type="event", event_type="messageStop"),
        frame(b"{}", message_type="event", event_type="messageStop"),
        frame(b'{"delta":{"text":"x"}}', message_type="event", event_type="contentBlockDelta"),
        frame(b'{"contentBlockIndex":[]}', message_type="event", event_type="contentBlockStart"),
        frame(b'{"contentBlockIndex":0,"start":{"toolUse":{}}}', message_type="event", event_type="contentBlockStart"),
        ending() + delta(0, text="more"),
        event("messageStop", {"stopReason": "end_turn"}) + event("messageStop", {"stopReason": "end_turn"}),
        b'{"message": "not a stream at all"}',
    ],
)
def test_what_makes_no_sense_is_broken(broken: bytes) -> None:
    """Events without what they are about are an UpstreamBroken."""
    with pytest.raises(UpstreamBroken):
        streamed(role() + broken)


@given(mutated(RICH))
def test_garbage_is_never_taken_for_an_answer(stream: bytes) -> None:
    """Bytes changed, lost or added end in an error, unless all that counts is still there."""
    if outcome(decoder, [stream]) == "complete":
        answer, right = heard(decoded(decoder(), [stream])), heard(streamed(RICH))
        assert (answer.text, answer.calls, answer.reasoning) == (right.text, right.calls, right.reasoning)


EVENTS = ["messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"]
MEMBERS = st.sampled_from(
    [
        *("contentBlockIndex", "start", "delta", "toolUse", "name", "input", "text", "reasoningContent", "signature"),
        *("citation", "location", "web", "image", "stopReason", "usage", "inputTokens", "cacheDetails"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "x", "end_turn"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(MEMBERS, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.dictionaries(MEMBERS, VALUES, max_size=4)), max_size=12))
def test_events_of_any_form_never_crash_nor_end_without_a_reason(events: list[tuple[str, dict[str, Any]]]) -> None:
    """Whatever well-framed events come, the outcome is chunks with one finish reason, or an UpstreamError."""
    stream = b"".join(frame(orjson.dumps(each), message_type="event", event_type=kind) for kind, each in events)
    try:
        answer = heard(streamed(stream))
    except UpstreamError:
        return
    assert len(answer.finish_reasons) == 1
    assert any(kind == "messageStop" for kind, _ in events)
