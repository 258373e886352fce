"""Day partitions: present in time, made once by whoever comes, dropped after their retention."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from uuid import uuid4

import pytest
import structlog

from llmproxy.config import AuditConfig
from llmproxy.db import Postgres
from llmproxy.errors import StorageError
from llmproxy.partitions import Partitions
from llmproxy.queries import Queries
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing.clock import START, Clock
from llmproxy.testing.database import make_postgres

TODAY = START.date()
TABLES = ("requests", "attempts", "ledger_entries", "request_bodies")


def make_partitions(
    database: Postgres, clock: Clock | None = None, retention_days: int = 90, bodies_retention_days: int = 30
) -> Partitions:
    """Partitions on a database, with a clock that stands still."""
    config = AuditConfig(retention_days=retention_days, bodies_retention_days=bodies_retention_days)
    return Partitions(database, Queries(), config, clock or Clock(), structlog.get_logger())


async def days_of(database: Postgres, table: str) -> Sequence[str]:
    """The days a table has partitions for."""
    query = (
        "SELECT right(inhrelid::regclass::text, 8) AS day FROM pg_inherits WHERE inhparent = $1::regclass ORDER BY 1"
    )
    # Indexes have partitions too, but their parents are not the table.
    return [str(row["day"]) for row in await database.fetch(query.replace("$1", f"'{table}'"))]


def days(first: int, last: int) -> Sequence[str]:
    """Days counted from today, as partition names have them."""
    return [f"{TODAY + timedelta(days=n):%Y%m%d}" for n in range(first, last + 1)]


async def test_yesterday_to_next_week_is_present(database: Postgres) -> None:
    """After maintenance every table has yesterday's to next week's partitions; again changes nothing."""
    partitions = make_partitions(database)
    await partitions.maintain()
    await partitions.maintain()
    for table in TABLES:
        assert await days_of(database, table) == days(-1, 7)


async def test_eight_at_once(database_url: str) -> None:
    """Eight connections that make the same partitions at once all succeed."""
    databases = [make_postgres(database_url, pool_size=2) for _ in range(8)]
    await asyncio.gather(*(one.open() for one in databases))
    await asyncio.gather(*(make_partitions(one).maintain() for one in databases))
    assert await days_of(databases[0], "requests") == days(-1, 7)
    await asyncio.gather(*(one.close() for one in databases))


async def test_what_is_older_than_its_retention_is_dropped(database: Postgres) -> None:
    """Requests and attempts go after the retention, bodies after their own, ledger entries never."""
    partitions = make_partitions(database, retention_days=20, bodies_retention_days=10)
    await partitions.ensure(TODAY + timedelta(days=n) for n in range(-30, 0))
    # What the planner knows of the catalogue decides which rows a condition is put to.
    await database.execute("ANALYZE pg_class")
    await partitions.maintain()
    assert await days_of(database, "requests") == days(-20, 7)
    assert await days_of(database, "attempts") == days(-20, 7)
    assert await days_of(database, "request_bodies") == days(-10, 7)
    assert await days_of(database, "ledger_entries") == days(-30, 7)


async def test_a_batch_with_an_older_day_gets_its_partition(database: Postgres) -> None:
    """`ensure` makes what is missing, also when somebody dropped it in the meantime."""
    partitions = make_partitions(database)
    await partitions.maintain()
    old = TODAY - timedelta(days=60)
    await partitions.ensure([old, TODAY])
    await database.execute(f"DROP TABLE requests_{old:%Y%m%d}")
    await partitions.ensure([old])
    assert await days_of(database, "requests") == [*days(-60, -60), *days(-1, 7)]


async def test_days_are_utc(database: Postgres) -> None:
    """A row goes to the partition of its UTC day, whatever the session's time zone and date style."""
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL timezone = 'Pacific/Auckland'")
        await connection.execute("SET LOCAL datestyle = 'SQL, DMY'")
        await connection.fetch("SELECT llmproxy_create_partitions($1, $1)", date(2026, 3, 4))
    # Five to midnight in UTC, the next day in Auckland.
    late = datetime(2026, 3, 5, 12, 55, tzinfo=timezone(timedelta(hours=13)))
    insert = "INSERT INTO request_bodies (request_id, admitted_at) VALUES ($1, $2)"
    await database.execute(insert, uuid4(), late)
    assert len(await database.fetch("SELECT FROM request_bodies_20260304")) == 1
    with pytest.raises(StorageError):
        await database.execute(insert, uuid4(), late + timedelta(minutes=5))


async def test_making_partitions_does_not_wait_for_writers(database: Postgres) -> None:
    """A transaction that has written to the table does not hold new partitions up."""
    partitions = make_partitions(database)
    await partitions.maintain()
    async with database.transaction() as connection:
        insert = "INSERT INTO request_bodies (request_id, admitted_at) VALUES ($1, $2)"
        await connection.execute(insert, uuid4(), START)
        async with asyncio.timeout(5):
            await partitions.ensure([TODAY + timedelta(days=30)])
    assert days(30, 30)[0] in await days_of(database, "request_bodies")


async def test_run_maintains_every_hour(database: Postgres) -> None:
    """The background run follows the calendar."""
    clock = Clock()
    task = BackgroundTasks(structlog.get_logger()).start("partitions", make_partitions(database, clock).run())
    async with asyncio.timeout(20):
        while days(8, 8)[0] not in await days_of(database, "requests"):
            if clock.sleepers:
                await clock.advance(3600)
            await asyncio.sleep(0.01)
    task.cancel()
    assert clock.now().date() >= TODAY + timedelta(days=1)
