"""Workers that share allowances: each with a journal and a pool of its own, on one Postgres, and any may be killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from llmproxy.allowances import Allowance, LedgerShare
from llmproxy.audit import Recorder
from llmproxy.batch_writer import BatchWriter
from llmproxy.config import AuditConfig, DatabaseConfig, JournalConfig
from llmproxy.db import Postgres
from llmproxy.exchange import Attempt, Exchange
from llmproxy.journal import Journal
from llmproxy.leases import HEARTBEAT_SECONDS
from llmproxy.partitions import Partitions
from llmproxy.queries import Queries
from llmproxy.quotas import Quotas, QuotaSettlement
from llmproxy.request import Document
from llmproxy.services import Database, Reservation
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import make_exchange
from tests.test_audit import ListLog, record

DAY: Final = datetime(2026, 11, 22, tzinfo=UTC)
QUERIES: Final = Queries()
SHARE: Final = {"unit": "usd", "workspace": "nobody-else"}
# Notes every commit after which more of an allowance is settled and leased than `watched_caps` allows.
WATCH: Final = """
CREATE TABLE watched_caps (name text PRIMARY KEY, cap numeric NOT NULL);
CREATE TABLE violations (name text, used numeric);
CREATE FUNCTION watch_caps() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now quota_buckets;
BEGIN
    SELECT * INTO now FROM quota_buckets WHERE (allowance, bucket) = (NEW.allowance, NEW.bucket);
    INSERT INTO violations SELECT name, now.settled + now.leased FROM watched_caps
    WHERE name = now.allowance AND now.settled + now.leased > cap;
    INSERT INTO violations SELECT now.allowance || ': not the sum of its leases', now.leased WHERE now.leased <> (
        SELECT COALESCE(sum(leased), 0) FROM quota_leases WHERE (allowance, bucket) = (now.allowance, now.bucket)
    );
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER watch_caps AFTER INSERT OR UPDATE ON quota_buckets
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION watch_caps();
"""


class HurriedClock:
    """Time that only moves when it is told to, and where every wait is short but lets others run."""

    def __init__(self) -> None:
        self._passed_seconds = 0.0

    def now(self) -> datetime:
        return DAY + timedelta(seconds=self._passed_seconds)

    def monotonic(self) -> float:
        return self._passed_seconds

    async def sleep(self, seconds: float) -> None:
        # Housekeeping happens when the test says so.
        await asyncio.sleep(0.02 if seconds < HEARTBEAT_SECONDS else 3600)

    def advance(self, seconds: float) -> None:
        self._passed_seconds += seconds


def allowance(
    name: str, cap: Decimal | int | str | None, bucket: datetime = DAY, share: LedgerShare | None = SHARE
) -> Allowance:
    """A day's allowance, which the test's database has nothing in the ledger for."""
    until = bucket + timedelta(days=1)
    return Allowance(name, None if cap is None else Decimal(cap), bucket, bucket, until, share=share)


class Worker:
    """One worker; `crash` is what `kill -9` does to it."""

    def __init__(self, url: str, directory: Path, clock: HurriedClock) -> None:
        self.log = ListLog()
        self.tasks = BackgroundTasks(self.log)
        self.clock = clock
        config = DatabaseConfig(pool_size=3, connect_seconds=1, statement_seconds=5)
        self.database = Postgres(url, config, clock, self.log, self.tasks)
        self.journal = Journal(directory / "journal", JournalConfig(segment_bytes=65_536))
        self.quotas = Quotas(self.database, QUERIES, clock, self.log, self.tasks)
        partitions = Partitions(self.database, QUERIES, AuditConfig(), clock, self.log)
        writer = BatchWriter(
            self.database,
            QUERIES,
            partitions,
            directory / "rejected.jsonl",
            clock=clock,
            log=self.log,
            parts=[QuotaSettlement(QUERIES)],
            jitter=lambda: 0.0,
        )
        self.recorder = Recorder(
            self.journal,
            writer,
            JournalConfig(),
            clock=clock,
            log=self.log,
            tasks=self.tasks,
            interrupted=interrupted,
            replayed=self.quotas.replayed,
        )

    async def start(self) -> Worker:
        """Open what it needs."""
        await self.database.open(required=False)
        self.quotas.start(self.journal)
        return self

    def let_in(self) -> Exchange:
        """An exchange that has just been let in."""
        exchange = make_exchange()
        self.journal.begin(exchange.id, {"id": exchange.id, "admitted_at": DAY.isoformat()})
        return exchange

    async def reserve(
        self, exchange: Exchange, *wants: tuple[Allowance, Decimal], fail_open: bool = False
    ) -> Reservation:
        """Reserve for a new attempt. Raises AllowanceExhausted or StorageError."""
        number = len(exchange.attempts) + 1
        attempt = Attempt(number, exchange.targets[0], exchange.request, DAY, 0.0)
        exchange.attempts.append(attempt)
        allowances, amounts = [allowance for allowance, _ in wants], [amount for _, amount in wants]
        together, are_open = self.quotas.together(allowances), [fail_open] * len(wants)
        return await self.quotas.take(exchange, together, amounts, attempt=attempt, fail_open=are_open)

    def end(self, exchange: Exchange) -> None:
        """Write the exchange's record."""
        self.journal.end(exchange.id, ending(exchange.id) | self.quotas.charges(exchange))
        self.quotas.let_go(exchange)

    async def settle_and_end(self, exchange: Exchange, reservation: Reservation, *amounts: Decimal) -> None:
        """Use so much, and ship that."""
        reservation.settle(amounts)
        self.end(exchange)
        await self.recorder.ship()

    async def crash(self) -> None:
        """Nothing of it goes on, and its lock is free; what it wrote stays."""
        await self.tasks.cancel_all()
        self.journal._segments.close(delete=False)
        await self.database.close()

    async def stop(self) -> None:
        """As a worker stops that is asked to."""
        await self.recorder.shutdown(5)
        await self.quotas.close()
        await self.tasks.cancel_all()
        self.journal.close()
        await self.database.close()


def ending(request_id: str) -> Document:
    """The record of an exchange without its charges."""
    made = record(DAY.isoformat())
    for row in (made["request"], *made["attempts"], *made["ledger"]):
        row["id" if "id" in row else "request_id"] = request_id
    return made


def interrupted(begun: Document) -> Document:
    """The record of an exchange whose worker died."""
    held = begun.get("held") or {}
    return ending(begun["id"]) | ({"charges": held["charges"]} if "charges" in held else {})


async def watch(database: Database, caps: dict[str, Decimal]) -> None:
    """Have the database note from now on whatever passes these caps."""
    rows = list(caps.items())
    query = "INSERT INTO watched_caps VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET cap = EXCLUDED.cap"
    await database.execute_many(query, rows)


async def violations(database: Database) -> Sequence[object]:
    """What has passed its cap."""
    return await database.fetch("SELECT * FROM violations")


async def settled(database: Database, name: str, bucket: datetime = DAY) -> Decimal:
    """What of an allowance is settled."""
    row = await database.fetch_row(
        "SELECT settled FROM quota_buckets WHERE allowance = $1 AND bucket = $2", name, bucket
    )
    return row["settled"] if row else Decimal(0)


async def leased(database: Database, name: str, bucket: datetime = DAY) -> Decimal:
    """What of an allowance is leased."""
    row = await database.fetch_row(
        "SELECT leased FROM quota_buckets WHERE allowance = $1 AND bucket = $2", name, bucket
    )
    return row["leased"] if row else Decimal(0)


async def open_bucket(database: Database, name: str, bucket: datetime = DAY) -> None:
    """Have an allowance begin with nothing, as if it had been counted."""
    await database.execute("INSERT INTO quota_allowances (name) VALUES ($1)", name)
    await database.execute(
        "INSERT INTO quota_buckets (allowance, bucket, is_opened) VALUES ($1, $2, true)", name, bucket
    )


MakeWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def watched(database: Postgres) -> Postgres:
    """A database that notes what passes its cap."""
    await database.execute(WATCH)
    return database


@pytest.fixture
async def make_worker(database_url: str, tmp_path: Path) -> AsyncIterator[MakeWorker]:
    """Makes workers on the test's database; all share a state directory and a clock."""
    clock = HurriedClock()
    async with AsyncExitStack() as stack:

        async def make(url: str = database_url) -> Worker:
            worker = await Worker(url, tmp_path, clock).start()
            stack.push_async_callback(worker.tasks.cancel_all)
            stack.push_async_callback(worker.database.close)
            return worker

        yield make
