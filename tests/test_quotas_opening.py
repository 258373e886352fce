"""Allowances that are new, and have much in the ledger already: counted apart, so that nobody else waits for it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import pytest

from llmproxy.allowances import Allowance
from llmproxy.db import Postgres
from llmproxy.errors import StorageError
from llmproxy.openings import OPENED_AGAIN_SECONDS
from llmproxy.testing import wait_until
from tests.quota_workers import DAY, QUERIES, SHARE, MakeWorker, Worker, allowance, settled

ONE: Final = Decimal(1)
# The ledger's sum, in its place: how long it takes, or that it cannot be made.
SLOW: Final = """
CREATE OR REPLACE FUNCTION llmproxy_ledger_sum(share json, first timestamptz, before timestamptz) RETURNS numeric
LANGUAGE plpgsql STABLE AS $$ BEGIN {body}; RETURN 5; END $$
"""


async def takes(database: Postgres, body: str) -> None:
    """Have counting do this first."""
    await database.execute(SLOW.format(body=body))


async def refused(worker: Worker, name: str) -> str | None:
    """Why nothing can be reserved for want of the database; None when it can."""
    try:
        await worker.reserve(worker.let_in(), (allowance(name, 100), ONE))
    except StorageError as error:
        return error.message
    return None


async def test_however_many_are_new_at_once_each_is_opened(make_worker: MakeWorker, watched: Postgres) -> None:
    """Counting all of them takes longer than any request waits, and still all are served before long."""
    worker = await make_worker()
    await takes(watched, "PERFORM pg_sleep(0.25)")
    names = [f"budget-{number}" for number in range(24)]
    first = await asyncio.gather(*(refused(worker, name) for name in names))
    assert None in first
    assert any(first)

    async with asyncio.timeout(20):
        while any(await asyncio.gather(*(refused(worker, name) for name in names))):
            pass
    assert [await settled(watched, name) for name in names] == [Decimal(5)] * len(names)


async def test_who_wants_of_another_does_not_wait(make_worker: MakeWorker, watched: Postgres) -> None:
    """While one is counted for long, slices of another are given as ever, to this worker and to others."""
    worker, other = await make_worker(), await make_worker()
    assert await refused(worker, "known") is None
    await takes(watched, "PERFORM pg_sleep(1.5)")
    waiting = asyncio.get_running_loop().create_task(refused(worker, "new"))
    await wait_until(lambda: "quota opening" in {task.get_name() for task in asyncio.all_tasks()})
    assert await refused(other, "known") is None
    await worker.reserve(worker.let_in(), (allowance("known", 100), Decimal(60)))
    assert not waiting.done()
    assert await waiting is None


async def test_what_takes_longer_than_a_request_waits_is_said(make_worker: MakeWorker, watched: Postgres) -> None:
    """The request is told to come again, and is served once it is counted."""
    worker = await make_worker()
    await takes(watched, "PERFORM pg_sleep(3)")
    sentence = "What the ledger holds of a budget is still being counted, as it is once for each; try again later."
    assert await refused(worker, "long") == sentence
    assert await refused(worker, "long") is None


async def test_what_cannot_be_counted_is_not_tried_at_every_request(make_worker: MakeWorker, watched: Postgres) -> None:
    """Again after a while; the log says which it is, and meanwhile requests are refused at once."""
    worker = await make_worker()
    await takes(watched, "RAISE EXCEPTION 'no'")
    assert await refused(worker, "broken")
    await takes(watched, "PERFORM 1")
    assert await refused(worker, "broken")
    worker.clock.advance(OPENED_AGAIN_SECONDS)
    assert await refused(worker, "broken") is None
    assert [fields["allowance"] for fields in worker.log.of("quota_not_opened")] == ["broken"]


@pytest.mark.parametrize("cap", [100, None])
async def test_two_workers_that_open_the_same_count_it_once(
    make_worker: MakeWorker, watched: Postgres, cap: int | None
) -> None:
    """Whoever comes second waits for the first, whether there is a cap or it is only counted."""
    await takes(watched, "PERFORM pg_sleep(0.3)")
    workers = [await make_worker(), await make_worker()]
    await asyncio.gather(*(worker.reserve(worker.let_in(), (allowance("both", cap), ONE)) for worker in workers))

    async with asyncio.timeout(10):
        while await settled(watched, "both") != 5:
            await watched.execute("SELECT pg_sleep(0.05)")


@pytest.mark.parametrize(("when", "settled_in_the_end"), [("before", 5), ("meanwhile", 7)])
async def test_what_is_settled_meanwhile_counts_once(
    make_worker: MakeWorker, watched: Postgres, when: str, settled_in_the_end: int
) -> None:
    """What was settled before it was counted is in the ledger's sum; what is settled during it is added."""
    worker = await make_worker()
    charge = {"holder": "gone", "of": [{"allowance": "a", "bucket": DAY.isoformat()}], "amount": "2", "leased": "0"}
    settling = QUERIES["settle_quotas"], json.dumps([charge])
    await takes(watched, "PERFORM pg_sleep(1)")
    if when == "before":
        await watched.execute(*settling)
    waiting = asyncio.get_running_loop().create_task(refused(worker, "a"))
    async with asyncio.timeout(10):
        while not await watched.fetch("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
            await watched.execute("SELECT pg_stat_clear_snapshot()")
    if when == "meanwhile":
        await watched.execute(*settling)
    assert not waiting.done()
    assert await waiting is None
    assert await settled(watched, "a") == settled_in_the_end


async def test_a_rolling_window_s_earlier_buckets_are_counted_once(make_worker: MakeWorker, watched: Postgres) -> None:
    """With its first bucket; a later one that has just begun needs no counting apart."""
    worker = await make_worker()
    await takes(watched, "PERFORM 1")
    hour, now = timedelta(hours=1), datetime.now(UTC)
    first, second = (
        Allowance("rolling", Decimal(100), bucket, bucket - 3 * hour, step=hour, share=SHARE)
        for bucket in (now - hour, now)
    )
    await worker.reserve(worker.let_in(), (first, ONE))
    rows = await watched.fetch("SELECT bucket, settled, is_opened FROM quota_buckets WHERE allowance = 'rolling'")
    assert sorted((row["bucket"], row["settled"], row["is_opened"]) for row in rows) == [
        (now - hours * hour, Decimal(5), True) for hours in (4, 3, 2, 1)
    ]
    await takes(watched, "PERFORM pg_sleep(0)")
    await worker.reserve(worker.let_in(), (second, ONE))
    assert await settled(watched, "rolling", now) == 5
    assert worker.log.of("quota_not_opened") == []
