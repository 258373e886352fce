"""A client that sends any bytes whatever: for requests no HTTP library would make."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from llmproxy.testing.connections import close, reset
from llmproxy.testing.http1 import Fields, Head, MalformedMessageError, MessageReader

_STATUSES_WITHOUT_BODY: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and header fields of a response, and its bytes as received."""

    status: int
    fields: Fields
    raw: bytes


class RawClient:
    """One TCP connection, used as `async with`. Every call raises TimeoutError after `deadline_seconds`.

    Reads ahead no more than some 128 KiB, so a test that does not read is a client that does not read.
    """

    def __init__(self, host: str, port: int, *, deadline_seconds: float = 5) -> None:
        self._host = host
        self._port = port
        self._deadline_seconds = deadline_seconds
        self._head: Head | None = None

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(self._deadline_seconds):
            stream, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.transport.set_write_buffer_limits(high=0)
        self._reader = MessageReader(stream)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await close(self._writer)

    async def send(self, data: bytes) -> None:
        """Send, and return when the kernel has taken all of it. Raises ConnectionError."""
        async with asyncio.timeout(self._deadline_seconds):
            self._writer.write(data)
            await self._writer.drain()

    async def read_head(self) -> ResponseHead:
        """The next response's head.

        Raises MalformedMessageError when it is not HTTP, asyncio.IncompleteReadError when the connection ends
        before it, ConnectionError when it is reset.
        """
        async with asyncio.timeout(self._deadline_seconds):
            self._head = await self._reader.read_head()
        if self._head is None:
            raise asyncio.IncompleteReadError(b"", None)
        return ResponseHead(_status(self._head), self._head.fields, self._head.raw)

    async def read_body(self) -> bytes:
        """The body of the response whose head was read last, without its framing. Raises as `read_head`."""
        if self._head is None:
            raise RuntimeError("Call read_head before read_body.")
        if _status(self._head) in _STATUSES_WITHOUT_BODY:
            return b""
        if not self._head.is_framed:
            return await self.read_until_close()
        async with asyncio.timeout(self._deadline_seconds):
            return await self._reader.read_body(self._head)

    async def read_until(self, separator: bytes) -> bytes:
        """The bytes up to and with `separator`, framing included. Raises as `read_head`."""
        async with asyncio.timeout(self._deadline_seconds):
            return await self._reader.read_until(separator)

    async def read_until_close(self) -> bytes:
        """All bytes until the other side ends the connection. Raises ConnectionError when it is reset."""
        async with asyncio.timeout(self._deadline_seconds):
            return await self._reader.read_rest()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Hang up so that the other side reads a reset (RST)."""
        reset(self._writer)


def _status(head: Head) -> int:
    version, _, rest = head.start_line.partition(" ")
    status = rest[:3]
    if version != "HTTP/1.1" or not status.isdigit():
        raise MalformedMessageError(f"{head.start_line!r} is not the first line of a response.")
    return int(status)
