"""Purges: over HTTP and from the command line, on every gateway that shares the database or the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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


class LateWord:
    """A database whose notifications are heard only while something is read from it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._words: list[Callable[[], None]] = []
        self.transaction = database.transaction

    def listen(self, channel: str, on_notify: Callable[[str], None], on_gap: Callable[[], None]) -> Callable[[], None]:
        return self._database.listen(channel, lambda word: self._words.append(partial(on_notify, word)), on_gap)

    async def fetch(self, query: str) -> Sequence[Row]:
        while self._words:
            self._words.pop(0)()
        return await self._database.fetch(query)


async def test_what_is_kept_after_a_purge_outlives_the_word_of_it(llmproxy_server_url: str) -> None:
    """The worker that purged hears of it like the others, maybe when it has kept the first answer since."""
    databases = TestDatabases(llmproxy_server_url, [core_component(), Component(Caching.name, Caching.migrations)])
    postgres = make_postgres(await databases.create())
    await postgres.open()
    services = make_services(clock=SystemClock(), database=postgres)
    store = MemoryStore(LRUCache(10_000, services.clock.monotonic))
    late = cast("Database", LateWord(postgres))
    purging = Generations(late, store, services.clock, services.tasks, services.log)
    kept: list[str] = []
    try:
        await purging.startup()
        for tenant in ("one", "two", "three"):
            await purging.purge(Scope(tenant=tenant))
            kept.append(purging.stored_key(Key(tenant, "model", "0" * 64)) or "")
            await store.put(kept[-1], b"new", 60)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "cache purge"))
        assert [await store.get(key) for key in kept] == [b"new"] * 3
    finally:
        purging.shutdown()
        await postgres.close()
        await databases.close()


async def test_workers_hear_of_purges_that_others_make(llmproxy_server_url: str) -> None:
    """Within a second, and of those before its start at once; without a database, nothing is found at all."""
    component = Component(Caching.name, Caching.migrations)
    databases = TestDatabases(llmproxy_server_url, [core_component(), component])
    url = await databases.create()
    postgres = make_postgres(url)
    await postgres.open()
    services = make_services(clock=SystemClock(), database=postgres)
    key = Key("tenant", "model", "0" * 64)
    store = MemoryStore(LRUCache(10_000, services.clock.monotonic))
    workers = [Generations(postgres, store, services.clock, services.tasks, services.log) for _ in range(3)]
    try:
        assert workers[0].stored_key(key) is None
        await workers[0].startup()
        await workers[1].startup()
        before = workers[1].stored_key(key)
        assert before == workers[0].stored_key(key) is not None
        await workers[0].purge(Scope(model="model"))
        await wait_until(lambda: workers[1].stored_key(key) != before, 1)
        await workers[2].startup()
        assert len({worker.stored_key(key) for worker in workers}) == 1
        await databases.drop(url)
        with pytest.raises(StorageError):
            await workers[1].purge(Scope())
    finally:
        for worker in workers:
            worker.shutdown()
        await postgres.close()
        await databases.close()


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
