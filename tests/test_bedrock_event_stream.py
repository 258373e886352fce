"""Amazon's event stream: frames out of pieces, as botocore reads them, and nothing out of damaged ones."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any, cast
from zlib import crc32

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import UpstreamBroken, UpstreamCut
from llmproxy.providers.bedrock.event_stream import EventStreamDecoder, Frame
from tests.bedrock import frame

NAMES = st.text(min_size=1, max_size=30)
# Every type of value there is, as its bytes behind the type.
VALUES = st.one_of(
    st.sampled_from([b"\x00", b"\x01"]),
    st.binary(min_size=1, max_size=1).map(lambda value: b"\x02" + value),
    st.binary(min_size=2, max_size=2).map(lambda value: b"\x03" + value),
    st.binary(min_size=4, max_size=4).map(lambda value: b"\x04" + value),
    st.binary(min_size=8, max_size=8).map(lambda value: b"\x05" + value),
    st.binary(max_size=50).map(lambda value: b"\x06" + struct.pack("!H", len(value)) + value),
    st.text(max_size=50).map(lambda text: b"\x07" + struct.pack("!H", len(text.encode())) + text.encode()),
    st.binary(min_size=8, max_size=8).map(lambda value: b"\x08" + value),
    st.binary(min_size=16, max_size=16).map(lambda value: b"\x09" + value),
)


def message(headers: bytes, payload: bytes) -> bytes:
    """A frame with these headers."""
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack("!I", crc32(prelude)) + headers + payload
    return body + struct.pack("!I", crc32(body))


def encoded(headers: dict[str, bytes]) -> bytes:
    """Headers as a block."""
    return b"".join(bytes([len(name.encode())]) + name.encode() + value for name, value in headers.items())


MESSAGES = st.builds(
    lambda headers, payload: message(encoded(headers), payload), st.dictionaries(NAMES, VALUES), st.binary()
)


def decoded(*pieces: bytes) -> list[Frame]:
    """The frames in a whole stream."""
    decoder = EventStreamDecoder()
    frames = [each for piece in pieces for each in decoder.feed(piece)]
    decoder.finish()
    return frames


def by_botocore(stream: bytes) -> list[Frame]:
    """The same as botocore reads it."""
    buffer = EventStreamBuffer()
    buffer.add_data(stream)
    # The stubs take the headers for their length.
    found = [(cast("dict[str, Any]", each.headers), each.payload) for each in buffer]
    return [
        Frame({name: value for name, value in headers.items() if type(value) is str}, load) for headers, load in found
    ]


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(min_value=0), max_size=20))
def test_frames_are_read_as_botocore_reads_them_however_they_were_split(messages: list[bytes], cuts: list[int]) -> None:
    """Any frames, split anywhere, are what botocore makes of them in one piece."""
    stream = b"".join(messages)
    places = sorted({cut % (len(stream) + 1) for cut in cuts})
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    assert decoded(*pieces) == by_botocore(stream)


def test_frames_come_out_byte_by_byte() -> None:
    """One byte a read gives the same frames, each with its last byte."""
    stream = frame(b"{}", event_type="a") + frame(b"", event_type="b")
    decoder = EventStreamDecoder()
    found = [list(decoder.feed(stream[at : at + 1])) for at in range(len(stream))]
    assert [len(each) for each in found if each] == [1, 1]
    assert found[-1] == [Frame({":event-type": "b"}, b"")]


@given(st.data())
def test_a_flipped_bit_is_never_taken_for_a_frame(data: st.DataObject) -> None:
    """Whatever bit is wrong, one of the checksums tells, or bytes are missing at the end."""
    first, second = frame(b'{"a":1}', event_type="a"), frame(b'{"b":2}', event_type="b")
    bit = data.draw(st.integers(0, len(second) * 8 - 1))
    damaged = bytearray(second)
    damaged[bit // 8] ^= 1 << bit % 8
    assert next(EventStreamDecoder().feed(first + damaged)) == Frame({":event-type": "a"}, b'{"a":1}')
    with pytest.raises((UpstreamBroken, UpstreamCut)):
        decoded(first + damaged)


@pytest.mark.parametrize("place", ["prelude", "message"])
def test_each_checksum_is_verified(place: str) -> None:
    """The length is not trusted before its own checksum, and nothing of a frame before the other."""
    good = frame(b"{}", event_type="a")
    bad = good[:11] + bytes([good[11] ^ 1]) + good[12:] if place == "prelude" else good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(UpstreamBroken, match="checksum"):
        decoded(bad)


def test_an_end_inside_a_frame_is_a_cut() -> None:
    """A stream that ends at any place but between two frames was cut."""
    good = frame(b"{}", event_type="a")
    for at in range(1, len(good)):
        with pytest.raises(UpstreamCut):
            decoded(good[:at])


@pytest.mark.parametrize(
    ("size_bytes", "headers_bytes"), [(15, 0), (16, 1), (2**32 - 1, 0), (200_000, 131_073), (25_165_841, 0)]
)
def test_impossible_sizes_are_refused_before_anything_is_waited_for(size_bytes: int, headers_bytes: int) -> None:
    """A frame smaller than its parts, or larger than the format allows, is broken at its twelfth byte."""
    prelude = struct.pack("!II", size_bytes, headers_bytes)
    with pytest.raises(UpstreamBroken, match="size"):
        decoded(prelude + struct.pack("!I", crc32(prelude)))


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_headers_of_any_bytes_never_crash(headers: bytes, payload: bytes) -> None:
    """A frame whose checksums are right and whose headers are nonsense is broken, or read."""
    with suppress(UpstreamBroken):
        assert decoded(message(headers, payload))[0].payload == payload
