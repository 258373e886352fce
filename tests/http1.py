"""What the tests of the lean client have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from llmproxy.config import Timeouts
from llmproxy.http1.connection import Connection
from llmproxy.http1.transport import HTTP1Transport
from llmproxy.services import UpstreamRequest
from llmproxy.upstream import read_all, send

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
HI = HEAD + b"Content-Length: 2\r\n\r\nhi"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def transport() -> AsyncIterator[HTTP1Transport]:
    """The lean client."""
    engine = HTTP1Transport()
    yield engine
    await engine.close()


def timers(**seconds: float | None) -> Timeouts:
    """Timers that never run out in a test, but for those given."""
    return Timeouts.model_validate({"connect_seconds": 30, "first_byte_seconds": 30, "idle_seconds": 30, **seconds})


def asking(origin: str, method: str = "POST", body: bytes = b"{}", path: str = "/x") -> UpstreamRequest:
    """A request as a provider makes it."""
    return UpstreamRequest(method, f"{origin}{path}", (("content-type", "application/json"),), body)


async def whole(transport: HTTP1Transport, request: UpstreamRequest, **seconds: float | None) -> tuple[int, bytes]:
    """Status and body of the next response."""
    response = await send(transport, request, timers(**seconds))
    try:
        return response.status, await read_all(response, 10_000_000)
    finally:
        response.close()


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """A server that does what a function does with each connection; its origin."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def connections(transport: HTTP1Transport) -> Sequence[Connection]:
    """All that are open."""
    return [connection for place in transport._pool._places.values() for connection in place.connections]
