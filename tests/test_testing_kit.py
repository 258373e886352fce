"""The clock, the fault proxy and the raw client of the test kit do what tests rely on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.services import Clock as ClockProtocol
from llmproxy.testing import Clock, FaultProxy, RawClient, ScriptedUpstream, document, raw, wait_until
from llmproxy.testing.http1 import MalformedMessageError

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
DELAYS = st.lists(st.integers(1, 2_000_000).map(lambda count: count / 1_000_000), max_size=8)


# The clock


async def test_the_clock_stands_still_until_advanced() -> None:
    """Both readings move by exactly what the clock is advanced."""
    clock: ClockProtocol = Clock()
    held = clock
    assert isinstance(held, Clock)
    now, monotonic = clock.now(), clock.monotonic()
    await held.advance(1.5)
    assert clock.now() - now == timedelta(seconds=1.5)
    assert clock.monotonic() - monotonic == 1.5
    with pytest.raises(ValueError, match="less than nothing"):
        await held.advance(-1)


@given(sleeps=DELAYS, steps=DELAYS)
async def test_sleepers_wake_in_order_and_on_time(sleeps: list[float], steps: list[float]) -> None:
    """Whatever the steps, each sleeper wakes once, in order of its time, when the clock shows that time."""
    clock = Clock()
    woken: list[tuple[float, float]] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic()))

    async with asyncio.TaskGroup() as tasks:
        for seconds in sleeps:
            tasks.create_task(sleep(seconds))
        await clock.advance(0)
        for step in steps:
            await clock.advance(step)
        expected = sorted(seconds for seconds in sleeps if seconds <= clock.monotonic())
        assert [seconds for seconds, _ in woken] == expected
        assert clock.sleepers == len(sleeps) - len(expected)
        await clock.advance(2)
    assert woken == [(seconds, seconds) for seconds in sorted(sleeps)]


async def test_ten_tenths_are_one() -> None:
    """Steps that no binary fraction can hold still add up."""
    clock = Clock()
    async with asyncio.TaskGroup() as tasks:
        sleeper = tasks.create_task(clock.sleep(1))
        for _ in range(10):
            assert not sleeper.done()
            await clock.advance(0.1)
        assert sleeper.done()


async def test_a_periodic_sleeper_wakes_as_often_as_the_step_holds() -> None:
    """Who sleeps again at once is woken again within the same step."""
    clock = Clock()
    ticks: list[float] = []

    async def tick() -> None:
        while len(ticks) < 3:
            await asyncio.gather(clock.sleep(1))
            ticks.append(clock.monotonic())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tick())
        await clock.advance(5)
    assert ticks == [1, 2, 3]


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    """A sleep that is cancelled counts no more and does not disturb the others."""
    clock = Clock()
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await clock.sleep(1)
    assert clock.sleepers == 0
    await clock.advance(2)
    await clock.sleep(0)
    assert clock.monotonic() == 2


# The fault proxy


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of an upstream that answers everything."""
    async with (
        ScriptedUpstream(default=document({"ok": True})) as upstream,
        FaultProxy("127.0.0.1", upstream.port) as running,
    ):
        yield running


async def exchange(client: RawClient) -> bytes:
    """Send one request and return the body of its answer."""
    await client.send(GET)
    await client.read_head()
    return await client.read_body()


async def test_the_proxy_relays(proxy: FaultProxy) -> None:
    """Left alone, the proxy passes everything on."""
    async with RawClient(proxy.host, proxy.port) as client:
        assert [await exchange(client), await exchange(client)] == [b'{"ok": true}'] * 2
    assert proxy.connections_opened == 1


async def test_cut_resets_open_connections_only(proxy: FaultProxy) -> None:
    """After a cut the open connection is reset and a new one works."""
    async with RawClient(proxy.host, proxy.port) as client:
        await exchange(client)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await client.read_until_close()
    async with RawClient(proxy.host, proxy.port) as client:
        assert await exchange(client) == b'{"ok": true}'


async def test_refuse_turns_new_connections_away(proxy: FaultProxy) -> None:
    """While refusing, new connections fail and open ones go on; accepting is back on the same port."""
    port = proxy.port
    async with RawClient(proxy.host, port) as client:
        await exchange(client)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await RawClient(proxy.host, port).__aenter__()
        assert await exchange(client) == b'{"ok": true}'
    await proxy.accept()
    async with RawClient(proxy.host, port) as client:
        assert await exchange(client) == b'{"ok": true}'


async def test_pause_is_a_black_hole_until_resumed(proxy: FaultProxy) -> None:
    """While paused, connections are taken and nothing comes back; resuming delivers what was held."""
    proxy.pause()
    async with (
        RawClient(proxy.host, proxy.port) as client,
        RawClient(proxy.host, proxy.port, deadline_seconds=0.1) as hasty,
    ):
        await client.send(GET)
        await hasty.send(GET)
        with pytest.raises(TimeoutError):
            await hasty.read_head()
        proxy.resume()
        assert (await client.read_head()).status == 200


async def test_delay_holds_every_piece_back(proxy: FaultProxy) -> None:
    """A delay counts once on the way there and once on the way back."""
    async with RawClient(proxy.host, proxy.port) as client:
        proxy.delay_seconds = 0.05
        began = asyncio.get_running_loop().time()
        await exchange(client)
        assert asyncio.get_running_loop().time() - began >= 0.1


async def test_an_unreachable_target_resets_the_client() -> None:
    """When the target cannot be reached, the client reads a reset."""
    async with ScriptedUpstream() as upstream:
        port = upstream.port
    async with FaultProxy("127.0.0.1", port) as proxy, RawClient(proxy.host, proxy.port) as client:
        with pytest.raises(ConnectionResetError):
            await client.read_until_close()


async def test_a_path_is_the_directory_of_a_postgres_socket(tmp_path: Path) -> None:
    """A host that is a path leads to the socket a Postgres client would use there."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        await writer.wait_closed()

    async with (
        await asyncio.start_unix_server(greet, tmp_path / ".s.PGSQL.5432"),
        FaultProxy(str(tmp_path), 5432) as proxy,
        RawClient(proxy.host, proxy.port) as client,
    ):
        assert await client.read_until_close() == b"hello"


async def test_the_proxy_closes_whatever_goes_on(proxy: FaultProxy) -> None:
    """Closing leaves no task, though connections are open, paused and delayed."""
    async with RawClient(proxy.host, proxy.port) as first:
        await exchange(first)
        proxy.delay_seconds = 3600
        await first.send(GET)
        proxy.pause()
        async with RawClient(proxy.host, proxy.port):
            await wait_until(lambda: proxy.connections_opened == 2)
            async with asyncio.timeout(1):
                await proxy.__aexit__(None, None, None)
        with pytest.raises(ConnectionError):
            await exchange(first)


# The raw client


async def test_half_close_ends_sending_only() -> None:
    """After a half close the other side has read the end and can still answer."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))
        writer.close()
        await writer.wait_closed()

    async with (
        await asyncio.start_server(count, "127.0.0.1", 0) as server,
        RawClient("127.0.0.1", server.sockets[0].getsockname()[1]) as client,
    ):
        await client.send(b"12345")
        client.half_close()
        assert await client.read_until_close() == b"5"


async def test_reset_is_read_as_a_reset() -> None:
    """A reset reaches the other side as one, not as an end."""
    errors: list[BaseException | None] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            errors.append(None)
        except ConnectionError as error:
            errors.append(error)
        writer.close()

    async with await asyncio.start_server(note, "127.0.0.1", 0) as server:
        async with RawClient("127.0.0.1", server.sockets[0].getsockname()[1]) as client:
            await client.send(b"1")
            client.reset()
        await wait_until(lambda: bool(errors))
    assert isinstance(errors[0], ConnectionResetError)


async def test_the_raw_client_reads_every_framing_and_refuses_nonsense() -> None:
    """Bodies by length, in chunks, up to the close and absent are read; what is not HTTP is an error."""
    head = b"HTTP/1.1 200 OK\r\n"
    bodies = [
        (head + b"Content-Length: 2\r\n\r\nabREST", b"ab"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", b"ab"),
        (head + b"\r\nab", b"ab"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ]
    async with ScriptedUpstream([*(raw(data) for data, _ in bodies), raw(b"HTTP/2 200 OK\r\n\r\n")]) as upstream:
        for _, body in bodies:
            async with RawClient("127.0.0.1", upstream.port) as client:
                await client.send(GET)
                await client.read_head()
                assert await client.read_body() == body
        async with RawClient("127.0.0.1", upstream.port) as client:
            await client.send(GET)
            with pytest.raises(MalformedMessageError):
                await client.read_head()
