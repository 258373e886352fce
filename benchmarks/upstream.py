"""The model vendor of the measurements: as little as can answer, so that nobody waits for it."""

from __future__ import annotations

import asyncio
import re
from typing import Final, cast

import uvloop

from benchmarks.traffic import Order, chunk, order_in

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_WHOLE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_FAILURE: Final = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"
# How requests begin that fail, whatever they ask for.
FAILING: Final = b"POST /failing/"
_STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# At full speed: events for each turn of the loop, so that all streams go on together.
_EVENTS_PER_TURN: Final = 16


class Upstream(asyncio.Protocol):
    """One connection, answering one request after another."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Grows in place: a long request comes in many pieces.
        self._received = bytearray()
        self._stream: _Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A proxy, or the load itself, has come."""
        # uvloop's transports have the methods without the base class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """It has gone."""
        if self._stream:
            self._stream.stop()

    def pause_writing(self) -> None:
        """Whoever reads is slower than we are."""
        if self._stream:
            self._stream.is_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._stream:
            self._stream.resume()

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        self._received += data
        head_size = self._received.find(b"\r\n\r\n") + 4
        if head_size < 4:
            return
        if _CHUNKED.search(self._received, 0, head_size):
            raise ValueError("The upstream of the benchmarks takes bodies with a length only.")
        length = _LENGTH.search(self._received, 0, head_size)
        if length and len(self._received) >= head_size + int(length[1]):
            received, self._received = bytes(self._received), bytearray()
            if received.startswith(FAILING):
                self._transport.write(_FAILURE)
            else:
                self._answer(order_in(received[head_size:]))

    def _answer(self, order: Order) -> None:
        if order.events:
            self._transport.write(_STREAM_HEAD)
            self._stream = _Stream(order, self._transport, self._loop)
            self._stream.resume()
        else:
            body = order.answer()
            self._transport.write(_WHOLE_HEAD % len(body) + body)


class _Stream:
    """Events as they are due, or as fast as they are taken."""

    def __init__(self, order: Order, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.is_paused = False
        self._order = order
        self._transport = transport
        self._loop = loop
        self._started = loop.time()
        self._sent = 0
        self._timer: asyncio.Handle | None = None

    def resume(self) -> None:
        """Go on."""
        self.is_paused = False
        if self._timer is None and self._sent < self._order.events:
            self._step()

    def stop(self) -> None:
        """Never go on."""
        self._sent = self._order.events
        if self._timer:
            self._timer.cancel()

    def _step(self) -> None:
        self._timer = None
        until = min(self._sent + (1 if self._order.gap_ms else _EVENTS_PER_TURN), self._order.events)
        data = b"".join([chunk(self._order.event(index)) for index in range(self._sent, until)])
        self._sent = until
        if self._sent < self._order.events:
            self._transport.write(data)
            self._wait()
        else:
            self._transport.write(data + chunk(self._order.end()) + b"0\r\n\r\n")

    def _wait(self) -> None:
        if self._order.gap_ms:
            # Against the start, so that no delay adds up.
            due = self._started + self._sent * self._order.gap_ms / 1000
            self._timer = self._loop.call_at(due, self._step)
        elif not self.is_paused:
            self._timer = self._loop.call_soon(self._step)


async def serve() -> None:
    """Serve on a free port, and print it."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
