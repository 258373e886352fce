"""A gateway whose database or disk fails: what goes on, what is refused, and that nothing is lost or doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import psutil
import pytest

from llmproxy.testing import FaultProxy, RawClient, ScriptedUpstream, hang, reply, stepped, stream
from llmproxy.testing.database import make_postgres
from tests.load_gateway import GatewayProcess
from tests.wire import CHAT, STREAM, Response, answer, head, process_config, request

READY = head(line=b"GET /health/ready HTTP/1.1", key=None)


@asynccontextmanager
async def in_front_of(database_url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A relay in front of a database, and the URL that leads through it."""
    parts = urlsplit(database_url)
    query = dict(parse_qsl(parts.query))
    host = query.pop("host", parts.hostname or "localhost")
    port = int(query.pop("port", parts.port or 5432))
    async with FaultProxy(host, port) as relay:
        credentials = parts.netloc.rpartition("@")[0] or "postgres"
        address = f"{credentials}@{relay.host}:{relay.port}"
        yield relay, parts._replace(netloc=address, query=urlencode(query)).geturl()


async def ask(gateway: GatewayProcess, data: bytes) -> Response:
    """The response to one request on a connection of its own."""
    async with RawClient("127.0.0.1", gateway.port) as connection:
        await connection.send(data)
        return await answer(connection)


async def readiness(gateway: GatewayProcess) -> tuple[int, str]:
    """The status of `/health/ready`, and in its own word."""
    response = await ask(gateway, READY)
    return response.status, response.document["status"]


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `check` answers True. Raises TimeoutError when it never does."""
    async with asyncio.timeout(20):
        while not await check():  # noqa: ASYNC110 what is waited for is in another process
            await asyncio.sleep(0.02)


async def until_ready(gateway: GatewayProcess, expected: tuple[int, str]) -> None:
    """Wait until `/health/ready` says this."""

    async def says_so() -> bool:
        return await readiness(gateway) == expected

    await eventually(says_so)


async def recorded(database_url: str, count: int) -> list[tuple[str, int]]:
    """Outcome of each request and number of its ledger rows, as soon as there are `count`."""
    query = """
        SELECT outcome, (SELECT count(*) FROM ledger_entries WHERE request_id = requests.id)::int AS entries
        FROM requests ORDER BY id
    """
    database = make_postgres(database_url)
    await database.open()

    async def are_there() -> bool:
        return len(await database.fetch(query)) >= count

    try:
        await eventually(are_there)
        rows = await database.fetch(query)
    finally:
        await database.close()
    return [(row["outcome"], row["entries"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Setting:
    """A gateway as a process, with a relay between it and its database."""

    gateway: GatewayProcess
    upstream: ScriptedUpstream
    relay: FaultProxy
    config: str
    database_url: str


@pytest.fixture
async def setting(database_url: str, tmp_path: Path) -> AsyncIterator[Setting]:
    """A running gateway and all that is around it; its provider answers `hi` unless told otherwise."""
    async with AsyncExitStack() as stack:
        relay, url = await stack.enter_async_context(in_front_of(database_url))
        upstream = await stack.enter_async_context(ScriptedUpstream(default=reply("hi")))
        config = process_config(url, upstream)
        gateway = await stack.enter_async_context(GatewayProcess(config, tmp_path))
        yield Setting(gateway, upstream, relay, config, database_url)


@pytest.mark.parametrize("fault", ["refused", "mute"])
async def test_requests_go_on_without_the_database(setting: Setting, fault: str) -> None:
    """With Postgres gone, or mute, requests are served as before and readiness says so; later each has its one row."""
    gateway, relay = setting.gateway, setting.relay
    assert (await ask(gateway, request())).status == 200
    assert await recorded(setting.database_url, 1) == [("succeeded", 1)]
    if fault == "mute":
        relay.pause()
    else:
        lose(relay)
    await until_ready(gateway, (200, "degraded"))
    statuses = [(await ask(gateway, request(body))).status for body in [CHAT, STREAM] * 10]
    assert statuses == [200] * 20
    relay.resume()
    await relay.accept()
    await until_ready(gateway, (200, "ok"))
    assert await recorded(setting.database_url, 21) == [("succeeded", 1)] * 21


async def test_a_full_disk_refuses_requests_and_loses_none(setting: Setting) -> None:
    """When the journal cannot be written, requests are 503 before anything is sent; what runs ends and is recorded.

    Once there is room again the worker goes on by itself.
    """
    gateway, upstream = setting.gateway, setting.upstream
    permits = asyncio.Semaphore(3)
    upstream.replies.extend([stepped(stream("one ", "two"), permits), hang()])
    async with RawClient("127.0.0.1", gateway.port) as staying, RawClient("127.0.0.1", gateway.port) as leaving:
        await staying.send(request(STREAM))
        await staying.read_until(b"two")
        await leaving.send(request())
        await upstream.wait_for(lambda: len(upstream.requests) == 2)
        fill_disk(gateway)
        refused = [await ask(gateway, request(body)) for body in (CHAT, STREAM)]
        leaving.reset()
        for _ in range(3):
            permits.release()
        assert b"data: [DONE]\n\n" in await staying.read_until(b"\r\n0\r\n\r\n")
    assert [(each.status, each.error["code"]) for each in refused] == [(503, "storage_unavailable")] * 2
    assert "journal cannot be written" in refused[0].error["message"]
    assert await readiness(gateway) == (503, "unavailable")
    await upstream.wait_for(lambda: len(upstream.cancelled) == 1)
    make_room(gateway)
    await until_ready(gateway, (200, "ok"))
    assert (await ask(gateway, request())).status == 200
    # The first of those refused was the one to find out, when it was about to be sent.
    rows = [("succeeded", 1), ("disconnected", 1), ("failed", 1), ("succeeded", 1)]
    assert await recorded(setting.database_url, 4) == rows
    assert len(upstream.requests) == 3


async def test_rows_outlive_a_stop_without_a_database(setting: Setting, tmp_path: Path) -> None:
    """Rows that could not be shipped before a stop are shipped by the next start."""
    lose(setting.relay)
    await until_ready(setting.gateway, (200, "degraded"))
    assert (await ask(setting.gateway, request())).status == 200
    assert await setting.gateway.stop() == 0
    await setting.relay.accept()
    async with GatewayProcess(setting.config, tmp_path):
        assert await recorded(setting.database_url, 1) == [("succeeded", 1)]


def lose(relay: FaultProxy) -> None:
    """Take the database away."""
    relay.refuse()
    relay.cut()


def fill_disk(gateway: GatewayProcess) -> None:
    """Let the worker's files grow no further."""
    (segment,) = gateway.journal.glob("*.log")
    limit_files(gateway, segment.stat().st_size)


def make_room(gateway: GatewayProcess) -> None:
    """Let them grow again."""
    limit_files(gateway, psutil.RLIM_INFINITY)


def limit_files(gateway: GatewayProcess, size_bytes: int) -> None:
    """The most that a file of the worker may become."""
    (worker,) = gateway.workers
    psutil.Process(worker).rlimit(psutil.RLIMIT_FSIZE, (size_bytes, psutil.RLIM_INFINITY))
