"""The lean client on real sockets: requests as they leave, and connections that are shared, closed and limited."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

import pytest

from llmproxy.errors import UpstreamCut, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from llmproxy.http1 import pool
from llmproxy.http1.address import address_of
from llmproxy.http1.transport import HTTP1Transport
from llmproxy.services import UpstreamRequest
from llmproxy.testing import (
    Ending,
    ScriptedUpstream,
    cut_after,
    fail,
    garbage,
    hang,
    hang_after,
    raw,
    reply,
    stream,
    wait_until,
)
from llmproxy.upstream import send
from tests.http1 import HEAD, HI, asking, connections, serving, timers, whole

# Requests


@pytest.mark.parametrize(
    ("url", "request_line", "host"),
    [
        ("http://h", "GET / HTTP/1.1", "h"),
        ("http://h:80/a%2Fb?x=%20#part", "GET /a%2Fb?x=%20 HTTP/1.1", "h"),
        ("http://H.example:8080/?", "GET / HTTP/1.1", "H.example:8080"),
        ("https://h:443/v1", "GET /v1 HTTP/1.1", "h"),
        ("https://h:80/v1", "GET /v1 HTTP/1.1", "h:80"),
        ("http://[::1]:81/", "GET / HTTP/1.1", "[::1]:81"),
        ("http://h.example./", "GET / HTTP/1.1", "h.example"),
        ("http://u:p%40w@h/", "GET / HTTP/1.1", "h\r\nAuthorization: Basic dTpwQHc="),
    ],
)
def test_what_a_url_means(url: str, request_line: str, host: str) -> None:
    """Path and query go out as they are written; the host as it is resolved, with its port unless it is the usual."""
    head = address_of(url).head(UpstreamRequest("GET", url, (), b""))
    assert head == f"{request_line}\r\nHost: {host}\r\n\r\n".encode()


@pytest.mark.parametrize(
    "url",
    [
        *("", "h", "ftp://h/", "http:///x", "http://h:99999/", "http://h/a b"),
        *("http://h/a b?", "http://h/a\r\nX: 1", "http://h/ü", "http://ü/"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    """Nothing is sent to an address that could be understood in two ways."""
    with pytest.raises(UpstreamUnreachable, match="not a valid URL"):
        address_of(url)


@pytest.mark.parametrize(
    "field",
    [("a", "1\r\nb: 2"), ("a", "1\nb: 2"), ("a\r\nb", "1"), ("a", "1\rb"), ("a", "\0"), ("a", "\ud800")],
)
async def test_no_field_can_smuggle_another(transport: HTTP1Transport, field: tuple[str, str]) -> None:
    """A field with a line break in it is not sent, and nothing else of its request."""
    async with ScriptedUpstream() as upstream:
        with pytest.raises(UpstreamUnreachable, match="header"):
            await send(transport, UpstreamRequest("POST", upstream.origin, (field,), b"{}"), timers())
        assert upstream.connections_opened == 0


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [("POST", b"", b"Content-Length: 0\r\n"), ("POST", b"12", b"Content-Length: 2\r\n"), ("GET", b"", b"")],
)
def test_says_how_long_a_body_is(method: str, body: bytes, length: bytes) -> None:
    """A POST without a body says so, and a GET says nothing of one."""
    head = address_of("http://h/").head(UpstreamRequest(method, "http://h/", (), body))
    assert head == f"{method} / HTTP/1.1\r\nHost: h\r\n".encode() + length + b"\r\n"


def test_bytes_that_are_no_text_go_out_as_they_came() -> None:
    """A field that a client sent in some old encoding is passed on byte for byte."""
    value = b"\xff\xc3\xbc".decode("utf-8", "surrogateescape")
    head = address_of("http://h/").head(UpstreamRequest("GET", "http://h/", (("x", value),), b""))
    assert b"\r\nx: \xff\xc3\xbc\r\n" in head


async def test_a_whole_request_is_one_write(transport: HTTP1Transport) -> None:
    """Head and body leave together: the first read of an idle server has both."""
    reads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1_000_000):
            reads.append(data)
            writer.write(HI)

    async with serving(serve) as origin:
        for _ in range(3):
            assert await whole(transport, asking(origin, body=b"x" * 10_000)) == (200, b"hi")
    assert [data.endswith(b"\r\n\r\n" + b"x" * 10_000) for data in reads] == [True] * 3


async def test_small_writes_leave_at_once(transport: HTTP1Transport) -> None:
    """Nagle's algorithm is off towards the provider."""
    async with ScriptedUpstream([reply("hi")]) as upstream:
        await whole(transport, asking(upstream.origin))
        (connection,) = connections(transport)
        wire = connection._transport.get_extra_info("socket")
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# Connections that are used again


async def test_a_connection_that_the_provider_has_closed_is_not_used(transport: HTTP1Transport) -> None:
    """A provider may close an idle connection; the next request opens another, and nobody notices."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(HI)

    async with serving(serve) as origin:
        for _ in range(3):
            assert await whole(transport, asking(origin)) == (200, b"hi")
            await wait_until(lambda: connections(transport) == [])


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_close_that_the_loop_has_not_seen_yet_is_seen(transport: HTTP1Transport, leave: str) -> None:
    """A connection is looked at just before it is used: what the kernel knows by then counts, for a POST too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        served: list[socket.socket] = []

        def serve_one() -> None:
            wire, _ = listener.accept()
            wire.recv(65_536)
            wire.sendall(HI)
            served.append(wire)

        async def ask() -> tuple[int, bytes]:
            server = threading.Thread(target=serve_one)
            server.start()
            try:
                return await whole(transport, asking(origin))
            finally:
                await asyncio.to_thread(server.join)

        assert await ask() == (200, b"hi")
        wire = served.pop()
        if leave == "reset":
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        # No turn of the event loop between this and the next request.
        wire.close()
        assert await ask() == (200, b"hi")
        served.pop().close()


@pytest.mark.parametrize(("method", "requests"), [("POST", 2), ("GET", 3), ("HEAD", 3)])
async def test_what_may_have_been_processed_is_not_sent_again(
    transport: HTTP1Transport, method: str, requests: int
) -> None:
    """A provider that hangs up on a used connection without a byte may have begun: what is harmless is repeated."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        received.append(await reader.readuntil(b"\r\n\r\n"))

    async with serving(serve) as origin:
        request = asking(origin, method, b"")
        assert await whole(transport, request) == (204, b"")
        if method == "POST":
            with pytest.raises(UpstreamCut, match="closed the connection without an answer"):
                await whole(transport, request)
        else:
            assert await whole(transport, request) == (204, b"")
    assert len(received) == requests


async def test_a_first_request_is_never_sent_again(transport: HTTP1Transport) -> None:
    """On a new connection nothing was stale: a provider that hangs up there does not want the request."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))

    async with serving(serve) as origin:
        with pytest.raises(UpstreamCut):
            await whole(transport, asking(origin, "GET", b""))
    assert len(received) == 1


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        HI + b"and more",
        HI + HI,
    ],
    ids=["close", "1.0", "stray bytes", "a second response"],
)
async def test_connections_that_are_not_used_again(transport: HTTP1Transport, answer: bytes) -> None:
    """Where the provider says so, or what it sends belongs to nobody, the next request has a connection of its own."""
    async with ScriptedUpstream(default=raw(answer, ending=Ending.SILENCE)) as upstream:
        for _ in range(2):
            assert await whole(transport, asking(upstream.origin)) == (200, b"hi")
        assert upstream.connections_opened == 2


async def test_an_idle_connection_is_closed_in_time(transport: HTTP1Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody uses any more is closed by a sweep, and by no timer of its own."""
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(pool, "_SWEEP_SECONDS", 0.02)
    async with ScriptedUpstream([reply("hi")]) as upstream:
        await whole(transport, asking(upstream.origin))
        assert upstream.open_connections == 1
        await upstream.wait_for(lambda: upstream.open_connections == 0)
    assert connections(transport) == []


async def test_requests_at_once_have_connections_of_their_own(transport: HTTP1Transport) -> None:
    """There is no pipelining: a slow answer holds nobody else up."""
    async with ScriptedUpstream([hang(), *[reply("hi")] * 4]) as upstream:
        slow = asyncio.create_task(whole(transport, asking(upstream.origin)))  # noqa: TID251 - a test holds it
        await upstream.wait_for(lambda: len(upstream.requests) == 1)
        for _ in range(4):
            assert (await whole(transport, asking(upstream.origin)))[0] == 200
        assert upstream.connections_opened == 2
        slow.cancel()
        await asyncio.wait([slow])


async def test_timers_are_not_made_for_each_request(transport: HTTP1Transport) -> None:
    """A hundred requests leave no more timers in the loop than one does."""
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    async with ScriptedUpstream(default=stream("a")) as upstream:
        await whole(transport, asking(upstream.origin))
        before = len(scheduled)
        for _ in range(100):
            await whole(transport, asking(upstream.origin))
        assert len(scheduled) <= before + 1


# Limits


async def test_no_more_connections_than_allowed() -> None:
    """Further requests wait for their turn, and every way in which one ends lets the next one in."""
    transport = HTTP1Transport(max_connections=2)
    most = 0

    def count(_: object) -> bool:
        nonlocal most
        most = max(most, len(connections(transport)))
        return True

    scripts = [reply("hi"), cut_after(0), garbage(), stream("a"), fail(500), raw(HI + HI)] * 4
    async with ScriptedUpstream(scripts) as upstream:

        async def ask() -> None:
            with suppress(UpstreamError):
                await whole(transport, asking(upstream.origin))
            count(None)

        async with asyncio.timeout(20):
            await asyncio.gather(*(ask() for _ in scripts))
        assert len(upstream.requests) == len(scripts)
    assert most <= 2
    await transport.close()


async def test_waiting_for_a_turn_is_waiting_to_connect() -> None:
    """A request that gets no turn in time could not connect; who gives up meanwhile takes nobody's place."""
    transport = HTTP1Transport(max_connections=1)
    async with ScriptedUpstream([hang_after(1), reply("hi")]) as upstream:
        first = await send(transport, asking(upstream.origin), timers())
        with pytest.raises(UpstreamTimeout) as caught:
            await whole(transport, asking(upstream.origin), connect_seconds=0.05)
        assert caught.value.phase == "connect"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await whole(transport, asking(upstream.origin))
        first.close()
        assert (await whole(transport, asking(upstream.origin), connect_seconds=5))[0] == 200
    await transport.close()


async def test_a_failed_connection_gives_its_turn_back() -> None:
    """Nobody waits for ever behind a provider that could not be reached."""
    transport = HTTP1Transport(max_connections=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for _ in range(3):
        with pytest.raises(UpstreamUnreachable):
            await whole(transport, asking(origin), connect_seconds=5)
    await transport.close()
