"""What is learned of a stream in passing."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import Failure, UpstreamBroken
from llmproxy.request import Document
from llmproxy.sse import COMMENT, DONE

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def event(document: object) -> bytes:
    """A document as an event."""
    return b"data: %b\n\n" % orjson.dumps(document)


def spaced(raw: bytes) -> bytes:
    """The same event as a vendor with another JSON encoder writes it."""
    return raw.replace(b'":', b'": ')


def chunk(delta: Document | None = None, finish: str | None = None, index: int = 0, **more: object) -> bytes:
    """An event with one choice, written as OpenAI does."""
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return event({"id": "c", "model": "m", "choices": [choice], "usage": None, **more})


ROLE = chunk({"role": "assistant", "content": ""})
HI = chunk({"content": "hi"})
STOP = chunk(finish="stop")
USAGE_EVENT = event({"id": "c", "choices": [], "usage": USAGE})


def fed(*events: bytes, hide_usage: bool = False, choices: int = 1) -> tuple[StreamFacts, bytes]:
    """The facts after these batches, and what was relayed of them; an error is the last thing that is read."""
    facts = StreamFacts(hide_usage=hide_usage, choices=choices)
    relayed = [facts.feed(each) for each in events if facts.error is None]
    return facts, b"".join(relayed)


@pytest.mark.parametrize("write", [bytes, spaced])
def test_an_ordinary_stream_is_relayed_and_known(write: type[bytes]) -> None:
    """All events pass as they came, and usage, finish reason and end are known; whatever the spacing."""
    events = [write(each) for each in (ROLE, HI, STOP, USAGE_EVENT)] + [DONE]
    facts, relayed = fed(*events)
    assert relayed == b"".join(events)
    assert facts.usage == {"usage": USAGE}
    assert facts.finish_reasons == ("stop",)
    assert (facts.event_count, facts.saw_done, facts.is_complete, facts.error) == (4, True, True, None)


DELTAS = st.one_of(
    st.text(max_size=5).map(lambda text: chunk({"content": text})),
    st.sampled_from(
        [
            ROLE,
            STOP,
            USAGE_EVENT,
            COMMENT,
            spaced(USAGE_EVENT),
            spaced(STOP),
            chunk({"content": '"usage":{"x":1} "error" [DONE] "finish_reason":"stop"'}),
            chunk({"content": "x"}, usage=USAGE),
            chunk(finish="length", index=1),
            chunk({"content": "x"}, error=None),
            event({"choices": []}),
            event({"choices": None}),
            b"event: message\n" + HI,
            b"data: not json\n\n",
            DONE,
        ]
    ),
)


@given(events=st.lists(DELTAS, max_size=12), cuts=st.lists(st.integers(0, 12)), hide_usage=st.booleans())
def test_facts_do_not_depend_on_batches(events: list[bytes], cuts: list[int], *, hide_usage: bool) -> None:
    """However many events come at once, and whatever the line ends, the same is relayed and learned."""
    edges = [0, *sorted(cuts), len(events)]
    batches = [b"".join(events[start:end]) for start, end in pairwise(edges)]
    one_by_one, relayed = fed(*events, hide_usage=hide_usage)
    in_batches, relayed_in_batches = fed(*batches, hide_usage=hide_usage)
    with_crlf, relayed_with_crlf = fed(*(each.replace(b"\n", b"\r\n") for each in batches), hide_usage=hide_usage)
    assert relayed == relayed_in_batches == relayed_with_crlf.replace(b"\r\n", b"\n")
    for facts in (in_batches, with_crlf):
        assert facts.usage == one_by_one.usage
        assert facts.finish_reasons == one_by_one.finish_reasons
        assert facts.event_count == one_by_one.event_count
        assert (facts.saw_done, facts.has_content) == (one_by_one.saw_done, one_by_one.has_content)
        assert (facts.error is None) == (one_by_one.error is None)


def test_what_is_no_event_is_no_answer() -> None:
    """Before the first content it is the attempt's failure; after it, the client has to judge."""
    broken, relayed = fed(ROLE, b"data: not json\n\n")
    assert isinstance(broken.error, UpstreamBroken)
    assert relayed == ROLE
    begun, relayed = fed(ROLE, HI, b"data: not json\n\n", DONE)
    assert (begun.error, relayed) == (None, ROLE + HI + b"data: not json\n\n" + DONE)


@given(st.lists(DELTAS, max_size=12))
def test_nothing_is_missed_without_decoding(events: list[bytes]) -> None:
    """What is learned after the first content is what decoding every event would have shown."""
    facts, _ = fed(HI, *events)
    documents = [orjson.loads(each[6:]) for each in events if each.startswith(b"data: {")]
    choices = [choice for document in documents for choice in document.get("choices") or ()]
    finished = {choice["index"]: choice["finish_reason"] for choice in choices if choice["finish_reason"]}
    assert facts.finish_reasons == tuple(reason for _, reason in sorted(finished.items()))
    assert (facts.usage is not None) == any(document.get("usage") for document in documents)
    assert facts.saw_done == (DONE in events)


def test_the_extra_usage_event_is_hidden() -> None:
    """A client that did not ask for usage does not get the event that only carries it; the facts do."""
    facts, relayed = fed(HI, STOP + USAGE_EVENT + DONE, hide_usage=True)
    assert relayed == HI + STOP + DONE
    assert facts.usage == {"usage": USAGE}


def test_usage_beside_choices_is_not_hidden() -> None:
    """Usage that a vendor puts on an event with content stays there: the content has to arrive."""
    last = chunk({"content": "!"}, "stop", usage=USAGE)
    facts, relayed = fed(HI, last, hide_usage=True)
    assert relayed == HI + last
    assert facts.usage == {"usage": USAGE}


def test_usage_is_merged_and_the_last_word_wins() -> None:
    """Running totals replace each other, and what a later event leaves out is kept."""
    later = event({"choices": [], "usage": {"completion_tokens": 9}})
    groq = event({"choices": [], "x_groq": {"usage": {"total_tokens": 14}}})
    facts, _ = fed(HI, USAGE_EVENT, later, groq)
    assert facts.usage == {"usage": {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}}


@pytest.mark.parametrize(
    ("document", "failure"),
    [
        ({"error": {"message": "slow down", "code": 429}}, Failure.RATE_LIMIT),
        ({"error": "broken"}, Failure.BROKEN),
        ({"object": "error", "message": "m", "code": 400}, Failure.INVALID_REQUEST),
        ({"error": {"message": "m"}, "choices": [{"delta": {}, "finish_reason": "error"}]}, Failure.BROKEN),
    ],
)
@pytest.mark.parametrize("start", [b"", ROLE, HI])
def test_an_error_ends_the_stream(start: bytes, document: Document, failure: Failure) -> None:
    """An error event is an error, before and after content; neither it nor what follows is relayed."""
    facts, relayed = fed(start + event(document) + HI)
    assert relayed == start
    assert facts.error is not None
    assert facts.error.failure is failure
    assert facts.has_content == (start == HI)
    assert not facts.is_complete


@pytest.mark.parametrize("nothing", [None, "", {}, False])
def test_an_empty_error_is_none(nothing: object) -> None:
    """An `error` member that holds nothing is not an error."""
    facts, relayed = fed(HI, quiet := chunk({"content": "x"}, error=nothing))
    assert facts.error is None
    assert relayed == HI + quiet


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (ROLE, False),
        (COMMENT, False),
        (chunk(), False),
        (chunk({"content": None}), False),
        (chunk(finish=""), False),
        (event({"choices": []}), False),
        (event({"choices": [None, {"delta": None}]}), False),
        (USAGE_EVENT, False),
        (DONE, False),
        (event({"choices": [{"index": 0, "text": ""}]}), False),
        (b"data: [1]\n\n", False),
        (HI, True),
        (STOP, True),
        (chunk({"tool_calls": [{"index": 0}]}), True),
        (chunk({"reasoning_content": "hm"}), True),
        (chunk({"reasoning": "hm"}), True),
        (chunk({"refusal": "no"}), True),
        (chunk({"audio": {"id": "a"}}), True),
        (chunk({"function_call": {"name": "f"}}), True),
        (event({"choices": [{"index": 0, "text": "hi"}]}), True),
        (COMMENT + ROLE + HI, True),
    ],
)
def test_content_is_what_a_user_could_notice(raw: bytes, *, expected: bool) -> None:
    """A role, a comment or an event without choices commits to nothing; content of any kind does."""
    assert fed(raw)[0].has_content is expected


def test_a_stream_of_several_choices_is_complete_when_all_are() -> None:
    """Each choice has its own finish reason, and one that is missing leaves the stream incomplete."""
    facts, _ = fed(chunk({"content": "x"}, index=1), chunk(finish="length", index=1), choices=2)
    assert not facts.is_complete
    facts.feed(STOP)
    assert facts.is_complete
    assert facts.finish_reasons == ("stop", "length")


def test_a_stream_that_just_stops_is_incomplete() -> None:
    """Content alone is no end."""
    assert not fed(ROLE, HI)[0].is_complete
