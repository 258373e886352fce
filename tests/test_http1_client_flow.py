"""The lean client on real sockets: slow readers, slow takers, and every way in which a response ends."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import AsyncIterator

import pytest
import uvloop

from llmproxy.errors import UpstreamBroken, UpstreamCut, UpstreamError, UpstreamTimeout
from llmproxy.http1.connection import Connection
from llmproxy.http1.transport import HTTP1Transport
from llmproxy.services import UpstreamResponse
from llmproxy.testing import (
    Ending,
    Message,
    Reply,
    ScriptedUpstream,
    cut_after,
    flood,
    hang,
    hang_after,
    raw,
    reply,
    stream,
    wait_until,
    with_headers,
)
from llmproxy.upstream import read_all, send
from tests.http1 import HEAD, HI, asking, connections, serving, timers, whole

# Pressure


async def test_a_response_nobody_reads_is_not_received(transport: HTTP1Transport) -> None:
    """Who reads slowly makes the provider wait, and holds little; then everything arrives."""
    async with ScriptedUpstream([flood(30_000_000)]) as upstream:
        response = await send(transport, asking(upstream.origin), timers())
        (connection,) = connections(transport)
        await wait_until(lambda: connection._is_reading_paused)
        assert connection._response is not None
        assert connection._response.buffered_bytes < 1_000_000
        assert upstream.exchanges[0].bytes_accepted < 20_000_000
        size = sum([len(piece) async for piece in pieces_of(response)])
    assert size >= 30_000_000


async def pieces_of(response: UpstreamResponse) -> AsyncIterator[bytes]:
    """A body, piece by piece."""
    while piece := await response.read():
        yield piece


async def test_a_response_that_ends_while_nobody_reads_frees_its_connection(transport: HTTP1Transport) -> None:
    """What is whole is the reader's, and the connection the next request's."""
    async with ScriptedUpstream([reply("long " * 10_000), reply("hi")]) as upstream:
        first = await send(transport, asking(upstream.origin), timers())
        assert isinstance(connections(transport)[0], Connection)
        await wait_until(lambda: connections(transport)[0]._response is None)
        second = await whole(transport, asking(upstream.origin))
        assert upstream.connections_opened == 1
        assert (len(await read_all(first, 1_000_000)) > 50_000, second[0]) == (True, 200)


async def test_a_large_request_waits_for_a_slow_provider(transport: HTTP1Transport) -> None:
    """What waits to be sent is a piece of a large body, not a copy of it all."""
    body = os.urandom(30_000_000)
    go = asyncio.Event()
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        while len(received) < len(body):
            received.extend(await reader.read(1_000_000))
        writer.write(HI)
        await reader.read()

    async with serving(serve) as origin:
        sending = asyncio.create_task(whole(transport, asking(origin, body=body)))  # noqa: TID251 - a test holds it
        await wait_until(lambda: any(each._is_writing_paused for each in connections(transport)))
        assert connections(transport)[0]._transport.get_write_buffer_size() < 1_000_000
        go.set()
        assert await sending == (200, b"hi")
    assert bytes(received) == body


async def test_an_answer_to_half_a_request_is_an_answer(transport: HTTP1Transport) -> None:
    """A provider that refuses a body it has not read is heard, and its connection not used again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    async with serving(serve) as origin:
        assert await whole(transport, asking(origin, body=bytes(30_000_000))) == (413, b"no")
        await wait_until(lambda: connections(transport) == [])


async def test_a_provider_that_stops_taking_a_request_is_a_timeout(transport: HTTP1Transport) -> None:
    """The wait for the first byte includes sending the request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with serving(serve) as origin:
        with pytest.raises(UpstreamTimeout) as caught:
            await whole(transport, asking(origin, body=bytes(30_000_000)), first_byte_seconds=0.2)
    assert caught.value.phase == "first_byte"


# Ends


async def test_a_body_may_end_with_its_connection(transport: HTTP1Transport) -> None:
    """Without a length and without chunks the end of the connection is the end, and a reset is not."""
    async with ScriptedUpstream(
        [raw(HEAD + b"\r\nall of it"), raw(HEAD + b"\r\nhalf", ending=Ending.RESET)]
    ) as upstream:
        assert await whole(transport, asking(upstream.origin)) == (200, b"all of it")
        with pytest.raises(UpstreamCut):
            await whole(transport, asking(upstream.origin))


async def test_an_answer_without_a_body(transport: HTTP1Transport) -> None:
    """A HEAD, a 204 and a 304 are over with their heads, whatever length they name."""
    head = raw(HEAD + b"Content-Length: 5\r\n\r\n", ending=Ending.SILENCE)
    not_modified = raw(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", ending=Ending.SILENCE)
    async with ScriptedUpstream([head, not_modified]) as upstream:
        assert await whole(transport, asking(upstream.origin, "HEAD", b"")) == (200, b"")
        assert await whole(transport, asking(upstream.origin, "GET", b"")) == (304, b"")


async def test_what_came_before_a_failure_is_read_first(transport: HTTP1Transport) -> None:
    """Broken framing takes nothing from the reader that was good before it."""
    go = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        await go.wait()
        writer.write(b"4\r\ngood\r\nwhat?\r\n")
        await reader.read()

    async with serving(serve) as origin:
        response = await send(transport, asking(origin), timers())
        go.set()
        assert await response.read() == b"good"
        for _ in range(2):
            with pytest.raises(UpstreamBroken, match="not valid HTTP"):
                await response.read()
        await wait_until(lambda: connections(transport) == [])


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd", "compress"])
async def test_codings_nobody_asked_for(transport: HTTP1Transport, coding: str) -> None:
    """What cannot be decoded is no answer, and its connection is closed."""
    answer = with_headers(reply("hi"), ("Content-Encoding", coding))
    async with ScriptedUpstream([answer]) as upstream:
        with pytest.raises(UpstreamBroken):
            await whole(transport, asking(upstream.origin))


PLAIN = b"one body, " * 1000
BARE = zlib.compressobj(wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("coding", "body", "is_whole"),
    [
        ("gzip", gzip.compress(PLAIN), True),
        ("x-gzip", gzip.compress(PLAIN[:99]) + gzip.compress(PLAIN[99:]), True),
        ("deflate", zlib.compress(PLAIN), True),
        ("Deflate", BARE.compress(PLAIN) + BARE.flush(), True),
        ("identity", PLAIN, True),
        ("gzip", gzip.compress(PLAIN)[:-9], False),
        ("gzip", PLAIN, False),
    ],
    ids=["gzip", "two parts", "deflate", "bare deflate", "identity", "cut", "false"],
)
@pytest.mark.parametrize("size", [1, 1_000_000])
async def test_codings_that_everybody_knows(
    transport: HTTP1Transport,
    coding: str,
    body: bytes,
    size: int,
    *,
    is_whole: bool,
) -> None:
    """What comes compressed although nobody asked for it is read all the same, and half of it is a cut."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    answer = Reply(lambda _: Message(pieces=pieces, headers=[("Content-Encoding", coding)]))
    async with ScriptedUpstream([answer]) as upstream:
        if is_whole:
            assert await whole(transport, asking(upstream.origin)) == (200, PLAIN)
        else:
            with pytest.raises(UpstreamCut):
                await whole(transport, asking(upstream.origin))


async def test_an_aborted_response_says_why(transport: HTTP1Transport) -> None:
    """Whoever reads, now or later, gets the error it was aborted with, and the provider is told."""
    reason = UpstreamTimeout("Enough.", phase="total")
    async with ScriptedUpstream([hang_after(1)]) as upstream:
        response = await send(transport, asking(upstream.origin), timers())
        await response.read()
        asyncio.get_running_loop().call_later(0.05, response.abort, reason)
        for _ in range(2):
            with pytest.raises(UpstreamTimeout, match="Enough"):
                await response.read()
        await upstream.wait_for(lambda: len(upstream.cancelled) == 1)


async def test_closing_ends_what_is_under_way() -> None:
    """An engine that is closed has no connection left, and who waits on one learns that it was lost."""
    transport = HTTP1Transport()
    async with ScriptedUpstream([hang(), reply("hi")]) as upstream:
        waiting = asyncio.create_task(whole(transport, asking(upstream.origin)))  # noqa: TID251 - a test holds it
        await upstream.wait_for(lambda: len(upstream.requests) == 1)
        await whole(transport, asking(upstream.origin))
        await transport.close()
        assert connections(transport) == []
        with pytest.raises(UpstreamCut):
            await waiting


# Another event loop


def test_the_same_on_uvloop() -> None:
    """Whole answers, streams, uploads and cuts do not depend on whose loop it is."""
    kept = raw(HI, ending=Ending.COMPLETE)

    async def scenario() -> list[object]:
        transport = HTTP1Transport()
        async with ScriptedUpstream([kept, stream("a", "b"), kept, hang_after(1), cut_after(1)]) as upstream:
            seen: list[object] = [await whole(transport, asking(upstream.origin))]
            seen.append((await whole(transport, asking(upstream.origin)))[1].count(b"data:"))
            seen.append(await whole(transport, asking(upstream.origin, body=bytes(3_000_000))))
            for _ in range(2):
                try:
                    await whole(transport, asking(upstream.origin), idle_seconds=0.1)
                except UpstreamError as error:
                    seen.append(type(error))
            seen.append(len(upstream.requests[2].body))
        await transport.close()
        return seen

    plain, fast = asyncio.run(scenario()), uvloop.run(scenario())
    assert plain == fast
    assert plain[2:] == [(200, b"hi"), UpstreamTimeout, UpstreamCut, 3_000_000]
