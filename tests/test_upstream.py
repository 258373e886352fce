"""The client side on its own: what is sent, what comes back, and the one error that each failure becomes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmproxy.config import Timeouts
from llmproxy.errors import TimeoutPhase, UpstreamBroken, UpstreamCut, UpstreamError, UpstreamTimeout
from llmproxy.errors import UpstreamUnreachable as Unreachable
from llmproxy.services import UpstreamRequest, UpstreamResponse
from llmproxy.testing import (
    Ending,
    Message,
    Reply,
    ScriptedUpstream,
    cut_after,
    cut_mid_event,
    fail,
    flood,
    garbage,
    gzip,
    hang,
    hang_after,
    nothing,
    one_byte_at_a_time,
    raw,
    reply,
    slow_head,
    stream,
    wait_until,
    with_headers,
)
from llmproxy.upstream import HTTPTransport, UpstreamHTTP, read_all, send

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
TLS = Path(__file__).parent / "data" / "tls"


@pytest.fixture
async def transport() -> AsyncIterator[HTTPTransport]:
    """Core's engine."""
    engine = HTTPTransport()
    yield engine
    await engine.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def asking(upstream: ScriptedUpstream, body: bytes = b'{"stream":true}') -> UpstreamRequest:
    """A request as a provider makes it."""
    return UpstreamRequest("POST", f"{upstream.base_url}/x", (("content-type", "application/json"),), body)


def timers(**seconds: float | None) -> Timeouts:
    """Timers that never run out in a test, but for those given."""
    return Timeouts.model_validate({"connect_seconds": 30, "first_byte_seconds": 30, "idle_seconds": 30, **seconds})


@asynccontextmanager
async def answered(
    transport: HTTPTransport, script: Reply, **seconds: float | None
) -> AsyncIterator[tuple[ScriptedUpstream, UpstreamResponse]]:
    """An upstream that has sent the head of its response."""
    async with ScriptedUpstream([script]) as upstream:
        response = await send(transport, asking(upstream), timers(**seconds))
        yield upstream, response
        response.close()


async def fetch(
    transport: HTTPTransport,
    upstream: ScriptedUpstream,
    limits: Timeouts | None = None,
    body: bytes = b'{"stream":true}',
) -> bytes:
    """The whole body of the upstream's next response."""
    response = await send(transport, asking(upstream, body), limits or timers())
    try:
        return await read_all(response, 1_000_000)
    finally:
        response.close()


async def collect(transport: HTTPTransport, upstream: ScriptedUpstream, limits: Timeouts, pieces: list[bytes]) -> None:
    """Put the pieces of the upstream's next response into `pieces`, as far as they come."""
    response = await send(transport, asking(upstream), limits)
    while piece := await response.read():
        pieces.append(piece)


async def pass_time(seconds: float) -> None:
    """Let this much of the loop's own time go by, which is what the timers count."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    await wait_until(lambda: loop.time() >= end, seconds + 5)


# What is sent


async def test_sends_exactly_the_fields_it_was_given(transport: HTTPTransport) -> None:
    """Beside the fields of the request only Host and Content-Length go out: no agent, no cookie, no default."""
    async with ScriptedUpstream([reply("hi")]) as upstream:
        request = UpstreamRequest("POST", f"{upstream.origin}/v1/x?a=%2F", (("X-One", "1"), ("x-two", "ü")), b"{}")
        await read_all(await send(transport, request, timers()), 1000)
    host = b"Host: 127.0.0.1:%d\r\n" % upstream.port
    fields = b"X-One: 1\r\nx-two: \xc3\xbc\r\nContent-Length: 2\r\n"
    assert upstream.requests[0].raw_head == b"POST /v1/x?a=%2F HTTP/1.1\r\n" + host + fields + b"\r\n"


async def test_sends_a_large_body_whole(transport: HTTPTransport) -> None:
    """A body of several megabytes arrives byte for byte, with its length said beforehand."""
    body = b'{"image":"' + os.urandom(2_000_000).hex().encode() + b'"}'
    async with ScriptedUpstream([reply("hi")]) as upstream:
        await fetch(transport, upstream, body=body)
    assert upstream.requests[0].body == body
    assert upstream.requests[0].headers["content-length"] == str(len(body))


async def test_small_writes_leave_at_once(transport: HTTPTransport) -> None:
    """Nagle's algorithm is off towards the provider, so that no request waits for an acknowledgement."""
    async with answered(transport, hang_after(1)) as _:
        assert transport._session is not None
        assert transport._session.connector is not None
        (connection,) = transport._session.connector._acquired
        assert connection.transport is not None
        wire = connection.transport.get_extra_info("socket")
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_cookies_of_one_response_never_reach_the_next_request(transport: HTTPTransport) -> None:
    """What a provider wants remembered is forgotten: the next client is someone else."""
    async with ScriptedUpstream([with_headers(reply("hi"), ("Set-Cookie", "session=1; Path=/"))] * 2) as upstream:
        for _ in range(2):
            await fetch(transport, upstream)
    assert [b"cookie" in request.raw_head.lower() for request in upstream.requests] == [False, False]


# What comes back


async def test_gives_the_head_before_the_body(transport: HTTPTransport) -> None:
    """Status and fields are there while the body is still to come, and fields are found in any case."""
    async with answered(transport, with_headers(hang_after(0), ("X-Some-Field", "1"))) as (_, response):
        assert (response.status, response.headers["x-some-field"]) == (200, "1")


async def test_reads_a_body_whatever_its_pieces(transport: HTTPTransport) -> None:
    """A response that trickles in byte by byte is the same response."""
    async with ScriptedUpstream([reply("hi"), one_byte_at_a_time(reply("hi"))]) as upstream:
        bodies = [await fetch(transport, upstream) for _ in range(2)]
    assert bodies[0].replace(b"chatcmpl-1", b"chatcmpl-2") == bodies[1]


async def test_decodes_a_body_that_comes_compressed_unasked(transport: HTTPTransport) -> None:
    """A provider that compresses although identity was asked is understood all the same."""
    async with answered(transport, gzip(stream("one ", "two"))) as (_, response):
        assert (await read_all(response, 10_000)).endswith(b"data: [DONE]\n\n")


async def test_follows_no_redirect(transport: HTTPTransport) -> None:
    """A redirect comes back as what it is: the key and the prompt go nowhere else."""
    async with ScriptedUpstream() as elsewhere:
        moved = with_headers(fail(307), ("Location", f"{elsewhere.base_url}/chat/completions"))
        async with answered(transport, moved) as (_, response):
            assert response.status == 307
        assert elsewhere.requests == []


async def test_skips_informational_responses(transport: HTTPTransport) -> None:
    """A 103 before the response is not the response."""
    early = raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}")
    async with answered(transport, early) as (_, response):
        assert (response.status, await read_all(response, 10)) == (200, b"{}")


async def test_a_body_read_to_its_end_leaves_the_connection_to_the_next(transport: HTTPTransport) -> None:
    """Requests to one provider share a connection as long as each response is read to its end."""
    async with ScriptedUpstream([reply("hi"), stream("a"), reply("hi")]) as upstream:
        for _ in range(3):
            await fetch(transport, upstream)
        assert upstream.connections_opened == 1


async def test_closing_in_the_middle_tells_the_provider_at_once(transport: HTTPTransport) -> None:
    """Who gives a response up closes its connection, so that the provider stops working and charging."""
    async with answered(transport, hang_after(2)) as (upstream, response):
        await response.read()
        response.close()
        await upstream.wait_for(lambda: len(upstream.cancelled) == 1, seconds=1)
        assert upstream.exchanges[0].is_cancelled


async def test_a_cancelled_wait_for_the_head_tells_the_provider(transport: HTTPTransport) -> None:
    """Cancelling the attempt before the provider has answered closes the connection too."""
    async with ScriptedUpstream([hang()]) as upstream:

        async def wait() -> None:
            await send(transport, asking(upstream), timers())

        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(wait())
            await upstream.wait_for(lambda: bool(upstream.requests))
            leaving.cancel()
        await upstream.wait_for(lambda: len(upstream.cancelled) == 1, seconds=1)
        assert upstream.open_connections == 0


async def test_a_response_nobody_asked_for_is_never_taken_for_an_answer(transport: HTTPTransport) -> None:
    """What a provider sends on an idle connection is thrown away with the connection, not given to whoever is next."""
    stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(HEAD + b"Content-Length: 4\r\n\r\nmine")
        await writer.drain()
        writer.write(stray)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        request = UpstreamRequest("POST", f"http://127.0.0.1:{port}/", (), b"{}")
        for _ in range(3):
            assert await read_all(await send(transport, request, timers()), 100) == b"mine"
            await pass_time(0.05)
        await transport.close()


# The four timers


async def test_connect_timer(transport: HTTPTransport, silent_port: int) -> None:
    """A provider that takes the connection but never shakes hands is a connect timeout, not a slow answer."""
    request = UpstreamRequest("POST", f"https://127.0.0.1:{silent_port}/v1", (), b"{}")
    with pytest.raises(UpstreamTimeout) as caught:
        await send(transport, request, timers(connect_seconds=0.1))
    assert (caught.value.phase, caught.value.error_code) == ("connect", "upstream_connect_timeout")


@pytest.mark.parametrize(
    ("script", "running_out", "phase", "events"),
    [
        (hang(), {"first_byte_seconds": 0.1}, "first_byte", 0),
        (hang_after(0), {"first_byte_seconds": 0.1}, "first_byte", 0),
        (slow_head(reply("late"), 30), {"first_byte_seconds": 0.1}, "first_byte", 0),
        (hang_after(2), {"idle_seconds": 0.1}, "idle", 2),
        (stream(*"abcdefghijklmnopqrstuvwxyz", delay_seconds=0.05), {"total_seconds": 0.3}, "total", 1),
        (hang(), {"total_seconds": 0.1}, "total", 0),
        (hang_after(2), {"total_seconds": 0.1}, "total", 2),
    ],
    ids=["no-head", "no-body", "late-head", "silence", "endless", "total-before-head", "total-before-idle"],
)
async def test_each_wait_has_its_timer(
    transport: HTTPTransport, script: Reply, running_out: dict[str, float], phase: TimeoutPhase, events: int
) -> None:
    """Whichever timer runs out, the error names its phase, comes in time, and keeps what came before it."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    pieces: list[bytes] = []
    async with ScriptedUpstream([script]) as upstream:
        with pytest.raises(UpstreamTimeout) as caught:
            await collect(transport, upstream, timers(**running_out), pieces)
    assert (caught.value.phase, caught.value.http_status) == (phase, 504)
    assert b"".join(pieces).count(b"\n\n") >= events
    assert sum(running_out.values()) <= loop.time() - started < sum(running_out.values()) + 1


async def test_a_timer_that_ran_out_closes_the_connection(transport: HTTPTransport) -> None:
    """The provider learns at once that nobody waits any more."""
    async with ScriptedUpstream([hang_after(1)]) as upstream:
        response = await send(transport, asking(upstream), timers(idle_seconds=0.1))
        with pytest.raises(UpstreamTimeout):
            await read_all(response, 10_000)
        await upstream.wait_for(lambda: len(upstream.cancelled) == 1, seconds=1)
        assert upstream.open_connections == 0


async def test_time_in_which_nobody_reads_is_not_silence(transport: HTTPTransport) -> None:
    """The idle timer counts the provider's pauses, not those of a slow reader."""
    async with answered(transport, flood(3_000_000), idle_seconds=0.1) as (upstream, response):
        await response.read()
        await pass_time(0.3)
        size = 0
        while piece := await response.read():
            size += len(piece)
    assert size >= 3_000_000
    assert not upstream.cancelled


async def test_the_idle_timer_still_counts_after_a_pause_of_the_reader(transport: HTTPTransport) -> None:
    """Once somebody reads again, silence is measured from there."""
    async with answered(transport, hang_after(2), idle_seconds=0.1) as (_, response):
        await response.read()
        await pass_time(0.3)
        with pytest.raises(UpstreamTimeout, match=r"silent for 0\.1 seconds"):
            await read_all(response, 10_000)


# Everything else that goes wrong


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:{closed}/", "No connection to the provider could be made."),
        (f"http://{'far.' * 64}example/", "The provider's host name could not be resolved."),
        ("http://", "The provider's address is not a valid URL."),
        ("http://[::1", "The provider's address is not a valid URL."),
    ],
    ids=["refused", "unknown-host", "no-host", "malformed"],
)
async def test_what_cannot_be_reached_is_unreachable(transport: HTTPTransport, url: str, sentence: str) -> None:
    """An attempt of which nothing was sent says why in one sentence."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        await send(transport, UpstreamRequest("POST", url.format(closed=closed), (), b"{}"), timers())
    assert caught.value.message == sentence


async def test_a_certificate_nobody_vouches_for_is_refused(transport: HTTPTransport) -> None:
    """TLS is verified: a key and a prompt are not sent to just anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "first.crt", TLS / "first.key")
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match="certificate"):
            await send(transport, UpstreamRequest("POST", f"https://localhost:{port}/", (), b"{}"), timers())
    assert received == []


BROKEN, CUT = UpstreamBroken, UpstreamCut


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (nothing(), CUT),
        (garbage(), BROKEN),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), CUT),
        (raw(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), BROKEN),
        (raw(HEAD + b"X-Long: " + b"x" * 70_000 + b"\r\n\r\n"), BROKEN),
        (raw(HEAD + b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nbr..", ending=Ending.SILENCE), BROKEN),
        (raw(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nzip?"), CUT),
        (raw(HEAD + b"Content-Length: 20\r\n\r\nonly this"), CUT),
        (raw(HEAD + b"Content-Length: 20\r\n\r\nonly this", ending=Ending.RESET), CUT),
        (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\n"), BROKEN),
        (cut_after(0), CUT),
        (cut_after(2), CUT),
        (cut_after(2, ending=Ending.CLOSE), CUT),
        (cut_mid_event(2), CUT),
    ],
    ids=[
        "nothing", "garbage", "half-head", "two-lengths", "huge-field", "unknown-encoding", "false-gzip", "short",
        "reset", "bad-chunk", "no-event", "two-events", "quiet-cut", "half-event",
    ],
)  # fmt: skip
async def test_what_is_not_a_whole_response_is_an_upstream_error(
    transport: HTTPTransport, script: Reply, expected: type[UpstreamError]
) -> None:
    """Whatever the provider does to HTTP, the rest of the code sees one of its own errors, with status 502."""
    async with ScriptedUpstream([script]) as upstream:
        with pytest.raises(UpstreamError) as caught:
            await fetch(transport, upstream)
    assert (type(caught.value), caught.value.http_status) == (expected, 502)


async def test_broken_framing_in_the_middle_does_not_hang(transport: HTTPTransport) -> None:
    """A chunk that is none, after good ones, ends the read; at the latest the idle timer does."""
    broken = one_byte_at_a_time(raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\nZZ\r\n"))
    async with ScriptedUpstream([broken]) as upstream:
        with pytest.raises(UpstreamError):
            await fetch(transport, upstream, timers(idle_seconds=0.2))


async def test_a_body_over_the_limit_is_not_read_on(transport: HTTPTransport) -> None:
    """A body is given up as soon as it is too large, not when all of it is in memory."""
    async with answered(transport, flood(50_000_000)) as (upstream, response):
        with pytest.raises(UpstreamBroken, match="larger than 1000 bytes"):
            await read_all(response, 1000)
        response.close()
        await upstream.wait_for(lambda: len(upstream.cancelled) == 1)
        assert upstream.exchanges[0].bytes_accepted < 20_000_000


async def test_a_decompression_bomb_is_not_blown_up(transport: HTTPTransport) -> None:
    """The limit counts what comes out of a compressed body, piece by piece."""
    zeros = Reply(lambda _: Message(pieces=(b"\0" * 50_000_000,)))
    async with answered(transport, gzip(zeros)) as (_, response):
        with pytest.raises(UpstreamBroken, match="larger than 1000000 bytes"):
            await read_all(response, 1_000_000)


# Whole requests, for plugins and providers


async def test_plugins_get_whole_responses() -> None:
    """`services.http` gives status, fields and the whole body."""
    transport = HTTPTransport()
    async with ScriptedUpstream([fail(503)]) as upstream:
        status, headers, body = await UpstreamHTTP(transport).request(asking(upstream))
        await transport.close()
    assert (status, headers["content-type"]) == (503, "application/json")
    assert body.startswith(b'{"error"')


@pytest.mark.parametrize(
    ("script", "timeout_seconds", "expected"),
    [(hang(), 0.1, UpstreamTimeout), (hang_after(1), 0.1, UpstreamTimeout), (reply("long" * 200), 10, UpstreamBroken)],
    ids=["no-answer", "half-an-answer", "too-large"],
)
async def test_plugins_cannot_wait_or_read_for_ever(
    transport: HTTPTransport, script: Reply, timeout_seconds: float, expected: type[UpstreamError]
) -> None:
    """A request of a plugin has a limit of time and of size, and leaves no connection behind when it hits one."""
    async with ScriptedUpstream([script]) as upstream:
        with pytest.raises(expected):
            await UpstreamHTTP(transport).request(asking(upstream), timeout_seconds=timeout_seconds, max_body_bytes=400)
        await upstream.wait_for(lambda: upstream.open_connections == 0, seconds=1)


async def test_a_transport_can_be_closed_unused() -> None:
    """Closing an engine that never sent anything is no error."""
    await HTTPTransport().close()
