"""Shaping through the whole gateway: who waits, who is refused, and that everything leaves the queue."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from llmproxy.api import Database, Row
from llmproxy.migrate import Component, core_component, migrate
from llmproxy.services import Services, SystemClock
from llmproxy.testing import (
    StartProxy,
    configuration_table,
    fail,
    hang,
    make_services,
    reply,
    slow_head,
    stepped,
    stream,
    wait_until,
    with_headers,
)
from llmproxy.testing.database import make_postgres
from llmproxy_plugins.shaping import Shaping
from llmproxy_plugins.shaping.membership import Membership
from llmproxy_plugins.shaping.settings import ShapingConfig


def account(**fields: object) -> dict[str, Any]:
    """The plugin's section, with one account."""
    return {"accounts": [{"match": "upstream/*", **fields}]}


async def test_those_beyond_the_slots_wait_for_their_turn(proxy: StartProxy) -> None:
    """No more are sent at the same time than the vendor takes; who waited is recorded with place and time."""
    permits = asyncio.Semaphore(0)
    script = [stepped(stream("a"), permits), reply("b"), reply("c")]
    async with proxy(Shaping, account(concurrent=1), upstream=script) as client:
        start = asyncio.get_running_loop().create_task
        first = start(client.chat(stream=True))
        await wait_until(lambda: len(client.upstream.requests) == 1)
        others = [start(client.chat()) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert len(client.upstream.requests) == 1
        for _ in range(20):
            permits.release()
        answers = [each.status for each in await asyncio.gather(first, *others)]
        assert answers == [200, 200, 200]
        rows = await client.rows()
        said = [str(row["decisions"]) for row in rows.requests]
        assert "waited" not in said[0]
        assert all("waited" in each and "of its own" in each for each in said[1:])


async def test_a_full_queue_refuses_and_a_long_one_too(proxy: StartProxy) -> None:
    """Who would not be served in time hears it at once, with retry-after; who waited in vain hears it when it is up."""
    section = account(concurrent=1, max_queue=2, max_wait_seconds=2.5)
    async with proxy(Shaping, section, upstream=[hang(), reply("hi")]) as client:
        start = asyncio.get_running_loop().create_task
        tasks = [start(client.chat())]
        await wait_until(lambda: len(client.upstream.requests) == 1)
        tasks += [start(client.chat()) for _ in range(2)]
        await asyncio.sleep(0.2)
        refused = await client.chat()
        assert (refused.status, refused.document["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        given_up = await tasks[1]
        assert (given_up.status, given_up.document["error"]["code"]) == (429, "queue_full")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await client.chat()).status == 200


async def test_who_hangs_up_leaves_the_queue(proxy: StartProxy) -> None:
    """Waiting or under way, a request that is given up makes room for the next."""
    async with proxy(Shaping, account(concurrent=1), upstream=[hang(), reply("hi")]) as client:
        start = asyncio.get_running_loop().create_task
        running = start(client.chat())
        await wait_until(lambda: len(client.upstream.requests) == 1)
        waiting = [start(client.chat()) for _ in range(3)]
        await asyncio.sleep(0.2)
        for task in (*waiting, running):
            task.cancel()
        await asyncio.gather(running, *waiting, return_exceptions=True)
        assert (await client.chat()).status == 200
        assert len(client.upstream.requests) == 2


async def test_a_deadline_holds_in_the_queue(proxy: StartProxy) -> None:
    """The client's patience counts while it waits."""
    async with proxy(Shaping, account(concurrent=1), upstream=[slow_head(reply("a"), 1.5), reply("b")]) as client:
        start = asyncio.get_running_loop().create_task
        first = start(client.chat())
        await wait_until(lambda: len(client.upstream.requests) == 1)
        assert (await client.chat(headers={"x-llmproxy-timeout": "1.1"})).status in {429, 504}
        assert (await first).status == 200
        assert (await client.chat()).status == 200


async def test_a_vendor_that_has_had_enough_is_left_alone(proxy: StartProxy) -> None:
    """After the vendor's own 429 nothing is sent for as long as it asked for; others' accounts go on."""
    script = [with_headers(fail(429), ("retry-after", "1")), reply("hi")]
    async with proxy(Shaping, account(concurrent=5), upstream=script) as client:
        loop = asyncio.get_running_loop()
        assert (await client.chat()).status == 429
        refused_at = loop.time()
        assert (await client.chat(model="demo/echo")).status == 200
        assert loop.time() - refused_at < 0.9
        assert (await client.chat()).status == 200
        assert loop.time() - refused_at > 0.9


async def test_workers_find_each_other(database_url: str) -> None:
    """Each worker knows how many there are and its own number, and learns when one goes."""
    await migrate(database_url, [core_component(), Component("shaping", Shaping.migrations)])
    database = make_postgres(database_url)
    await database.open()
    parts: dict[int, tuple[int, int]] = {}
    services: Services = make_services(database=database, clock=SystemClock())

    def made(number: int) -> Membership:
        return Membership(services, lambda workers, rank: parts.__setitem__(number, (workers, rank)))

    crowd = [made(number) for number in range(3)]
    for member in crowd:
        await member.start()
    await wait_until(lambda: sorted(parts.values()) == [(3, 0), (3, 1), (3, 2)])
    await crowd.pop().stop()
    await wait_until(lambda: sorted(parts[number] for number in (0, 1)) == [(2, 0), (2, 1)])
    for member in crowd:
        await member.stop()
    await database.close()


class Slow:
    """A database that answers nobody who wants one row before it may."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.execute = database.execute
        self.fetch = database.fetch
        self.listen = database.listen

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        self.asked += 1
        await self.may_answer.wait()
        return await self._database.fetch_row(query, *args)


async def test_a_worker_that_stops_while_it_looks_is_gone(database_url: str) -> None:
    """It is not counted in again by what it had begun."""
    await migrate(database_url, [core_component(), Component("shaping", Shaping.migrations)])
    database = make_postgres(database_url)
    await database.open()
    slow = Slow(database)
    services = make_services(database=cast("Database", slow), clock=SystemClock())
    member = Membership(services, lambda workers, rank: None)
    looking = asyncio.get_running_loop().create_task(member.look())
    await wait_until(lambda: slow.asked == 1)
    stopping = asyncio.get_running_loop().create_task(member.stop())
    await asyncio.wait([stopping], timeout=0.2)
    slow.may_answer.set()
    await asyncio.gather(looking, stopping)
    await member.look()
    assert await database.fetch("SELECT worker FROM shaping_workers") == []
    await database.close()


def test_readme_table_is_the_configuration() -> None:
    """The README's table is what the declaration says."""
    readme = Path(__file__).parent.parent / "plugins/shaping/README.md"
    assert configuration_table(ShapingConfig) in readme.read_text()
