"""Providers' events as objects, whatever pieces they come in and however they are broken."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.upstream_events import ObjectEvent, ObjectEvents, decode_object, is_whole, object_or_none
from llmproxy.errors import UpstreamBroken
from tests.vendor_streams import cut

STREAM = b': hi\r\n\r\nevent: x\ndata: {"a":\ndata: "\xc3\xa9"}\n\ndata:\n\ndata: [{"b": 1}]\n\ndata: [DONE]\n\n'
DOCUMENTS = [{"a": "é"}, {"b": 1}, None]


@given(st.lists(st.integers(min_value=0, max_value=200)))
def test_the_pieces_of_a_stream_do_not_matter(places: list[int]) -> None:
    """Trap 18: split anywhere, the events are the same; comments and empty ones are none."""
    events = ObjectEvents()
    found = [event for piece in cut(STREAM, places) for event in events.feed(piece)]
    assert [event.document for event in [*found, *events.finish()]] == DOCUMENTS


def test_an_event_keeps_its_bytes() -> None:
    """Whoever changes nothing can pass on what came."""
    [event] = ObjectEvents().feed(b'data: {"a" : 1.0}\n\n')
    assert event.raw == b'data: {"a" : 1.0}\n\n'


@pytest.mark.parametrize("data", [b"{", b"[1]", b"[]", b"null", b'"x"', b"<html>", b"[" * 100_000, b"NaN", b"\xff"])
def test_garbage_is_told_after_what_came_before_it(data: bytes) -> None:
    """An event that is no object ends the stream, and nothing before it is lost."""
    found: list[ObjectEvent] = []
    with pytest.raises(UpstreamBroken):
        found += ObjectEvents().feed(b'data: {"a":1}\n\ndata: ' + data + b"\n\n")
    assert [event.document for event in found] == [{"a": 1}]
    assert object_or_none(data) is None


@pytest.mark.parametrize(
    ("rest", "found"), [(b'data: {"a":1}', [{"a": 1}]), (b'data: {"a":', []), (b"data: [DONE]", [None]), (b": x", [])]
)
def test_a_last_event_without_its_blank_line_counts_when_it_is_whole(rest: bytes, found: list[object]) -> None:
    """Half an event is as good as none: that the answer was cut shows by what is missing."""
    events = ObjectEvents()
    assert list(events.feed(rest)) == []
    assert [event.document for event in events.finish()] == found
    assert is_whole(rest + b"\n\n") == bool(found)


@pytest.mark.parametrize("text", [rb'{"a":"\ud83d"}', rb'{"a":"\ude00x"}'])
def test_half_a_character_does_not_break_an_event(text: bytes) -> None:
    """Trap 35: a surrogate whose other half is in another event becomes a mark, and can be encoded."""
    assert orjson.dumps(decode_object(text)).startswith(b'{"a":"?')
    assert object_or_none(text) == decode_object(text)


def test_the_error_says_what_it_was() -> None:
    """An answer is not called an event."""
    with pytest.raises(UpstreamBroken, match="The provider sent an answer that is not valid JSON"):
        decode_object(b"{", "an answer")
    with pytest.raises(UpstreamBroken, match="The provider sent an answer that is not a JSON object"):
        decode_object(b"[]", "an answer")
