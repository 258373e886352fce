"""Shared allowances: what is leased, reserved, settled and given back, and what happens when parts are away."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from llmproxy.allowances import Allowance, AllowanceExhausted
from llmproxy.db import Postgres
from llmproxy.errors import StorageError
from llmproxy.segments import owners
from llmproxy.testing import FaultProxy, make_exchange, wait_until
from tests.quota_workers import (
    DAY,
    MakeWorker,
    Worker,
    allowance,
    leased,
    open_bucket,
    settled,
    violations,
    watch,
)

ONE = Decimal(1)
LOCK = "SELECT FROM quota_allowances WHERE name = 'a' FOR UPDATE"


def through(proxy: FaultProxy, url: str) -> str:
    """The database's URL by way of a relay."""
    parts = urlsplit(url)
    user = f"{parts.username}:{parts.password}@" if parts.password else f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=f"{user}{proxy.host}:{proxy.port}", query="").geturl()


def address(url: str) -> tuple[str, int]:
    """Where a database listens: host and port, or the directory of its socket and its port."""
    parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
    host = query.get("host", [parts.hostname or "localhost"])[0]
    return host, int(query.get("port", [str(parts.port or 5432)])[0])


async def test_what_is_settled_is_what_was_used(make_worker: MakeWorker, watched: Postgres) -> None:
    """A reservation holds the worst case; once it is settled only the truth counts, and the rest may be used again."""
    worker = await make_worker()
    day = allowance("a", 10)
    exchange = worker.let_in()
    reservation = await worker.reserve(exchange, (day, Decimal(10)))
    with pytest.raises(AllowanceExhausted):
        await worker.reserve(worker.let_in(), (day, ONE))
    await worker.settle_and_end(exchange, reservation, Decimal("2.5"))
    assert await settled(watched, "a") == Decimal("2.5")
    worker.clock.advance(2)
    await worker.reserve(worker.let_in(), (day, Decimal("7.5")))
    with pytest.raises(AllowanceExhausted) as raised:
        await worker.reserve(worker.let_in(), (day, Decimal("0.01")))
    assert raised.value.allowance is day


async def test_all_or_nothing(make_worker: MakeWorker, watched: Postgres) -> None:
    """What one of several allowances refuses costs the others nothing."""
    worker = await make_worker()
    wide, narrow = allowance("wide", 10), allowance("narrow", 1)
    with pytest.raises(AllowanceExhausted) as raised:
        await worker.reserve(worker.let_in(), (wide, Decimal(10)), (narrow, Decimal(10)))
    assert raised.value.allowance is narrow
    exchange = worker.let_in()
    reservation = await worker.reserve(exchange, (wide, Decimal(10)))
    await worker.settle_and_end(exchange, reservation, Decimal(10))
    assert (await settled(watched, "wide"), await settled(watched, "narrow")) == (Decimal(10), Decimal(0))


async def test_what_is_not_recorded_goes_back_once(make_worker: MakeWorker, watched: Postgres) -> None:
    """What an attempt did not need of a limit is free at once, and not counted a second time for the next attempt."""
    worker = await make_worker()
    limit, exchange = allowance("limit", 10, share=None), worker.let_in()
    (await worker.reserve(exchange, (limit, Decimal(10)))).settle([Decimal(4)])
    with pytest.raises(AllowanceExhausted):
        await worker.reserve(exchange, (limit, Decimal(10)))
    await worker.reserve(exchange, (limit, Decimal(6)))


async def test_charges_from_before_they_were_joint_are_settled(watched: Postgres) -> None:
    """A journal that an older version has left is replayed by a newer one, to the same sums."""
    each = {"holder": "gone", "bucket": DAY.isoformat(), "amount": "1.5", "leased": "1.5"}
    joint = {**each, "of": [{"allowance": name, "bucket": DAY.isoformat()} for name in ("a", "b")]}
    for charge in ({**each, "allowance": "a"}, joint):
        await watched.execute("SELECT llmproxy_settle_quotas($1::text::json)", json.dumps([charge]))
    assert [await settled(watched, name) for name in ("a", "b")] == [Decimal(3), Decimal("1.5")]


async def test_a_lease_costs_no_round_trip(make_worker: MakeWorker, watched: Postgres) -> None:
    """As long as a worker has leased enough, it reserves without the database; a burst shares one call."""
    worker = await make_worker()
    day = allowance("a", 1000)
    await asyncio.gather(*(worker.reserve(worker.let_in(), (day, ONE)) for _ in range(20)))
    row = await watched.fetch_row("SELECT last_call FROM quota_holders")
    assert row is not None
    assert row["last_call"] <= 2
    await worker.database.close()
    for _ in range(16):
        await worker.reserve(worker.let_in(), (day, ONE))


async def test_slices_shrink_to_one_request(make_worker: MakeWorker, watched: Postgres) -> None:
    """However much workers take beside what they need, all of an allowance can be used, by whichever of them."""
    await watch(watched, {"a": Decimal(100)})
    workers = [await make_worker() for _ in range(3)]
    day = allowance("a", 100)
    used = 0
    for turn in range(140):
        worker = workers[turn % 3]
        worker.clock.advance(1.1)
        try:
            exchange = worker.let_in()
            await worker.settle_and_end(exchange, await worker.reserve(exchange, (day, ONE)), ONE)
            used += 1
        except AllowanceExhausted:
            continue
    assert (used, await settled(watched, "a"), await leased(watched, "a")) == (100, Decimal(100), Decimal(0))
    assert await violations(watched) == []


async def test_idle_slices_go_to_who_lacks_them(make_worker: MakeWorker, watched: Postgres) -> None:
    """What lies idle at one worker is given back at once when another one lacks it."""
    rich, poor = await make_worker(), await make_worker()
    day = allowance("a", 100)
    exchange = rich.let_in()
    await rich.settle_and_end(exchange, await rich.reserve(exchange, (day, Decimal(60))), ONE)
    assert await leased(watched, "a") >= 59
    await reserve_once_given_back(poor, day, Decimal(90))
    assert await settled(watched, "a") + await leased(watched, "a") <= 100


async def test_a_dead_workers_slice_stays_charged_until_its_journal_is_replayed(
    make_worker: MakeWorker, watched: Postgres, tmp_path: Path
) -> None:
    """Killed while a request is under way: its reservation is charged, all else that it held is free again."""
    await watch(watched, {"a": Decimal(100)})
    dead, heir = await make_worker(), await make_worker()
    day = allowance("a", 100)
    ended = dead.let_in()
    (await dead.reserve(ended, (day, Decimal(30)))).settle([Decimal(3)])
    dead.end(ended)
    await dead.reserve(dead.let_in(), (day, Decimal(40)))
    await dead.crash()
    with pytest.raises(AllowanceExhausted):
        await heir.reserve(heir.let_in(), (day, Decimal(60)))
    await heir.recorder.replay()
    assert (await settled(watched, "a"), await leased(watched, "a")) == (Decimal(43), Decimal(0))
    heir.clock.advance(2)
    await heir.reserve(heir.let_in(), (day, Decimal(57)))
    assert await violations(watched) == []
    assert len(owners(tmp_path / "journal")) == 1


async def test_what_was_not_needed_is_free_only_once_the_journal_knows(
    make_worker: MakeWorker, watched: Postgres
) -> None:
    """A worker killed between settling one request and the next reservation is not charged more than it held."""
    await watch(watched, {"a": Decimal(10)})
    dead, heir = await make_worker(), await make_worker()
    day = allowance("a", 10)
    (await dead.reserve(dead.let_in(), (day, Decimal(10)))).settle([ONE])
    with pytest.raises(AllowanceExhausted):
        await dead.reserve(dead.let_in(), (day, Decimal(5)))
    await dead.crash()
    await heir.recorder.replay()
    assert await settled(watched, "a") == 10
    assert await violations(watched) == []


async def test_a_retry_may_use_what_the_attempt_before_it_did_not(make_worker: MakeWorker, watched: Postgres) -> None:
    """The reservation of a failed attempt stands in for that of the next one."""
    worker = await make_worker()
    day = allowance("a", 10)
    exchange = worker.let_in()
    (await worker.reserve(exchange, (day, Decimal(10)))).settle([ONE])
    second = await worker.reserve(exchange, (day, Decimal(9)))
    await worker.settle_and_end(exchange, second, Decimal(4))
    assert await settled(watched, "a") == 5


async def test_more_than_was_reserved_is_charged_all_the_same(make_worker: MakeWorker, watched: Postgres) -> None:
    """The truth is settled even where it passes the cap, and the reservation says so."""
    worker = await make_worker()
    day = allowance("a", 10)
    exchange = worker.let_in()
    reservation = await worker.reserve(exchange, (day, Decimal(8)))
    await worker.settle_and_end(exchange, reservation, Decimal(25))
    assert reservation.has_overrun
    assert (await settled(watched, "a"), await leased(watched, "a")) == (Decimal(25), Decimal(0))
    reservation.settle([ONE])
    assert reservation.has_overrun


async def test_without_postgres_leases_last(make_worker: MakeWorker, watched: Postgres, database_url: str) -> None:
    """Requests go on from what is leased; then the plugin decides, and once Postgres is back nothing is lost."""
    await watch(watched, {"a": Decimal(100)})
    day = allowance("a", 100)
    async with FaultProxy(*address(database_url)) as proxy:
        worker = await make_worker(through(proxy, database_url))
        first = worker.let_in()
        reservation = await worker.reserve(first, (day, Decimal(10)))
        proxy.refuse()
        proxy.cut()
        reservation.settle([ONE])
        worker.end(first)
        second = worker.let_in()
        held = await worker.reserve(second, (day, Decimal(9)))
        with pytest.raises(StorageError):
            await worker.reserve(worker.let_in(), (day, Decimal(50)))
        third = worker.let_in()
        unleased = await worker.reserve(third, (day, Decimal(50)), fail_open=True)
        await proxy.accept()
        held.settle([Decimal(9)])
        unleased.settle([Decimal(50)])
        worker.end(second)
        worker.end(third)
        worker.clock.advance(2)
        await worker.recorder.ship()
        assert await settled(watched, "a") == 60
        await worker.reserve(worker.let_in(), (day, Decimal(40)))
    assert await violations(watched) == []


async def test_a_call_whose_answer_was_lost_is_not_carried_out_twice(
    make_worker: MakeWorker, watched: Postgres, database_url: str
) -> None:
    """A connection that breaks before the answer comes neither loses nor doubles what was leased."""
    day = allowance("a", 100)
    async with FaultProxy(*address(database_url)) as proxy:
        worker = await make_worker(through(proxy, database_url))
        await worker.database.fetch("SELECT 1")
        await open_bucket(watched, "a")
        async with watched.transaction() as connection:
            # Holds up the call inside Postgres, so that it is certain to be under way when the connection breaks.
            await connection.execute(LOCK)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(expect_no_answer(worker, (day, Decimal(80))))
                await wait_for_lock(watched)
                proxy.cut()
        await wait_until_leased(watched, "a")
        worker.clock.advance(2)
        await worker.reserve(worker.let_in(), (day, Decimal(80)))
    assert await leased(watched, "a") <= 100


async def expect_no_answer(worker: Worker, want: tuple[Allowance, Decimal]) -> None:
    """Reserve, and find the database gone."""
    with pytest.raises(StorageError):
        await worker.reserve(worker.let_in(), want)


async def wait_for_lock(database: Postgres, waiting: int = 1) -> None:
    """Until so many wait for a lock."""
    for _ in range(200):
        found = await database.fetch(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        if len(found) >= waiting:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


async def wait_until_leased(database: Postgres, name: str, *, is_any: bool = True) -> None:
    """Until a call that nobody waits for has been carried out, and something is leased, or nothing any more."""
    for _ in range(200):
        if bool(await leased(database, name)) is is_any:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


async def test_what_comes_while_the_house_is_kept_is_not_lost(make_worker: MakeWorker, watched: Postgres) -> None:
    """A lease that waits for its first slice is in use: it is still there when that has come, and gives it back."""
    worker = await make_worker()
    worker.clock.advance(3600)
    day = allowance("a", 100)
    await open_bucket(watched, "a")
    async with asyncio.TaskGroup() as tasks, watched.transaction() as connection:
        # Holds up the call inside Postgres.
        await connection.execute(LOCK)
        exchange = worker.let_in()
        reserving = tasks.create_task(worker.reserve(exchange, (day, ONE)))
        await wait_for_lock(watched)
        worker.quotas._leases.tidy()
    await worker.settle_and_end(exchange, reserving.result(), ONE)
    assert await leased(watched, "a") > 0
    worker.clock.advance(60)
    worker.quotas._leases.tidy()
    await wait_until_leased(watched, "a", is_any=False)
    assert await settled(watched, "a") == ONE


async def test_a_call_that_comes_too_late_gets_nothing(make_worker: MakeWorker, watched: Postgres) -> None:
    """A dead worker's call that Postgres carries out while or after its journal is replayed leaves nothing held."""
    dead, heir = await make_worker(), await make_worker()
    day = allowance("a", 100)
    await open_bucket(watched, "a")
    async with asyncio.TaskGroup() as tasks, watched.transaction() as connection:
        # Holds up the call inside Postgres.
        await connection.execute(LOCK)
        tasks.create_task(dead.reserve(dead.let_in(), (day, Decimal(80))))
        await wait_for_lock(watched)
        tasks.create_task(heir.quotas.replayed(dead.journal.owner))
        await wait_for_lock(watched, waiting=2)
    await dead.crash()
    assert await leased(watched, "a") == 0
    query = "SELECT llmproxy_lease($1, '', 1, false, '[]') AS answers"
    assert await watched.fetch(query, dead.journal.owner) == [{"answers": None}]


async def test_a_worker_that_was_written_off_uses_only_what_it_asks_for(
    make_worker: MakeWorker, watched: Postgres
) -> None:
    """Once its leases went to others it asks anew, and what it had reserved is settled without them."""
    await watch(watched, {"a": Decimal(100)})
    lost, other = await make_worker(), await make_worker()
    day = allowance("a", 100)
    exchange = lost.let_in()
    reservation = await lost.reserve(exchange, (day, Decimal(20)))
    await other.quotas.release(lost.journal.owner)
    assert await leased(watched, "a") == 0
    lost.clock.advance(11)
    lost.quotas._leases.tidy()
    await wait_until(lambda: lost.log.of("quota_leases_lost") != [])
    await other.reserve(other.let_in(), (day, Decimal(70)))
    await lost.settle_and_end(exchange, reservation, Decimal(20))
    with pytest.raises(AllowanceExhausted):
        await lost.reserve(lost.let_in(), (day, Decimal(30)))
    await lost.reserve(lost.let_in(), (day, Decimal(10)))
    assert await violations(watched) == []


async def test_holders_that_never_come_back_are_written_off(make_worker: MakeWorker, watched: Postgres) -> None:
    """After a day without a sign of life what a worker holds goes to others."""
    gone, other = await make_worker(), await make_worker()
    day = allowance("a", 100)
    await gone.reserve(gone.let_in(), (day, Decimal(100)))
    await gone.crash()
    await watched.execute("UPDATE quota_holders SET seen_at = now() - interval '25 hours'")
    [usage] = await other.quotas.usage("a")
    assert (usage.leased, [holder.holder for holder in usage.holders]) == (Decimal(100), [gone.journal.owner])
    await other.quotas._purge()
    await other.reserve(other.let_in(), (day, Decimal(100)))


async def test_stopping_gives_everything_back(make_worker: MakeWorker, watched: Postgres, tmp_path: Path) -> None:
    """A worker that stops leaves neither leases nor a journal."""
    worker = await make_worker()
    day = allowance("a", 100)
    exchange = worker.let_in()
    await worker.settle_and_end(exchange, await worker.reserve(exchange, (day, Decimal(60))), ONE)
    await worker.stop()
    assert (await settled(watched, "a"), await leased(watched, "a")) == (Decimal(1), Decimal(0))
    assert await watched.fetch("SELECT * FROM quota_holders WHERE released_at IS NULL") == []
    assert list((tmp_path / "journal").glob("*.log")) == []


async def test_stopping_without_postgres_leaves_the_leases_to_the_next_worker(
    make_worker: MakeWorker, watched: Postgres, database_url: str
) -> None:
    """What cannot be given back at the end is given back by whoever finds the journal."""
    day = allowance("a", 100)
    async with FaultProxy(*address(database_url)) as proxy:
        worker = await make_worker(through(proxy, database_url))
        exchange = worker.let_in()
        await worker.settle_and_end(exchange, await worker.reserve(exchange, (day, Decimal(60))), ONE)
        proxy.refuse()
        proxy.cut()
        await worker.stop()
    assert await leased(watched, "a") >= 59
    heir = await make_worker()
    await heir.recorder.replay()
    assert (await settled(watched, "a"), await leased(watched, "a")) == (Decimal(1), Decimal(0))


async def reserve_once_given_back(worker: Worker, limit: Allowance, amount: Decimal) -> None:
    """Reserve what another worker has been asked for, however long that takes on a busy machine."""
    async with asyncio.timeout(10):
        while True:
            with suppress(AllowanceExhausted):
                await worker.reserve(worker.let_in(), (limit, amount))
                return
            await asyncio.sleep(0.05)


async def test_what_has_no_ledger_is_used_up_once_leased(make_worker: MakeWorker, watched: Postgres) -> None:
    """A limit that is not settled counts what workers took, unless they give it back; a crash costs their slice."""
    worker, other = await make_worker(), await make_worker()
    minute = replace(allowance("rate", 10), share=None)
    exchange = make_exchange()
    reservation = await worker.quotas.reserve(exchange, [minute], [Decimal(8)])
    assert (await settled(watched, "rate"), await leased(watched, "rate")) == (Decimal(8), Decimal(0))
    reservation.settle([Decimal(2)])
    await wait_until(lambda: worker.database._listener._subscriptions != [])
    await reserve_once_given_back(other, minute, Decimal(8))
    await worker.crash()
    with pytest.raises(AllowanceExhausted):
        await other.quotas.reserve(make_exchange(), [minute], [ONE])
    assert await settled(watched, "rate") == 10


async def test_rolling_windows_count_every_step(make_worker: MakeWorker, watched: Postgres) -> None:
    """What was used in any earlier step of the window still counts, and ceases to when the window has rolled past."""
    worker = await make_worker()
    hour = timedelta(hours=1)

    def window(now_hours: int) -> Allowance:
        bucket = DAY + now_hours * hour
        return replace(allowance("rolling", 10, bucket), since=bucket - 3 * hour, until=None, step=hour)

    for at_hours, amount in ((0, 4), (1, 4)):
        exchange = worker.let_in()
        await worker.settle_and_end(
            exchange, await worker.reserve(exchange, (window(at_hours), Decimal(amount))), Decimal(amount)
        )
        worker.clock.advance(3600)
    with pytest.raises(AllowanceExhausted):
        await worker.reserve(worker.let_in(), (window(2), Decimal(3)))
    await worker.reserve(worker.let_in(), (window(2), Decimal(2)))
    with pytest.raises(AllowanceExhausted):
        await worker.reserve(worker.let_in(), (window(3), Decimal(1)))
    await worker.reserve(worker.let_in(), (window(4), Decimal(4)))


async def test_a_cap_can_be_raised_and_lowered(make_worker: MakeWorker, watched: Postgres) -> None:
    """The cap counts as it is given; lowered, nothing that was leased under the higher one is used any more."""
    worker = await make_worker()
    exchange = worker.let_in()
    held = await worker.reserve(exchange, (allowance("a", 10), Decimal(8)))
    with pytest.raises(AllowanceExhausted):
        await worker.reserve(worker.let_in(), (allowance("a", 10), Decimal(8)))
    await worker.reserve(worker.let_in(), (allowance("a", 1000), Decimal(80)))
    await worker.settle_and_end(exchange, held, Decimal(8))
    with pytest.raises(AllowanceExhausted):
        await worker.reserve(worker.let_in(), (allowance("a", 80), ONE))


async def test_purging_leaves_what_still_counts(make_worker: MakeWorker, watched: Postgres) -> None:
    """Buckets go a day after their window, unless somebody still holds a part of them."""
    worker = await make_worker()
    old = DAY - timedelta(days=3000)
    for name, bucket in (("over", old), ("held", old), ("current", DAY + timedelta(days=36500))):
        exchange = worker.let_in()
        reservation = await worker.reserve(exchange, (allowance(name, 1, bucket), ONE))
        if name != "held":
            await worker.settle_and_end(exchange, reservation, ONE)
    await worker.quotas._purge()
    rows = await watched.fetch("SELECT allowance FROM quota_buckets ORDER BY 1")
    assert [row["allowance"] for row in rows] == ["current", "held"]
