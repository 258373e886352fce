"""Server-sent events as bytes, without I/O: whole events out of pieces, data out of events, events out of data.

Line ends may be LF, CRLF or CR, mixed, and cut anywhere; see the WHATWG's "Server-sent events", parsing a stream.
"""

from __future__ import annotations

from typing import Final

from llmproxy.errors import UpstreamBroken

DONE: Final = b"data: [DONE]\n\n"
# Keeps idle connections open; every client ignores it.
COMMENT: Final = b": keep-alive\n\n"

_LF: Final = 10
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# A line end and an empty line after it. CR LF is a single line end, so it is none of these.
_BLANK_LINES: Final = (b"\n\n", b"\n\r", b"\r\r")


class SSEDecoder:
    """Cuts a stream into whole events, however it was split on the way.

    Events keep their bytes, blank line included; only CRLF and CR become LF, so that an event never depends on where
    the stream was split. Blank lines between events and a byte order mark are left out.

    Args:
        max_event_bytes: How much may be held back for one event.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._is_start = True
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now. Raises UpstreamBroken when one is too large."""
        if self._after_cr or data.find(b"\r") != -1:
            data = self._line_ends_replaced(data)
        if not self._rest and not self._is_start and self._is_one_event(data):
            return [data]
        buffer = self._rest + data if self._rest else data
        if self._is_start:
            buffer = self._without_byte_order_mark(buffer)
        *whole, rest = buffer.split(b"\n\n")
        self._rest = rest.lstrip(b"\n")
        if len(buffer) > self._max_event_bytes:
            self._check_sizes([*whole, rest.rstrip(b"\n")])
        return [event + b"\n\n" for piece in whole if (event := piece.lstrip(b"\n"))]

    def finish(self) -> list[bytes]:
        """The last event, completed, when the stream ended without its blank line."""
        rest, self._rest = self._rest.rstrip(b"\n"), b""
        return [rest + b"\n\n"] if rest else []

    def _is_one_event(self, data: bytes) -> bool:
        return 0 < data.find(b"\n\n") == len(data) - 2 <= self._max_event_bytes and data[0] != _LF

    def _line_ends_replaced(self, data: bytes) -> bytes:
        # The LF of a CRLF that was split between two pieces: its CR has already ended the line.
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return _with_lf(data)

    def _without_byte_order_mark(self, buffer: bytes) -> bytes:
        if _BYTE_ORDER_MARK.startswith(buffer):
            self._is_start = buffer != _BYTE_ORDER_MARK
            return buffer if self._is_start else b""
        self._is_start = False
        return buffer.removeprefix(_BYTE_ORDER_MARK)

    def _check_sizes(self, pieces: list[bytes]) -> None:
        if max(map(len, pieces)) > self._max_event_bytes:
            raise UpstreamBroken(f"The provider sent an event of more than {self._max_event_bytes} bytes.")


def event_data(raw: bytes) -> bytes | None:
    """An event's data, its lines joined with LF; None when the event has none, such as a comment."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and raw.find(b"\r") == -1:
        return raw[6:-2]
    fields = (line.partition(b":") for line in raw.splitlines())
    lines = [value.removeprefix(b" ") for name, _, value in fields if name == b"data"]
    return b"\n".join(lines) if lines else None


def encode_event(data: bytes, event: str | None = None) -> bytes:
    """An event with this data, and with this name if it has one."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%bdata: %b\n\n" % (name, _with_lf(data).replace(b"\n", b"\ndata: "))


def _with_lf(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def whole_events(carry: bytes, data: bytes) -> tuple[bytes, bytes]:
    """The bytes up to the end of the last whole event, and the rest, to be handed in again as `carry`.

    Nothing is added, left out or changed: all that comes out is all that went in.
    """
    buffer = carry + data if carry else data
    if buffer.find(b"\r") == -1:
        end = buffer.rfind(b"\n\n") + 2
        return (buffer[:end], buffer[end:]) if end > 1 else (b"", buffer)
    end = max(map(buffer.rfind, _BLANK_LINES)) + 2
    if end == 1:
        return b"", buffer
    # A blank line that ends in CR takes the LF after it along.
    if buffer[end - 1 : end + 1] == b"\r\n":
        end += 1
    return buffer[:end], buffer[end:]
