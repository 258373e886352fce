"""A TCP relay in front of anything, whose connections a test can cut, refuse, stall or slow."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from llmproxy.testing.connections import close, reset

HOST: Final = "127.0.0.1"
READ_BYTES: Final = 65_536

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FaultProxy:
    """Relays to `host:port`; used as `async with`.

    A `host` that is a path is the directory of a Postgres socket, as in a Postgres URL.

    Attributes:
        host: Where to connect to instead.
        port: The same; it stays over `refuse` and `accept`.
        delay_seconds: How much later each piece of data is passed on, in both directions.
        connections_opened: How many connections there have been.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = HOST
        self.port = 0
        self.delay_seconds = 0.0
        self.connections_opened = 0
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self.refuse()
        self.cut()
        self.resume()
        await asyncio.gather(*self._tasks)

    async def accept(self) -> None:
        """Take connections again, on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._relay, HOST, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def cut(self) -> None:
        """Reset every open connection, towards both sides."""
        for writer in self._writers:
            reset(writer)

    def pause(self) -> None:
        """Pass nothing on: connections stay open, new ones are taken, no byte and no end arrives."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass on again, beginning with what was held back."""
        self._flowing.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections_opened += 1
        try:
            await self._flowing.wait()
            if not writer.is_closing():
                await self._join((reader, writer))
        except OSError:
            reset(writer)
        finally:
            await self._forget(writer)
            self._tasks.discard(task)

    async def _join(self, near: _Streams) -> None:
        """Connect to the target and pass data both ways until both have ended. Raises OSError."""
        far = await self._connect()
        self._writers.add(far[1])
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass_on(near[0], far[1]))
                tasks.create_task(self._pass_on(far[0], near[1]))
        finally:
            await self._forget(far[1])

    async def _connect(self) -> _Streams:
        host, port = self._target
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                await self._hold_back()
                writer.write(data)
                await writer.drain()
            await self._hold_back()
            writer.write_eof()
        except OSError:
            reset(writer)

    async def _hold_back(self) -> None:
        await self._flowing.wait()
        if self.delay_seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self.delay_seconds)

    async def _forget(self, writer: asyncio.StreamWriter) -> None:
        await close(writer)
        self._writers.discard(writer)
