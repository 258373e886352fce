"""The scripted upstream misbehaves and records exactly as told, down to the byte on the socket."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator

import pytest

from llmproxy.testing import (
    Ending,
    RawClient,
    RecordedRequest,
    Reply,
    ScriptedUpstream,
    cut_after,
    cut_mid_event,
    document,
    events,
    flood,
    hang,
    hang_after,
    nothing,
    raw,
    reply,
    stepped,
    stream,
    with_headers,
)

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """Run an upstream whose script the test fills."""
    async with ScriptedUpstream() as running:
        yield running


def http_request(path: str = "/v1/chat/completions", *, is_stream: bool = False, headers: str = "") -> bytes:
    """Make a chat request as bytes; `headers` are whole lines."""
    body = json.dumps({"model": "gpt-test", "messages": USER, "stream": is_stream}).encode()
    return f"POST {path} HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


# Ends that are missing


async def test_a_cut_is_a_reset_or_a_quiet_close(upstream: ScriptedUpstream) -> None:
    """Ending.RESET is read as a reset; Ending.CLOSE as an end, but before the body's own."""
    upstream.replies += [cut_after(1), cut_after(1, ending=Ending.CLOSE)]
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request(is_stream=True))
        await client.read_head()
        with pytest.raises(ConnectionResetError):
            await client.read_until_close()
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request(is_stream=True))
        await client.read_head()
        assert not (await client.read_until_close()).endswith(b"0\r\n\r\n")
    assert upstream.cancelled == []


async def test_cut_mid_event_sends_half_of_the_next(upstream: ScriptedUpstream) -> None:
    """A cut in the middle of an event leaves a beginning of it without its end."""
    upstream.default = cut_mid_event(1, stream("a" * 100, include_role=False), ending=Ending.CLOSE)
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request(is_stream=True))
        await client.read_head()
        received = await client.read_until_close()
    assert received.count(b"data: ") == 2
    assert received.count(b"\n\n") == 1


@pytest.mark.parametrize(("silent", "count"), [(hang(), 0), (hang_after(0), 0), (hang_after(2), 2)])
async def test_hanging_is_silence_until_the_client_leaves(
    upstream: ScriptedUpstream, silent: Reply, count: int
) -> None:
    """A hang sends its events and nothing more; the hang-up is noticed, with the events sent until then."""
    upstream.default = silent
    async with RawClient("127.0.0.1", upstream.port, deadline_seconds=0.1) as client:
        await client.send(http_request(is_stream=True))
        with pytest.raises(TimeoutError):
            await client.read_until_close()
        assert upstream.cancelled == []
    await upstream.wait_for(lambda: len(upstream.cancelled) == 1)
    assert upstream.cancelled[0].events_sent == count


async def test_nothing_closes_without_a_byte(upstream: ScriptedUpstream) -> None:
    """An upstream can take a request and close at once."""
    upstream.default = nothing()
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request())
        assert await client.read_until_close() == b""


async def test_raw_sends_anything_at_all(upstream: ScriptedUpstream) -> None:
    """Raw bytes are sent as they are, even if they break what the head promised."""
    upstream.default = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nshort")
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request())
        assert (await client.read_head()).status == 200
        with pytest.raises(asyncio.IncompleteReadError):
            await client.read_body()


# Good replies, held back


async def test_stepped_events_leave_only_when_let_go(upstream: ScriptedUpstream) -> None:
    """The second event leaves only once the test has released it."""
    permits = asyncio.Semaphore(1)
    upstream.default = stepped(stream("a"), permits)
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request(is_stream=True))
        await client.read_until(b"\n\n")
        assert upstream.exchanges[0].events_sent == 1
        permits.release()
        assert b'"content":"a"' in await client.read_until(b"\n\n")


async def test_flood_is_held_back_by_a_client_that_does_not_read(upstream: ScriptedUpstream) -> None:
    """What the kernel accepted stops far below the total when nobody reads, and reaches it when somebody does."""
    upstream.default = flood(64_000_000)
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request(is_stream=True))
        await client.read_head()
        await upstream.wait_for(lambda: upstream.exchanges[0].bytes_accepted > 100_000)
        accepted = await settled(upstream)
        assert accepted < 32_000_000
    await upstream.wait_for(lambda: len(upstream.cancelled) == 1)
    upstream.default = flood(1_000_000)
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request(is_stream=True))
        await client.read_head()
        assert len(await client.read_body()) >= 1_000_000


async def settled(upstream: ScriptedUpstream) -> int:
    """The bytes accepted once twenty looks in a row have seen no more."""
    seen = [-1]

    def is_still() -> bool:
        seen.append(upstream.exchanges[0].bytes_accepted)
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    await upstream.wait_for(is_still)
    return seen[-1]


async def test_other_vendors_answers_and_events_can_be_served(upstream: ScriptedUpstream) -> None:
    """Any document and any events are sent as given, with headers added."""
    upstream.replies += [
        with_headers(document({"type": "message"}, status=529), ("request-id", "req_1")),
        events(b"event: ping\ndata: {}\n\n", b"", b"event: message_stop\ndata: {}\n\n"),
    ]
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request("/v1/messages"))
        head = await client.read_head()
        assert (head.status, head.fields["Request-ID"], await client.read_body()) == (
            529,
            "req_1",
            b'{"type": "message"}',
        )
        await client.send(http_request("/v1/messages", is_stream=True))
        await client.read_head()
        assert await client.read_body() == b"event: ping\ndata: {}\n\nevent: message_stop\ndata: {}\n\n"


# The record


async def test_requests_are_recorded_exactly_as_received(upstream: ScriptedUpstream) -> None:
    """The head is kept byte for byte, fields in order and spelling, and looked up without regard to case."""
    upstream.default = reply("hi")
    sent = http_request("/v1/chat/completions?api-version=1&x=", headers="X-ODD: 1\r\nx-odd:  2 \r\n")
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(sent)
        await client.read_head()
    request = upstream.requests[0]
    assert request.raw_head + request.body == sent
    assert request.headers.pairs[1:3] == (("X-ODD", "1"), ("x-odd", "2"))
    assert (request.headers["x-Odd"], request.headers.get_all("X-odd")) == ("1", ("1", "2"))
    assert "x-none" not in request.headers
    assert (request.method, request.path, request.query) == (
        "POST",
        "/v1/chat/completions",
        {"api-version": "1", "x": ""},
    )
    assert request.document["messages"] == USER


async def test_chunked_requests_are_read_on_a_connection_kept_alive(upstream: ScriptedUpstream) -> None:
    """A chunked body is recorded without its framing, and the next request on the connection is still read."""
    upstream.default = document({"ok": True})
    chunked = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\nA\r\n0123456789\r\n0\r\n\r\n"
    )
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(chunked + http_request())
        for _ in range(2):
            await client.read_head()
            assert await client.read_body() == b'{"ok": true}'
    assert upstream.requests[0].body == b"{}\n0123456789"
    assert [(request.number, request.connection) for request in upstream.requests] == [(1, 1), (2, 1)]
    assert upstream.connections_opened == 1
    await upstream.wait_for(lambda: upstream.open_connections == 0)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
    ],
)
async def test_requests_that_are_not_http_are_refused_and_reported(upstream: ScriptedUpstream, head: bytes) -> None:
    """A malformed request gets 400, is reported, and is not recorded as a request."""
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(head)
        assert (await client.read_head()).status == 400
    assert (len(upstream.malformed), upstream.requests) == (1, [])


async def test_exchanges_run_at_the_same_time(upstream: ScriptedUpstream) -> None:
    """One exchange that waits does not hold up another; replies are taken in the order of arrival."""
    permits = asyncio.Semaphore(0)
    upstream.replies += [stepped(document("late"), permits), document("early")]
    async with RawClient("127.0.0.1", upstream.port) as first, RawClient("127.0.0.1", upstream.port) as second:
        await first.send(http_request())
        await upstream.wait_for(lambda: len(upstream.requests) == 1)
        await second.send(http_request())
        await second.read_head()
        assert await second.read_body() == b'"early"'
        permits.release()
        await first.read_head()
        assert await first.read_body() == b'"late"'
    assert upstream.connections_opened == 2


async def test_what_a_script_raises_fails_the_test() -> None:
    """A failed assertion in a script's function does not pass silently."""

    def refuse(_: RecordedRequest) -> Reply:
        raise AssertionError("unwanted")

    upstream = await ScriptedUpstream(default=refuse).__aenter__()
    async with RawClient("127.0.0.1", upstream.port) as client:
        await client.send(http_request())
        assert await client.read_until_close() == b""
    with pytest.raises(ExceptionGroup) as caught:
        await upstream.__aexit__(None, None, None)
    assert caught.group_contains(AssertionError, match="unwanted")


async def test_closing_ends_what_still_runs() -> None:
    """The upstream closes at once and leaves no task, even with exchanges that hang, wait or flood."""
    before = asyncio.all_tasks()
    async with (
        ScriptedUpstream([hang(), reply("hi", delay_seconds=math.inf), flood(64_000_000)]) as upstream,
        RawClient("127.0.0.1", upstream.port) as first,
        RawClient("127.0.0.1", upstream.port) as second,
        RawClient("127.0.0.1", upstream.port) as third,
        RawClient("127.0.0.1", upstream.port),
    ):
        for client in (first, second, third):
            await client.send(http_request(is_stream=True))
        await upstream.wait_for(lambda: len(upstream.requests) == 3 and upstream.open_connections == 4)
        await upstream.__aexit__(None, None, None)
        assert upstream.open_connections == 0
        assert asyncio.all_tasks() == before
        assert upstream.cancelled == []


async def test_waiting_in_vain_tells_the_state(upstream: ScriptedUpstream) -> None:
    """A wait that runs out says what the upstream has seen."""
    with pytest.raises(TimeoutError, match="0 requests"):
        await upstream.wait_for(lambda: False, seconds=0.01)
