"""Rate limits of several workers: never more than the limit, whatever the windows; slots of the dead come back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.api import Exchange, LLMProxyError, RateLimited, StorageError
from llmproxy.holdings import Holdings
from llmproxy.hooks import RegisteredPlugin, resolve
from llmproxy.migrate import Component, core_component, migrate
from llmproxy.scopes import SCOPES
from llmproxy.testing import FaultProxy, make_exchange, make_services, wait_until
from llmproxy.testing.database import TestDatabases
from llmproxy_plugins.rate_limits import RateLimits
from llmproxy_plugins.rate_limits.counting import REFUSED
from llmproxy_plugins.rate_limits.settings import RateLimitsConfig
from llmproxy_plugins.rate_limits.slots import IDLE_SECONDS, LIFETIME_SECONDS
from llmproxy_plugins.rate_limits.windows import Window
from tests.quota_workers import HurriedClock, Worker
from tests.test_quotas import address, through

MINUTE: Final = timedelta(minutes=1)


class Member:
    """One worker with the plugin."""

    def __init__(self, worker: Worker, config: dict[str, Any]) -> None:
        self.worker = worker
        services = make_services(clock=worker.clock, database=worker.database, quotas=worker.quotas)
        self.plugin = RateLimits(RateLimitsConfig.model_validate(config), services)
        failures: list[object] = []
        hooks = resolve([RegisteredPlugin("rate_limits", self.plugin)], on_failure=lambda *each: failures.append(each))
        assert hooks.claims is not None
        self.holdings = Holdings(
            hooks.claims, SCOPES, worker.quotas, worker.clock, on_failure=lambda *each: failures.append(each)
        )

    async def let_in(self) -> Exchange:
        """A request that was let in. Raises RateLimited and StorageError."""
        exchange = make_exchange()
        exchange.admitted_at = self.worker.clock.now()
        try:
            await self.holdings.take(exchange)
            await self.plugin.pre_request(exchange)
        except BaseException:
            self.end(exchange)
            raise
        return exchange

    def end(self, exchange: Exchange) -> None:
        """What the gateway does when a request is over."""
        self.holdings.settle(exchange)
        self.plugin.on_complete(exchange)

    async def admits(self) -> bool:
        """Whether a request is let in, and ends at once."""
        with suppress(RateLimited):
            self.end(await self.let_in())
            return True
        return False


Cluster = Callable[..., Awaitable[Member]]


@asynccontextmanager
async def members(url: str, clock: HurriedClock) -> AsyncIterator[Cluster]:
    """Makes workers with the plugin, that share a database and a clock."""
    await migrate(url, [core_component(), Component("rate_limits", RateLimits.migrations)])
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        async def make(config: dict[str, Any], at: str = url) -> Member:
            worker = await Worker(at, directory, clock).start()
            stack.push_async_callback(worker.database.close)
            stack.push_async_callback(worker.tasks.cancel_all)
            return Member(worker, config)

        yield make


@pytest.fixture
async def cluster(database_url: str) -> AsyncIterator[Cluster]:
    """Makes workers with the plugin."""
    async with members(database_url, HurriedClock()) as make:
        yield make


def limit(**fields: object) -> dict[str, Any]:
    """A configuration with one limit of everything."""
    return {"limits": [{"scope": "gateway", **fields}]}


STEPS: Final = st.lists(st.tuples(st.floats(0, 1.2), st.lists(st.integers(0, 2), max_size=12)), min_size=1, max_size=8)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    most=st.sampled_from([1, 2, 5, 40]),
    algorithm=st.sampled_from(["sliding_window", "fixed_window", "token_bucket"]),
    burst=st.sampled_from([0.1, 0.5, 1.0]),
    steps=STEPS,
)
def test_never_more_than_the_limit(
    test_databases: TestDatabases, most: int, algorithm: str, burst: float, steps: list[tuple[float, list[int]]]
) -> None:
    """However three workers ask, in whatever time, no window has more than its limit, and no bucket than its burst."""

    async def play() -> list[datetime]:
        url = await test_databases.create()
        admitted: list[datetime] = []
        clock = HurriedClock()
        try:
            async with members(url, clock) as make:
                config = limit(requests=most, algorithm=algorithm, burst=burst)
                crowd = [await make(config) for _ in range(3)]
                for share, asked in steps:
                    clock.advance(share * MINUTE.total_seconds())
                    answers = await asyncio.gather(*(crowd[number].admits() for number in asked))
                    admitted += [clock.now()] * sum(answers)
        finally:
            await test_databases.drop(url)
        return admitted

    admitted = asyncio.run(play())
    if algorithm == "fixed_window":
        for start in admitted:
            first = Window(MINUTE).at(start).bucket
            assert sum(first <= each < first + MINUTE for each in admitted) <= most
    if algorithm == "sliding_window":
        assert all(sum(start <= each < start + MINUTE for each in admitted) <= most for start in admitted)
    if algorithm == "token_bucket":
        bucket = max(1, int(most * burst))
        for start in admitted:
            for end in (each for each in admitted if each >= start):
                passed = sum(start <= each <= end for each in admitted)
                assert passed <= bucket + most * ((end - start) / MINUTE)


async def test_small_limits_are_exact(cluster: Cluster) -> None:
    """Five a minute are five, whichever workers are asked and whatever they had leased; and none of them is lost."""
    crowd = [await cluster(limit(requests=5)) for _ in range(3)]
    answers = await asyncio.gather(*(crowd[number % 3].admits() for number in range(12)))
    assert sum(answers) == 5


async def test_all_of_a_limit_can_be_used_by_whoever_asks(cluster: Cluster) -> None:
    """What one worker has leased and does not use, another gets before it refuses anybody."""
    first, second = await cluster(limit(requests=100)), await cluster(limit(requests=100))
    assert await first.admits()
    await wait_until(lambda: first.worker.database._listener._subscriptions != [])
    admitted = [await second.admits() for _ in range(120)]
    assert sum(admitted) == 99


async def test_a_lease_needs_no_database(cluster: Cluster) -> None:
    """While a lease lasts requests are let in without a round trip; then `closed` refuses, and `open` lets pass."""
    closed = await cluster(limit(requests=1000, concurrent=1000) | {"fail": "closed"})
    open_ = await cluster(limit(requests=1000, concurrent=1000) | {"fail": "open"})
    for member in (closed, open_):
        assert await member.admits()
        await member.worker.database.close()
        for _ in range(8):
            assert await member.admits()
    with pytest.raises(StorageError):
        await asyncio.gather(*(closed.admits() for _ in range(1000)))
    assert all([await open_.admits() for _ in range(1000)])


async def test_slots_are_shared(cluster: Cluster) -> None:
    """All workers together have as many requests under way as the limit says, and any of them can have them all."""
    first, second = await cluster(limit(concurrent=20)), await cluster(limit(concurrent=20))
    for member in (first, second):
        member.plugin.startup()
    running = [await first.let_in() for _ in range(15)]
    running_there = [await second.let_in() for _ in range(5)]
    for member in (first, second):
        with pytest.raises(RateLimited):
            await member.let_in()
    for exchange in running:
        first.end(exchange)
    first.worker.clock.advance(1)
    await wait_until(lambda: bool(first.worker.database._listener._subscriptions))
    running_there += [await second.let_in() for _ in range(15)]
    with pytest.raises(RateLimited):
        await first.let_in()
    assert len(running_there) == 20


async def test_slots_of_the_dead_come_back(cluster: Cluster) -> None:
    """A killed worker's slots are free once it has not been heard of; one that lives keeps what it confirms."""
    dying, living, third = [await cluster(limit(concurrent=2)) for _ in range(3)]
    await dying.let_in()
    await living.let_in()
    await dying.worker.crash()
    await living.worker.database.execute(
        "UPDATE rate_limits_slots SET seen_at = seen_at - make_interval(secs => $1)", LIFETIME_SECONDS + 1
    )
    await living.plugin.slots.confirm()
    await third.let_in()
    with pytest.raises(RateLimited):
        await third.let_in()


async def test_a_worker_taken_for_dead_holds_again_what_is_in_use(cluster: Cluster) -> None:
    """What others took meanwhile stays theirs, and nobody gets more until there is room for all."""
    paused, other = await cluster(limit(concurrent=2)), await cluster(limit(concurrent=2))
    running = [await paused.let_in() for _ in range(2)]
    await other.worker.database.execute("DELETE FROM rate_limits_slots")
    await other.let_in()
    paused.worker.clock.advance(LIFETIME_SECONDS)
    await paused.plugin.slots.confirm()
    paused.end(running[0])
    with pytest.raises(RateLimited):
        await paused.let_in()
    with pytest.raises(RateLimited):
        await other.let_in()


async def test_idle_slots_go_back_and_are_forgotten(cluster: Cluster) -> None:
    """A subject that is gone costs no memory and no row."""
    member = await cluster(limit(concurrent=30))
    await member.admits()
    member.worker.clock.advance(IDLE_SECONDS + 1)
    await member.plugin.slots.confirm()
    assert member.plugin.slots._pools == {}
    assert await member.worker.database.fetch("SELECT * FROM rate_limits_slots") == []


async def test_a_request_given_up_while_it_waits_keeps_nothing(cluster: Cluster, database_url: str) -> None:
    """Cancelled at any moment, a request has no slot afterwards."""
    async with FaultProxy(*address(database_url)) as relay:
        member = await cluster(limit(concurrent=2), at=through(relay, database_url))
        relay.delay_seconds = 0.05
        for moment in range(8):
            task = asyncio.get_running_loop().create_task(member.let_in())
            await asyncio.sleep(0.02 * moment)
            task.cancel()
            with suppress(asyncio.CancelledError, LLMProxyError):
                member.end(await task)
        member.worker.clock.advance(1)
        assert [pool.used for pool in member.plugin.slots._pools.values()] == [0]
        assert await member.admits()


async def test_reopens_when_enough_has_left_the_window(cluster: Cluster) -> None:
    """retry-after is when the oldest have left a sliding window, no sooner and at most one step later."""
    member = await cluster(limit(requests=2))
    await member.let_in()
    member.worker.clock.advance(30)
    await member.let_in()
    member.worker.clock.advance(10)
    with pytest.raises(RateLimited) as refused:
        await member.let_in()
    assert 20 <= (refused.value.retry_after_seconds or 0) <= 23
    member.worker.clock.advance(refused.value.retry_after_seconds or 0)
    await member.let_in()


def test_windows_slide_in_whole_steps() -> None:
    """What was used counts for at least the window, and for at most one step more."""
    window = Window.sliding(MINUTE)
    start = datetime.fromisoformat("2026-01-01T00:00:01+00:00")
    assert window.step == timedelta(seconds=3)
    used = window.at(start).bucket
    assert window.at(start + MINUTE - timedelta(microseconds=1)).since <= used
    assert window.at(start + MINUTE + timedelta(seconds=3)).since > used


async def test_state_of_an_exchange_is_settled_once(cluster: Cluster) -> None:
    """A request that was let in is used in full when it has ended."""
    member = await cluster(limit(requests=10))
    exchange = await member.let_in()
    member.end(exchange)
    exchange.state[REFUSED] = []
    member.end(exchange)
    used = [await member.admits() for _ in range(12)]
    assert sum(used) == 9
