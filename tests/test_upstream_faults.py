"""Providers that fail, lie, hang or flood, seen by a client of the running gateway and in its records."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from llmproxy.api import Chunk, Exchange, Section, Services, hookimpl
from llmproxy.request import Document
from llmproxy.testing import (
    Ending,
    RawClient,
    Reply,
    ScriptedUpstream,
    StartProxy,
    cut_after,
    cut_mid_event,
    document,
    end_without_done,
    error_event_after,
    error_in_200,
    events,
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
)
from tests.load_gateway import GatewayProcess
from tests.wire import STREAM, dial, process_config, request

# Long enough for a busy machine to answer in, short enough to wait for.
TIMERS = {"connect_seconds": 0.4, "first_byte_seconds": 0.4, "idle_seconds": 0.4}
# For providers that begin to answer at once: however busy the machine is, that is not what fails.
PATIENT = {**TIMERS, "first_byte_seconds": 20}
FLOOD_BYTES = 200_000_000
# What the kernel may hold of a flood: send and receive buffers of two connections, each of several megabytes.
KERNEL_BYTES = 40_000_000
HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: 15\r\n\r\n<html>no</html>"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
GZIP = JSON + b"Content-Encoding: gzip\r\n"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def lines_ending_in(line_end: bytes) -> Reply:
    """A stream whose lines end otherwise than usual."""
    good = stream("one ", "two")
    return good.changed(
        lambda message: replace(message, pieces=[piece.replace(b"\n", line_end) for piece in message.pieces])
    )


def cut_into(size: int) -> Reply:
    """A stream whose chunks end anywhere but at the end of an event."""

    def cut(whole: bytes) -> Sequence[bytes]:
        return [whole[at : at + size] for at in range(0, len(whole), size)]

    return stream("one ", "two").changed(lambda message: replace(message, pieces=cut(b"".join(message.pieces))))


def commented() -> Reply:
    """A stream with comments, empty events and fields that no SDK knows between its events."""
    noise = b": ping\n\nevent: x\nid: 1\nretry: 1\n\n\n\n"
    return stream("one ", "two").changed(
        lambda message: replace(message, pieces=[part for piece in message.pieces for part in (noise, piece)])
    )


def without_end_mark() -> Reply:
    """A complete stream that leaves out `[DONE]`."""
    return stream("one ", "two").changed(lambda message: replace(message, pieces=list(message.pieces)[:-1]))


# Before the first content


FAILURES: dict[str, tuple[Reply, int, str]] = {
    "no answer": (nothing(), 502, "upstream_cut"),
    "garbage": (garbage(), 502, "upstream_broken"),
    "no head": (hang(), 504, "upstream_first_byte_timeout"),
    "late head": (slow_head(reply("late"), 30), 504, "upstream_first_byte_timeout"),
    "no body": (hang_after(0), 504, "upstream_first_byte_timeout"),
    "no content": (hang_after(1), 504, "upstream_idle_timeout"),
    "cut head": (raw(JSON + b"Content-Le"), 502, "upstream_cut"),
    "cut at once": (cut_after(0), 502, "upstream_cut"),
    "cut before content": (cut_after(1), 502, "upstream_cut"),
    "closed before content": (cut_after(1, ending=Ending.CLOSE), 502, "upstream_cut"),
    "an empty body": (raw(JSON + b"Content-Length: 0\r\n\r\n"), 502, "upstream_broken"),
    "a list": (document([1]), 502, "upstream_broken"),
    "bytes that are no text": (raw(JSON + b"Content-Length: 4\r\n\r\n\xff\xfe{}"), 502, "upstream_broken"),
    "false compression": (raw(GZIP + b"Content-Length: 4\r\n\r\n\xff\xfe{}"), 502, "upstream_cut"),
    "redirect": (fail(307, headers=[("Location", "http://127.0.0.1:1/")]), 502, "upstream_broken"),
    "error in 200": (error_in_200(code="rate_limit_exceeded"), 429, "rate_limit_exceeded"),
    "unclear error in 200": (error_in_200(code="oops"), 502, "oops"),
    "error without end": (cut_after(1, fail(500)), 502, "upstream_cut"),
}  # fmt: skip
STREAM_FAILURES: dict[str, tuple[Reply, int, str]] = {
    "a page": (raw(HTML), 502, "upstream_cut"),
    "only comments": (events(b": ping\n\n", b": ping\n\n"), 502, "upstream_cut"),
    "only the end mark": (events(b"data: [DONE]\n\n"), 502, "upstream_broken"),
    "no JSON": (events(b"data: hello\n\n", b"data: [DONE]\n\n"), 502, "upstream_broken"),
    "end before content": (end_without_done(1), 502, "upstream_cut"),
    "error event first": (error_event_after(0, code="rate_limit_exceeded"), 429, "rate_limit_exceeded"),
    "error event second": (error_event_after(1, type_="overloaded_error"), 503, "service_unavailable"),
}


async def test_failures_before_content_are_proper_errors(proxy: StartProxy) -> None:
    """Until the first content a failure is an HTTP status with a code, also for streams, and the attempt's row."""
    shared = [(name, case, is_stream) for name, case in FAILURES.items() for is_stream in (False, True)]
    cases = [*shared, *((name, case, True) for name, case in STREAM_FAILURES.items())]
    async with proxy(upstream=[case[0] for _, case, _ in cases], config={"timeouts": TIMERS}) as client:
        for name, (_, status, code), is_stream in cases:
            got = await client.chat(stream=is_stream)
            assert (name, got.status, got.document["error"]["code"]) == (name, status, code)
            assert got.headers["content-type"] == "application/json"
            assert got.headers["x-llmproxy-attempts"] == "1"
        rows = await client.rows()
    expected = [(status, code) for _, (_, status, code), _ in cases]
    assert [(row["http_status"], row["error_code"]) for row in rows.requests] == expected
    assert [row["error_code"] for row in rows.attempts] == [code for _, code in expected]
    assert {row["outcome"] for row in rows.requests} == {"failed"}
    assert all(row["failure"] for row in rows.attempts)
    assert len(rows.ledger) == len(cases)


async def test_connecting_has_a_timer_of_its_own(proxy: StartProxy, silent_port: int) -> None:
    """A provider that never shakes hands is `upstream_connect_timeout`, and costs nothing."""
    silent = {"kind": "openai", "base_url": f"https://127.0.0.1:{silent_port}/v1", "timeouts": {"connect_seconds": 0.3}}
    async with proxy(config={"providers": {"silent": silent}}) as client:
        got = await client.chat(model="silent/m")
        (row,) = (await client.rows()).requests
    assert (got.status, got.document["error"]["code"]) == (504, "upstream_connect_timeout")
    assert (row["usage_provenance"], row["cost_usd"]) == (None, None)


async def test_a_client_may_limit_the_whole(proxy: StartProxy) -> None:
    """`x-llmproxy-timeout` ends an attempt that goes on and on, before its first content and after it."""
    words = stream(*"abcdefghijklmnopqrstuvwxyz" * 10, delay_seconds=0.05)
    async with proxy(upstream=[hang(), hang(), words]) as client:
        limit = {"x-llmproxy-timeout": "0.3"}
        early = [await client.chat(stream=is_stream, headers=limit) for is_stream in (False, True)]
        late = await client.chat(stream=True, headers=limit)
    assert [(got.status, got.document["error"]["code"]) for got in early] == [(504, "upstream_total_timeout")] * 2
    assert late.text.startswith("a")
    assert late.events[-1]["error"]["code"] == "upstream_total_timeout"


# After it


LATE_FAILURES: dict[str, tuple[Reply, str]] = {
    "reset": (cut_after(3), "upstream_cut"),
    "closed": (cut_after(3, ending=Ending.CLOSE), "upstream_cut"),
    "reset within an event": (cut_mid_event(3), "upstream_cut"),
    "end without a finish": (end_without_done(3), "upstream_cut"),
    "silence": (hang_after(3), "upstream_idle_timeout"),
    "error event": (error_event_after(3, code="server_is_overloaded"), "server_is_overloaded"),
}


async def test_failures_after_content_are_error_events(proxy: StartProxy) -> None:
    """What breaks later keeps what came, adds a typed error, ends without `[DONE]`, and is recorded as a failure."""
    scripts = [script for script, _ in LATE_FAILURES.values()]
    async with proxy(upstream=scripts, config={"timeouts": PATIENT}) as client:
        for name, (_, code) in LATE_FAILURES.items():
            got = await client.chat(stream=True)
            assert (name, got.status, got.text, got.is_done) == (name, 200, "word1 word2 ", False)
            error = got.events[-1]["error"]
            assert (name, error["code"]) == (name, code)
            assert error["llmproxy"]["request_id"] == got.headers["x-llmproxy-request-id"]
            assert error["message"]
        rows = await client.rows()
    assert [row["error_code"] for row in rows.requests] == [code for _, code in LATE_FAILURES.values()]
    assert {(row["outcome"], row["http_status"]) for row in rows.requests} == {("failed", 200)}
    assert {(row["usage_provenance"], row["text_output_tokens"] > 0) for row in rows.requests} == {("estimated", True)}
    assert all(row["amount_usd"] > 0 for row in rows.ledger)


async def test_good_streams_are_good_in_any_shape(proxy: StartProxy) -> None:
    """However a provider cuts, ends, decorates or packs its events, the client gets one honest stream."""
    shapes = {
        "plain": stream("one ", "two"),
        "one byte at a time": one_byte_at_a_time(stream("one ", "two")),
        "compressed": gzip(stream("one ", "two")),
        "CRLF": lines_ending_in(b"\r\n"),
        "CR": lines_ending_in(b"\r"),
        "half events": cut_into(50),
        "tiny pieces": cut_into(3),
        "comments": commented(),
        "no end mark": without_end_mark(),
        "no role": stream("one ", "two", include_role=False),
        "silent after the finish": hang_after(4, stream("one ", "two", usage=None)),
        "silent after the end": stream("one ", "two").changed(lambda sent: replace(sent, ending=Ending.SILENCE)),
    }
    async with proxy(upstream=shapes.values(), config={"timeouts": PATIENT}) as client:
        for name in shapes:
            got = await client.chat(stream=True)
            assert (name, got.status, got.text, got.is_done) == (name, 200, "one two", True)
        rows = await client.rows()
    assert {row["outcome"] for row in rows.requests} == {"succeeded"}
    assert {tuple(row["finish_reasons"]) for row in rows.requests} == {("stop",)}


async def test_a_stream_to_who_wanted_none_is_put_together(proxy: StartProxy) -> None:
    """Events in answer to a request for no stream become the whole answer that was asked for."""
    as_events = events(
        b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n',
        b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    )
    async with proxy(upstream=[as_events]) as client:
        got = await client.chat()
    assert (got.status, got.headers["content-type"], got.text) == (200, "application/json", "hi")


async def test_a_whole_answer_to_who_wanted_a_stream_becomes_one(proxy: StartProxy) -> None:
    """A provider that knows no streams is no reason for the client to change: text, tool calls and usage arrive."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "hi", "tool_calls": [call]}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    whole = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "usage": usage,
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
    }
    async with proxy(upstream=[document(whole), document(whole)]) as client:
        plain = await client.chat(stream=True)
        asked = await client.chat(stream=True, stream_options={"include_usage": True})
        rows = await client.rows()
    assert (plain.status, plain.text, plain.is_done) == (200, "hi", True)
    assert plain.events[0]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
    assert [event["choices"][0]["finish_reason"] for event in plain.events] == [None, "tool_calls"]
    assert [event.get("usage") for event in asked.events] == [None, None, usage]
    assert {(row["outcome"], row["usage_provenance"]) for row in rows.requests} == {("succeeded", "measured")}


async def test_usage_is_recorded_and_shown_only_to_who_asked(proxy: StartProxy) -> None:
    """The provider is always asked for usage; the event reaches the client that asked, the row in either case."""
    async with proxy(upstream=[stream("hi"), stream("hi")]) as client:
        hidden = await client.chat(stream=True)
        shown = await client.chat(stream=True, stream_options={"include_usage": True})
        rows = await client.rows()
        assert all(sent.includes_usage for sent in client.upstream.requests)
    assert [event for event in hidden.events if event.get("usage")] == []
    assert [event["usage"]["completion_tokens"] for event in shown.events if event.get("usage")] == [5]
    assert {(row["text_output_tokens"], row["usage_provenance"]) for row in rows.requests} == {(5, "measured")}


# While the provider thinks


@pytest.mark.parametrize(
    ("script", "text", "code"),
    [(stream("at ", "last"), "at last", None), (fail(500, code="oops"), "", "oops")],
    ids=["answer", "error"],
)
async def test_comments_fill_the_silence(proxy: StartProxy, script: Reply, text: str, code: str | None) -> None:
    """A stream that is long in coming is kept alive by comments; then comes the answer, or an error event."""
    async with proxy(upstream=[slow_head(script, 2.2)], config={"server": {"heartbeat_seconds": 0.1}}) as client:
        got = await client.chat(stream=True)
        (row,) = (await client.rows()).requests
    assert (got.status, got.text, got.is_done) == (200, text, code is None)
    assert got.body.startswith(b": keep-alive\n\n")
    assert got.headers["x-llmproxy-request-id"] == str(row["id"])
    assert (row["error_code"], row["outcome"]) == (code, "failed" if code else "succeeded")
    assert [event["error"]["code"] for event in got.events if "error" in event] == ([code] if code else [])


async def test_whole_answers_are_never_begun_early(proxy: StartProxy) -> None:
    """No comment goes before an answer that is no stream."""
    config = {"server": {"heartbeat_seconds": 0.1}}
    async with proxy(upstream=[reply("at last", delay_seconds=2.2)], config=config) as client:
        got = await client.chat()
    assert (got.status, got.text) == (200, "at last")


# While the client is slow, or gone


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize(
    ("script", "tokens"), [(hang(), 0), (hang_after(1), 1), (hang_after(4), 4)], ids=["waiting", "begun", "streaming"]
)
async def test_hanging_up_stops_the_provider(proxy: StartProxy, script: Reply, tokens: int, leave: str) -> None:
    """A client that leaves, however and whenever, ends the attempt at once; the row says so, with estimated usage."""
    async with proxy(upstream=[script]) as client:
        async with dial(client) as connection:
            await connection.send(request(STREAM))
            if tokens == 4:
                await connection.read_until(b"word3")
            else:
                await client.upstream.wait_for(
                    lambda: [sent.events_sent for sent in client.upstream.exchanges] == [tokens]
                )
            if leave == "reset":
                connection.reset()
        await client.upstream.wait_for(lambda: len(client.upstream.cancelled) == 1, seconds=2)
        rows = await client.rows()
    assert [(row["outcome"], row["error_code"]) for row in rows.requests] == [("disconnected", "client_disconnected")]
    assert rows.requests[0]["usage_provenance"] == "estimated"
    assert tokens <= rows.requests[0]["text_output_tokens"] <= 2 * tokens
    assert len(rows.ledger) == 1


async def test_a_slow_client_is_no_silent_provider(proxy: StartProxy) -> None:
    """While a client does not read, the provider's idle timer stands still; then everything arrives."""
    size = 20_000_000
    async with proxy(upstream=[flood(size)], config={"timeouts": PATIENT}) as client, dial(client) as connection:
        await connection.send(request(STREAM))
        await connection.read_head()
        await settled(client.upstream, seconds=3 * TIMERS["idle_seconds"])
        body = await connection.read_body()
        (row,) = (await client.rows()).requests
    assert len(body) > size
    assert body.endswith(b"data: [DONE]\n\n")
    assert row["outcome"] == "succeeded"


async def test_a_client_that_does_not_read_stops_the_flood(proxy: StartProxy) -> None:
    """What the provider can send ahead of a client that does not read is what the kernel's buffers hold."""
    async with proxy(upstream=[flood(FLOOD_BYTES)]) as client, dial(client) as connection:
        await connection.send(request(STREAM))
        await connection.read_head()
        accepted = await settled(client.upstream, seconds=1)
        assert 0 < accepted < KERNEL_BYTES


async def test_a_client_that_never_reads_is_dropped(proxy: StartProxy) -> None:
    """After `write_seconds` without progress the connection is broken off and the provider stopped."""
    config = {"server": {"write_seconds": 0.3}}
    async with proxy(upstream=[flood(FLOOD_BYTES)], config=config) as client, dial(client) as connection:
        await connection.send(request(STREAM))
        await connection.read_head()
        await client.upstream.wait_for(lambda: len(client.upstream.cancelled) == 1)
        (row,) = (await client.rows()).requests
        assert client.upstream.exchanges[0].bytes_accepted < KERNEL_BYTES
    assert (row["outcome"], row["error_code"]) == ("disconnected", "client_disconnected")
    assert row["usage_provenance"] == "estimated"


async def test_memory_stays_bounded_under_a_flood(database_url: str, tmp_path: Path) -> None:
    """A worker whose client does not read 200 MB does not hold them either."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream([flood(FLOOD_BYTES)] * 5))
        gateway = await stack.enter_async_context(GatewayProcess(process_config(database_url, upstream), tmp_path))
        worker = psutil.Process(gateway.workers[0])
        before = worker.memory_info().rss
        for _ in range(5):
            client = await stack.enter_async_context(RawClient("127.0.0.1", gateway.port))
            await client.send(request(STREAM))
            await client.read_head()
        accepted = await settled(upstream, seconds=1)
        growth = worker.memory_info().rss - before
    assert accepted < 5 * KERNEL_BYTES
    assert growth < 50_000_000


# Plugins that listen


class Scripted:
    """Does to each event what the prompt says."""

    name: ClassVar[str] = "scripted"
    Config: ClassVar[type[Section]] = Section

    def __init__(self, config: Section, services: Services) -> None:
        self.held: list[Chunk] = []

    @hookimpl
    def on_stream_chunk(self, exchange: Exchange, chunk: Chunk) -> Sequence[Chunk] | None:
        wish = exchange.request.document["messages"][0]["content"]
        content = said(chunk.document)
        match wish:
            case "change" if content:
                return [Chunk(document=saying(chunk.document, content.upper()))]
            case "swallow" if content == "two":
                return []
            case "multiply" if content:
                return [chunk, chunk]
            case "hold":
                return self._hold(chunk)
            case "raise" if content == "two":
                raise RuntimeError("A secret of the plugin.")
            case "raise first":
                raise RuntimeError("A secret of the plugin.")
            case "raise last" if chunk.last:
                raise RuntimeError("A secret of the plugin.")
        return None

    def _hold(self, chunk: Chunk) -> Sequence[Chunk]:
        if chunk.last:
            held, self.held = self.held, []
            return held
        self.held.append(chunk)
        return []


async def test_a_listener_decides_what_the_client_sees(proxy: StartProxy) -> None:
    """Events may be changed, swallowed, multiplied and held back to the end; usage is recorded all the same."""
    texts = {"look": "one two", "change": "ONE TWO", "swallow": "one ", "multiply": "one one twotwo", "hold": "one two"}
    async with proxy(Scripted, upstream=[stream("one ", "two")] * len(texts)) as client:
        for wish, text in texts.items():
            got = await client.chat(wish, stream=True)
            assert (wish, got.status, got.text, got.is_done) == (wish, 200, text, True)
        rows = await client.rows()
    assert {(row["outcome"], row["text_output_tokens"]) for row in rows.requests} == {("succeeded", 5)}


async def test_a_listener_that_raises_ends_the_stream_honestly(proxy: StartProxy) -> None:
    """A plugin's failure is an error event that names the plugin and no more; before the first event, a 500."""
    async with proxy(Scripted, upstream=[stream("one ", "two", delay_seconds=0.1)] * 3) as client:
        late = [await client.chat(wish, stream=True) for wish in ("raise", "raise last")]
        early = await client.chat("raise first", stream=True)
        rows = await client.rows()
        assert client.upstream.open_connections <= 3
    for got in late:
        error = got.events[-1]["error"]
        assert (got.status, got.is_done, error["code"], "scripted" in error["message"]) == (
            200,
            False,
            "plugin_error",
            True,
        )
        assert b"secret" not in got.body
    assert (early.status, early.document["error"]["code"]) == (500, "plugin_error")
    assert early.headers["content-length"] == str(len(early.body))
    assert [(row["outcome"], row["error_code"]) for row in rows.requests] == [("failed", "plugin_error")] * 3


def said(event: Document | None) -> str:
    """The content of a chat event."""
    choices = (event or {}).get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def saying(event: Document | None, content: str) -> Document:
    """A chat event with other content."""
    choices: list[dict[str, Any]] = (event or {})["choices"]  # JSON as it came
    return {**(event or {}), "choices": [{**choices[0], "delta": {"content": content}}]}


async def settled(upstream: ScriptedUpstream, *, seconds: float) -> int:
    """How many bytes the provider got rid of, once that has not changed for this long."""
    loop = asyncio.get_running_loop()
    accepted, since = -1, loop.time()

    def is_settled() -> bool:
        nonlocal accepted, since
        so_far = sum(exchange.bytes_accepted for exchange in upstream.exchanges)
        if so_far != accepted:
            accepted, since = so_far, loop.time()
        return loop.time() - since >= seconds

    await wait_until(is_settled, 20)
    return accepted
