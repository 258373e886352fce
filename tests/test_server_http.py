"""Requests as honest clients send them: methods, paths, connections, header fields, and how responses leave."""

from __future__ import annotations

import asyncio
import re
import socket
from urllib.parse import urlsplit

from llmproxy.testing import (
    ProxyClient,
    StartProxy,
    fail,
    gzip,
    hang_after,
    reply,
    slow_head,
    stream,
    with_headers,
)
from llmproxy.testing.running_proxy import UPSTREAM_KEY
from tests.wire import CHAT, STREAM, Response, answer, ask, conversation, dial, head, request

# Paths and methods


async def test_paths_take_the_methods_they_say(proxy: StartProxy) -> None:
    """Another method is a 405 that names the right ones, in words and in `allow`."""
    asked = {
        "GET /v1/chat/completions": (405, "POST"),
        "HEAD /v1/chat/completions": (405, "POST"),
        "OPTIONS /v1/chat/completions": (405, "POST"),
        "PUT /v1/embeddings": (405, "POST"),
        "PROPFIND /v1/completions": (405, "POST"),
        "POST /v1/models": (405, "GET"),
        "DELETE /health/live": (405, "GET"),
        "OPTIONS *": (404, None),
        "GET /": (404, None),
        "GET /v1": (404, None),
        "POST /v1/chat/completions/": (404, None),
        "POST //v1/chat/completions": (404, None),
        "POST /v1/../v1/chat/completions": (404, None),
        "POST /v2/chat/completions": (404, None),
        "GET /v1/mod%C3%A9ls": (404, None),
        "GET /%FF%FE": (404, None),
    }
    async with proxy() as client:
        seen = {}
        for line in asked:
            got = await without_body(client, line)
            seen[line] = (got.status, got.headers.get("allow"))
        assert client.upstream.requests == []
    assert seen == asked


async def test_one_path_may_be_written_in_many_ways(proxy: StartProxy) -> None:
    """A query, a fragment and percent-encoding lead to the same place, as does leaving out /v1."""
    targets = (
        b"/v1/chat/completions?api-version=2024-10-21",
        b"/v1/chat/completions?x=%0d%0a&y",
        b"/v1/%63hat/completions",
        b"/v1/chat/completions#here",
        b"/chat/completions",
    )
    async with proxy() as client:
        client.upstream.default = reply("hi")
        for target in targets:
            assert (target, (await ask(client, request(line=b"POST %b HTTP/1.1" % target))).status) == (target, 200)
        assert {sent.target for sent in client.upstream.requests} == {"/v1/chat/completions"}


# Connections


async def test_a_connection_serves_many_requests(proxy: StartProxy) -> None:
    """Answers, streams and refusals leave the connection open for the next request."""
    async with proxy(upstream=[reply("a"), stream("b"), fail(500), reply("c")]) as client, dial(client) as connection:
        statuses = []
        for body in (CHAT, STREAM, CHAT, b"{}", CHAT):
            await connection.send(request(body))
            statuses.append((await answer(connection)).status)
    assert statuses == [200, 200, 502, 400, 200]


async def test_pipelined_requests_are_answered_in_order(proxy: StartProxy) -> None:
    """Requests sent without waiting are answered one after the other, the slow first before the fast second."""
    replies = [slow_head(reply("one"), 0.3), reply("two"), stream("three"), reply("four")]
    async with proxy(upstream=replies) as client, dial(client) as connection:
        await connection.send(request() + request() + request(STREAM) + request())
        bodies = [(await answer(connection)).body for _ in replies]
    assert [re.findall(rb"one|two|three|four", body) for body in bodies] == [[b"one"], [b"two"], [b"three"], [b"four"]]


async def test_a_client_that_wants_the_connection_closed_gets_it_closed(proxy: StartProxy) -> None:
    """`Connection: close` and HTTP/1.0 end the connection after the response, whole or streamed."""
    close = b"Connection: close"
    old = b"POST /v1/chat/completions HTTP/1.0"
    async with proxy() as client:
        client.upstream.default = stream("hi")
        for data in (request(CHAT, close), request(STREAM, close), request(CHAT, line=old)):
            (got,) = await conversation(client, data)
            assert (got.status, b"hi" in got.body) == (200, True)


async def test_http_1_0_streams_without_chunks(proxy: StartProxy) -> None:
    """A client of HTTP/1.0 gets plain events that end with the connection."""
    async with proxy(upstream=[stream("hi")]) as client, dial(client) as connection:
        await connection.send(request(STREAM, line=b"POST /v1/chat/completions HTTP/1.0"))
        head_, _, body = (await connection.read_until_close()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head_.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


# How responses leave


async def test_head_and_answer_leave_together(proxy: StartProxy) -> None:
    """The head and a whole answer, and the head and the first events of a stream, are one segment each."""
    async with proxy(upstream=[reply("hello"), hang_after(2)]) as client:
        whole = await first_segment(client, request())
        streamed = await first_segment(client, request(STREAM))
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"content": "hello"' in whole
    assert whole.endswith(b"}")
    assert streamed.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"content":"word1 "' in streamed


async def test_small_writes_leave_at_once(proxy: StartProxy) -> None:
    """Nagle's algorithm is off towards clients, so that no event waits for an acknowledgement."""
    async with proxy(upstream=[hang_after(2)]) as client, dial(client) as connection:
        await connection.send(request(STREAM))
        await connection.read_head()
        (protocol,) = client.app.server.connections
        assert protocol.transport is not None
        wire = protocol.transport.get_extra_info("socket")
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_a_response_to_head_has_no_body(proxy: StartProxy) -> None:
    """The connection goes on right behind the head of a response to HEAD."""
    async with proxy() as client, dial(client) as connection:
        await connection.send(head(line=b"HEAD /health/live HTTP/1.1") + head(line=b"GET /health/live HTTP/1.1"))
        assert (await connection.read_head()).status == 405
        assert (await connection.read_head()).status == 200


async def test_streams_say_that_they_are_not_to_be_buffered(proxy: StartProxy) -> None:
    """A stream's head has what proxies and browsers need to pass events on as they come."""
    async with proxy(upstream=[stream("hi")]) as client:
        headers = (await ask(client, request(STREAM))).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


async def test_every_answer_says_where_it_came_from(proxy: StartProxy) -> None:
    """Whole answers, streams and refusals have the request's id; answers name provider and model."""
    async with proxy(upstream=[reply("hi"), stream("hi"), fail(400)]) as client:
        got = [await ask(client, request(body)) for body in (CHAT, STREAM, CHAT)]
        ids = [str(row["id"]) for row in (await client.rows()).requests]
    assert [each.headers["x-llmproxy-request-id"] for each in got] == ids
    assert {each.headers["x-llmproxy-model"] for each in got} == {"upstream/test-model"}
    assert {each.headers["x-llmproxy-attempts"] for each in got} == {"1"}
    assert [each.headers.get("x-llmproxy-cost-usd") for each in got] == ["0.000020", None, None]


# Header fields that must not pass

PRIVATE = (
    b"Cookie: session=1",
    b"x-api-key: sk-the-clients-other-key",
    b"api-key: sk-the-clients-other-key",
    b"x-goog-api-key: sk-the-clients-other-key",
    b"Proxy-Authorization: Basic eDp5",
    b"X-Forwarded-For: 10.0.0.1",
    b"X-Forwarded-Host: internal",
    b"Forwarded: for=10.0.0.1",
    b"X-Real-IP: 10.0.0.1",
    b"x-llmproxy-user: ann",
    b"x-llmproxy-metadata: {}",
    b"TE: trailers",
    b"Trailer: X-A",
    b"Keep-Alive: timeout=5",
    b"Upgrade: h2c",
    b"Connection: keep-alive, x-hop",
    b"x-hop: 1",
    b"Accept-Encoding: gzip, br",
    b"Origin: https://internal.example",
    b"Referer: https://internal.example",
    b"OpenAI-Organization: org-of-the-client",
    b"x-anything-else: 1",
)


async def test_clients_fields_stay_here(proxy: StartProxy) -> None:
    """A provider sees the gateway's key, the body's type and what SDKs need; no credential or address of a client."""
    async with proxy(upstream=[reply("hi"), stream("hi")]) as client:
        for body in (CHAT, STREAM):
            sent = request(body, *PRIVATE, b"User-Agent: OpenAI/Python", b"Idempotency-Key: 7", b"OpenAI-Beta: x=1")
            assert (await ask(client, sent)).status == 200
        whole, streamed = client.upstream.requests
    names = {name.lower() for name, _ in whole.headers.pairs}
    assert names == {
        "host", "accept", "content-type", "content-length", "accept-encoding", "authorization", "user-agent",
        "idempotency-key", "openai-beta",
    }  # fmt: skip
    assert {name.lower() for name, _ in streamed.headers.pairs} == names
    assert whole.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert (whole.headers["accept-encoding"], streamed.headers["accept"]) == ("identity", "text/event-stream")
    assert client.key.encode() not in whole.raw_head + streamed.raw_head


HOPS = (
    ("Set-Cookie", "session=1"),
    ("Server", "cloudflare"),
    ("Via", "1.1 internal"),
    ("Alt-Svc", 'h3=":443"'),
    ("Strict-Transport-Security", "max-age=1"),
    ("Access-Control-Allow-Origin", "*"),
    ("Keep-Alive", "timeout=5"),
    ("Connection", "keep-alive"),
    ("Proxy-Authenticate", "Basic"),
    ("Trailer", "X-A"),
    ("X-Internal", "1"),
    ("Cache-Control", "max-age=600"),
    ("Content-Disposition", "attachment"),
)
KEPT = (
    ("x-request-id", "req-7"),
    ("x-ratelimit-remaining-tokens", "99"),
    ("openai-processing-ms", "12"),
)


async def test_a_providers_fields_stay_there(proxy: StartProxy) -> None:
    """Clients see request ids, rate limits and timings of a provider, and nothing else of its head."""
    scripts = [with_headers(script, *HOPS, *KEPT[1:]) for script in (reply("hi"), stream("hi"), fail(429))]
    async with proxy(upstream=scripts) as client:
        got = [await ask(client, request(body)) for body in (CHAT, STREAM, CHAT)]
    for each in got:
        names = {name.lower() for name, _ in each.headers.pairs}
        assert names.isdisjoint({name.lower() for name, _ in HOPS} - {"server", "cache-control"})
        assert each.headers["server"] == "llmproxy"
        assert "max-age" not in each.headers.get("cache-control", "")
        assert {name: each.headers[name] for name, _ in KEPT[1:]} == dict(KEPT[1:])
        assert each.headers["x-request-id"].startswith("req-")


async def test_a_providers_fields_cannot_break_the_response(proxy: StartProxy) -> None:
    """A control character in a field that would be passed on costs the field, not the answer."""
    spoilt = with_headers(reply("hi"), ("x-ratelimit-limit-tokens", "1\x012"), ("openai-version", "\xff"))
    async with proxy(upstream=[spoilt]) as client:
        got = await ask(client, request())
    assert (got.status, "x-ratelimit-limit-tokens" in got.headers) == (200, False)


async def test_a_compressed_answer_reaches_the_client_plain(proxy: StartProxy) -> None:
    """A provider that compresses unasked is decoded; the client sees neither the bytes nor the header."""
    async with proxy(upstream=[gzip(reply("hello")), gzip(stream("hello"))]) as client:
        for body in (CHAT, STREAM):
            got = await ask(client, request(body, b"Accept-Encoding: gzip"))
            assert (got.status, b"hello" in got.body, "content-encoding" in got.headers) == (200, True, False)


async def first_segment(client: ProxyClient, data: bytes) -> bytes:
    """What one receive from the socket gets: all that had been sent by then."""
    loop = asyncio.get_running_loop()
    with socket.socket() as wire:
        wire.setblocking(False)  # noqa: FBT003 the standard library's signature
        await loop.sock_connect(wire, ("127.0.0.1", urlsplit(client.origin).port))
        await loop.sock_sendall(wire, data)
        async with asyncio.timeout(5):
            return await loop.sock_recv(wire, 65_536)


async def without_body(client: ProxyClient, line: str) -> Response:
    """The response to a request without a body; of a response to HEAD only the head."""
    async with dial(client) as connection:
        await connection.send(head(line=f"{line} HTTP/1.1".encode()))
        if not line.startswith("HEAD"):
            return await answer(connection)
        received = await connection.read_head()
        return Response(received.status, received.fields, b"")
