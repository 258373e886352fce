"""Amazon's event stream: whole frames out of pieces, both checksums verified, without I/O.

A frame is its total length, its headers' length, a checksum of those two, the headers, the payload, and a checksum
of all before; see "Event stream encoding" in the AWS SDK documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct, error, unpack_from
from typing import Final
from zlib import crc32

from llmproxy.errors import UpstreamBroken, UpstreamCut

_PRELUDE: Final = Struct("!III")
_CHECKSUM: Final = Struct("!I")
_OVERHEAD_BYTES: Final = _PRELUDE.size + _CHECKSUM.size
_MAX_HEADERS_BYTES: Final = 128 * 1024
_MAX_PAYLOAD_BYTES: Final = 24 * 1024 * 1024
# Bytes that follow a header's type: true, false, byte, short, int, long, then (-1: a length first) bytes and text,
# timestamp, UUID.
_VALUE_BYTES: Final = (0, 0, 1, 2, 4, 8, -1, -1, 8, 16)
_TEXT: Final = 7


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `headers` are those that hold text; what else there may be, nobody asks for."""

    headers: Mapping[str, str]
    payload: bytes


class EventStreamDecoder:
    """Cuts a stream into frames, however it was split on the way."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Raises UpstreamBroken, after the frames before, when one is damaged."""
        self._buffer += data
        while len(self._buffer) >= _PRELUDE.size:
            size_bytes, headers_bytes = self._lengths()
            if len(self._buffer) < size_bytes:
                return
            message = bytes(self._buffer[:size_bytes])
            del self._buffer[:size_bytes]
            yield _frame(message, headers_bytes)

    def finish(self) -> None:
        """The stream has ended. Raises UpstreamCut when it did so inside a frame."""
        if self._buffer:
            raise UpstreamCut("The provider's stream ended in the middle of an event.")

    def _lengths(self) -> tuple[int, int]:
        size_bytes, headers_bytes, checksum = _PRELUDE.unpack_from(self._buffer)
        if crc32(self._buffer[: _PRELUDE.size - _CHECKSUM.size]) != checksum:
            raise UpstreamBroken("The provider's stream is damaged: the checksum of an event's length is wrong.")
        payload_bytes = size_bytes - headers_bytes - _OVERHEAD_BYTES
        if headers_bytes > _MAX_HEADERS_BYTES or not 0 <= payload_bytes <= _MAX_PAYLOAD_BYTES:
            raise UpstreamBroken("The provider sent an event of an impossible size.")
        return size_bytes, headers_bytes


def _frame(message: bytes, headers_bytes: int) -> Frame:
    (checksum,) = _CHECKSUM.unpack_from(message, len(message) - _CHECKSUM.size)
    if crc32(message[: -_CHECKSUM.size]) != checksum:
        raise UpstreamBroken("The provider's stream is damaged: the checksum of an event is wrong.")
    headers_end = _PRELUDE.size + headers_bytes
    try:
        headers = dict(_text_headers(message[_PRELUDE.size : headers_end]))
    except (error, IndexError, UnicodeDecodeError) as cause:
        raise UpstreamBroken("The provider sent an event whose headers cannot be read.") from cause
    return Frame(headers, message[headers_end : -_CHECKSUM.size])


def _text_headers(block: bytes) -> Iterator[tuple[str, str]]:
    """Raises struct.error, IndexError or UnicodeDecodeError when the block is not well-formed."""
    position = 0
    while position < len(block):
        name_end = position + 1 + block[position]
        name, kind = block[position + 1 : name_end], block[name_end]
        start, size_bytes = name_end + 1, _VALUE_BYTES[kind]
        if size_bytes < 0:
            (size_bytes,) = unpack_from("!H", block, start)
            start += 2
        position = start + size_bytes
        if position > len(block):
            raise IndexError("a value reaches past the end")
        if kind == _TEXT:
            yield name.decode(), block[start:position].decode()
