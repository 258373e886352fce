"""Server-sent events as bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import UpstreamBroken
from llmproxy.sse import COMMENT, DONE, SSEDecoder, encode_event, event_data, whole_events

STREAMS = st.lists(
    st.sampled_from(
        [
            *(b"\n", b"\r\n", b"\r", b"\n\n", b"\xef\xbb\xbf"),
            *(b"data: x", b"data:", b"data", b"data:  y", b"data: [DONE]", "data: é😀".encode()),
            *(b": note", b"event: e", b"id: 1", b"retry: 1", b"nonsense"),
        ]
    ),
    max_size=16,
).map(b"".join)
CUTS = st.lists(st.integers(0, 60), max_size=8)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream, split at these places."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def decoded(parts: list[bytes]) -> list[bytes]:
    """All events of a stream that arrives in these parts."""
    decoder = SSEDecoder(1_000_000)
    return [event for part in parts for event in decoder.feed(part)] + decoder.finish()


def reference(stream: bytes) -> list[bytes]:
    """The data of each event, after the letter of the WHATWG's parser, plus a last event that lacks its blank line."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*text.split(b"\n"), b""]:
        if not line:
            events += [b"\n".join(data)] if data else []
            data = []
        elif line == b"data":
            data.append(b"")
        elif line.startswith(b"data:"):
            value = line[len(b"data:") :]
            data.append(value[1:] if value.startswith(b" ") else value)
    return events


@given(STREAMS, CUTS)
def test_decoder_does_not_mind_where_a_stream_is_split(stream: bytes, cuts: list[int]) -> None:
    """Split anywhere, inside CRLF, a character or the byte order mark, a stream has the same events as in one piece."""
    assert decoded(pieces(stream, cuts)) == decoded([stream])
    assert decoded([stream[i : i + 1] for i in range(len(stream))]) == decoded([stream])


@given(STREAMS, CUTS)
def test_decoder_agrees_with_the_reference(stream: bytes, cuts: list[int]) -> None:
    """The data of the events is what a parser written from the specification finds."""
    found = [data for event in decoded(pieces(stream, cuts)) if (data := event_data(event)) is not None]
    assert found == reference(stream)


@given(STREAMS)
def test_decoder_gives_events_that_stand_alone(stream: bytes) -> None:
    """An event begins with a line of its own and ends with the only blank line in it."""
    for event in decoded([stream]):
        assert event.index(b"\n\n") == len(event) - 2
        assert event[:1] not in b"\r\n"
        assert b"\r" not in event


def test_decoder_delivers_an_event_with_its_blank_line() -> None:
    """An event comes out as soon as it is whole, whatever its line ends, not when the next one begins."""
    for end in (b"\n", b"\r\n", b"\r"):
        assert SSEDecoder(100).feed(b"data: x" + end + end) == [b"data: x\n\n"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_decoder_refuses_an_oversized_event(size: int) -> None:
    """An event larger than allowed breaks the stream, in one piece or in many; one that just fits does not."""
    fits = b"data: " + b"x" * 94
    assert decoded_within(100, fits + b"\n\n" + fits + b"\n\n", size) == [fits + b"\n\n"] * 2
    with pytest.raises(UpstreamBroken, match="more than 100 bytes"):
        decoded_within(100, fits + b"x\n\n", size)
    with pytest.raises(UpstreamBroken, match="more than 100 bytes"):
        decoded_within(100, b"x" * 1000, size)


def decoded_within(max_event_bytes: int, stream: bytes, size: int) -> list[bytes]:
    """The events of a stream that arrives in parts of this size."""
    decoder = SSEDecoder(max_event_bytes)
    return [event for i in range(0, len(stream), size) for event in decoder.feed(stream[i : i + size])]


@given(STREAMS, CUTS)
def test_whole_events_loses_nothing(stream: bytes, cuts: list[int]) -> None:
    """All bytes come out unchanged; what comes out at once ends where an event ends, and no whole event waits."""
    carry, out = b"", b""
    for piece in pieces(stream, cuts):
        whole, carry = whole_events(carry, piece)
        out += whole
        assert decoded([whole]) == SSEDecoder(1_000_000).feed(whole)
        assert SSEDecoder(1_000_000).feed(b"x" + carry.removeprefix(b"\n")) == []
    assert out + carry == stream


@pytest.mark.parametrize(
    ("carry", "data", "whole", "rest"),
    [
        (b"", b"data: 1\n\ndata: 2\n\n", b"data: 1\n\ndata: 2\n\n", b""),
        (b"data", b": 1\n\nda", b"data: 1\n\n", b"da"),
        (b"data: 1\n", b"\n", b"data: 1\n\n", b""),
        (b"", b"data: 1\n", b"", b"data: 1\n"),
        (b"", b"data: 1\r\n\r\ndata", b"data: 1\r\n\r\n", b"data"),
        (b"data: 1\r\n\r", b"\ndata", b"data: 1\r\n\r\n", b"data"),
        (b"data: 1\r", b"\n", b"", b"data: 1\r\n"),
        (b"", b"data: 1\r\rdata: 2\r", b"data: 1\r\r", b"data: 2\r"),
        (b"", b"", b"", b""),
    ],
)
def test_whole_events_cuts_after_the_last_blank_line(carry: bytes, data: bytes, whole: bytes, rest: bytes) -> None:
    """What is whole ends with a blank line, in any spelling of line ends; CRLF is one line end and never cut."""
    assert whole_events(carry, data) == (whole, rest)


@given(st.binary(max_size=20).filter(lambda data: b"\r" not in data), st.sampled_from([None, "error"]))
def test_encoded_data_comes_back(data: bytes, event: str | None) -> None:
    """Whatever is encoded as an event is one event, with that data."""
    raw = encode_event(data, event)
    assert decoded([raw]) == [raw]
    assert event_data(raw) == data


def test_encode_event_writes_the_format() -> None:
    """Events are written as every client reads them: a name if there is one, a line of data each, a blank line."""
    assert encode_event(b"{}") == b"data: {}\n\n"
    assert encode_event(b"a\r\nb\rc", "error") == b"event: error\ndata: a\ndata: b\ndata: c\n\n"
    assert event_data(DONE) == b"[DONE]"
    assert event_data(COMMENT) is None
