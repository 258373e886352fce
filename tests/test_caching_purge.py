"""Purges: over HTTP and from the command line, on every gateway that shares the database or the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import cast

import click
import pytest
from click.testing import CliRunner

from llmproxy.api import Database, LLMProxyError, Row, StorageError
from llmproxy.migrate import Component, core_component
from llmproxy.services import SystemClock
from llmproxy.testing import ProxyClient, ProxyResponse, StartProxy, make_services, reply, wait_until
from llmproxy.testing.database import TestDatabases, make_postgres
from llmproxy_plugins.caching import PURGE_PATH, Caching
from llmproxy_plugins.caching.commands import cache_commands
from llmproxy_plugins.caching.keys import Key
from llmproxy_plugins.caching.memory import LRUCache
from llmproxy_plugins.caching.purging import Generations, Scope
from llmproxy_plugins.caching.stores import MemoryStore
from tests.caching import ANSWERED, redis_server

TENANTS = {"workspaces": {"acme": {"keys": ["sk-acme-2b7e151628aed2a6"]}}, "models": {"other": "upstream/test-model"}}
ACME = {"authorization": "Bearer sk-acme-2b7e151628aed2a6"}


async def purge(client: ProxyClient, **wanted: object) -> ProxyResponse:
    """The operator's call."""
    return await client.request("POST", PURGE_PATH, wanted, key=client.admin_key)


async def fill(client: ProxyClient) -> list[str]:
    """Of four requests in two workspaces and with two models, which were answered by the cache."""
    answers = [
        await client.chat("hello", headers=headers, model=model, temperature=0)
        for headers in ({}, ACME)
        for model in ("test", "other")
    ]
    return [answer.headers[ANSWERED] for answer in answers]


async def test_a_purge_takes_what_it_names_and_no_more(proxy: StartProxy) -> None:
    """By workspace, by model, by both, by one answer's key, or everything."""
    async with proxy(Caching, config=TENANTS) as client:
        client.upstream.default = reply("hi")
        assert await fill(client) == ["miss"] * 4
        for wanted, found in (
            ({"workspace": "acme"}, ["hit", "hit", "miss", "miss"]),
            ({"model": "other"}, ["hit", "miss", "hit", "miss"]),
            ({"workspace": "default", "model": "test"}, ["miss", "hit", "hit", "hit"]),
            ({"all": True}, ["miss"] * 4),
            ({"workspace": "nobody"}, ["hit"] * 4),
        ):
            answer = await purge(client, **wanted)
            assert answer.document == {"object": "cache.purge", **wanted, "dropped": 4 - found.count("hit")}
            assert await fill(client) == found, wanted
        key = (await client.chat("hello", temperature=0)).headers["x-llmproxy-cache-key"]
        await purge(client, key=key)
        assert await fill(client) == ["miss", "hit", "hit", "hit"]
        # The name of an answer outlives the purge of it.
        assert (await client.chat("hello", temperature=0)).headers["x-llmproxy-cache-key"] == key


async def test_a_purge_says_what_it_is_for(proxy: StartProxy) -> None:
    """Nothing, too much or nonsense is refused; and it takes the admin key."""
    async with proxy(Caching) as client:
        for wanted in (
            {},
            {"all": True, "model": "a"},
            {"key": "short"},
            {"modle": "a"},
            {"key": "0" * 64, "model": "a"},
        ):
            assert (await purge(client, **wanted)).status == 400
        assert (await client.request("POST", PURGE_PATH, {"all": True})).status == 401


async def test_an_answer_on_its_way_during_a_purge_is_not_found_after_it(proxy: StartProxy) -> None:
    """It was asked for before the purge, so it is as old as what the purge was for."""
    async with proxy(Caching, upstream=[reply("old", delay_seconds=0.3), reply("new")]) as client:
        asking = asyncio.get_running_loop().create_task(client.chat("hello", temperature=0))
        await client.upstream.wait_for(lambda: len(client.upstream.requests) == 1)
        await purge(client, all=True)
        assert (await client.chat("hello", temperature=0)).text == "new"
        assert (await asking).text == "old"
        assert (await client.chat("hello", temperature=0)).text == "new"


async def test_a_purge_empties_redis(proxy: StartProxy) -> None:
    """What was purged is not only passed over: nothing of it is left on the server."""
    with redis_server() as server:
        section = {"backend": "redis", "url": server.url}
        async with proxy(Caching, section, config=TENANTS) as client:
            client.upstream.default = reply("hi")
            await fill(client)
            await purge(client, workspace="acme")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"DBSIZE\r\nQUIT\r\n")
            assert (await reader.read()).startswith(b":2\r\n")
            writer.close()
            assert await fill(client) == ["hit", "hit", "miss", "miss"]


@pytest.fixture
async def databases(llmproxy_server_url: str) -> AsyncIterator[TestDatabases]:
    """Databases with the plugin's tables."""
    databases = TestDatabases(llmproxy_server_url, [core_component(), Component(Caching.name, Caching.migrations)])
    yield databases
    await databases.close()


class Worker:
    """What one worker keeps, and which purges it knows of."""

    def __init__(self, database: Database) -> None:
        services = make_services(clock=SystemClock(), database=database)
        self.store = MemoryStore(LRUCache(10_000, services.clock.monotonic))
        self.purges = Generations(services, self.store)

    def stored_key(self, tenant: str = "tenant") -> str | None:
        """Where an answer is stored today."""
        return self.purges.stored_key(Key(tenant, "model", "0" * 64))


class LateWord:
    """A database whose notifications are heard while something is read from it, and only so many as are due."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._words: list[Callable[[], None]] = []
        self.is_listening = False
        self.due = 0
        self.transaction = database.transaction

    def listen(self, channel: str, on_notify: Callable[[str], None], on_gap: Callable[[], None]) -> Callable[[], None]:
        def listening() -> None:
            self.is_listening = True
            on_gap()

        return self._database.listen(channel, lambda word: self._words.append(partial(on_notify, word)), listening)

    async def fetch(self, query: str) -> Sequence[Row]:
        await wait_until(lambda: len(self._words) >= self.due)
        heard, self._words, self.due = self._words[: self.due], self._words[self.due :], 0
        for word in heard:
            word()
        return await self._database.fetch(query)


async def test_what_is_kept_after_a_purge_outlives_the_word_of_it(databases: TestDatabases) -> None:
    """A worker may know of a purge, its own or another's, and keep the first answer since, before it hears of it."""
    postgres = make_postgres(await databases.create())
    await postgres.open()
    late = LateWord(postgres)
    worker, other = Worker(cast("Database", late)), Worker(postgres)
    kept: dict[str, str | None] = {}

    async def purge_and_keep(tenant: str, *, heard: int) -> None:
        late.due = heard
        await worker.purges.purge(Scope(tenant=tenant))
        await keep(tenant)

    async def keep(tenant: str) -> None:
        kept[tenant] = worker.stored_key(tenant)
        await worker.store.put(kept[tenant] or "", b"new", 60)

    try:
        await worker.purges.startup()
        await wait_until(lambda: late.is_listening)
        await purge_and_keep("heard of at once", heard=1)
        await purge_and_keep("heard of too late", heard=0)
        await purge_and_keep("in between", heard=2)
        await other.purges.purge(Scope(tenant="another's"))
        await purge_and_keep("learns of the other's", heard=0)
        await keep("another's")
        await purge_and_keep("hears of the other's", heard=3)
        # What was heard is read by the time that this has been read.
        await purge_and_keep("the last", heard=0)
        assert [tenant for tenant, key in kept.items() if await worker.store.get(key or "") != b"new"] == []
    finally:
        worker.purges.shutdown()
        await postgres.close()


async def test_workers_hear_of_purges_that_others_make(databases: TestDatabases) -> None:
    """Within a second, and of those before its start at once; without a database, nothing is found at all."""
    url = await databases.create()
    postgres = make_postgres(url)
    await postgres.open()
    workers = [Worker(postgres) for _ in range(3)]
    try:
        assert workers[0].stored_key() is None
        await workers[0].purges.startup()
        await workers[1].purges.startup()
        before = workers[1].stored_key()
        assert before == workers[0].stored_key() is not None
        await workers[1].store.put(before or "", b"old", 60)
        await workers[0].purges.purge(Scope(model="model"))
        await wait_until(lambda: workers[1].stored_key() != before, 1)
        assert await workers[1].store.get(before or "") is None
        await workers[2].purges.startup()
        assert len({worker.stored_key() for worker in workers}) == 1
        await databases.drop(url)
        with pytest.raises(StorageError):
            await workers[1].purges.purge(Scope())
    finally:
        for worker in workers:
            worker.purges.shutdown()
        await postgres.close()


async def test_the_command_line_says_what_was_dropped(proxy: StartProxy) -> None:
    """`llmproxy cache purge` drops what it names, counts it, and says when that was nothing, or what was wrong."""
    others = "in the worker that was asked; the others drop what they keep of it.\n"
    async with proxy(Caching, upstream=[reply("one"), reply("two")]) as client:
        await client.chat("hello", temperature=0)
        assert await run_command(client, "--workspace", "nobody") == f"Nothing matched {others}"
        assert await run_command(client, "--all") == f"Purged 1 answer {others}"
        assert (await client.chat("hello", temperature=0)).text == "two"
        with pytest.raises(LLMProxyError, match="give workspace or model or both, or key, or all"):
            await run_command(client)


@pytest.mark.parametrize(
    ("dropped", "told"),
    [
        (0, "Nothing matched.\n"),
        (2, "Purged 2 answers.\n"),
        (None, "Purged; how much that was is not known, for Redis does not answer.\n"),
    ],
)
def test_a_shared_store_is_spoken_of_as_a_whole(dropped: int | None, told: str) -> None:
    """What is dropped from Redis is dropped for all workers."""

    class Answering:
        def ask(self, method: str, path: str, document: object = None, *, url: str | None = None) -> dict[str, object]:
            return {"dropped": dropped}

    command = cache_commands(Answering(), PURGE_PATH, is_shared=True)
    assert CliRunner().invoke(command, ["purge", "--all"]).output == told


async def run_command(client: ProxyClient, *options: str) -> str:
    """What the command prints. Raises what it ends with."""
    group = click.Group()
    group.add_command(cache_commands(client.gateway, PURGE_PATH, is_shared=False))
    ran = await asyncio.to_thread(CliRunner().invoke, group, ["cache", "purge", *options])
    if isinstance(ran.exception, LLMProxyError):
        raise ran.exception
    return ran.output
