"""Sums over days of the ledger: to the last digit what the rows add up to, or not there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.admin.spend import Spend
from llmproxy.db import Postgres
from llmproxy.ledger_sums import LedgerSums
from llmproxy.request import Document
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import Clock, wait_until
from llmproxy.usage import TOKEN_CLASSES
from tests.ledger_rows import DAY, QUERIES, Entry, entry, on, write
from tests.test_admin import eventually
from tests.test_audit import ListLog
from tests.test_ledger_spend import entries

SUMMED = ["workspace", "feature", "user", "key", "provider", "model", "day"]
# The three days of the entries are over.
LATER = DAY + timedelta(days=10)
TOKENLESS = dict.fromkeys(TOKEN_CLASSES, 0)
MOMENTS = st.one_of(st.none(), st.integers(-30, 100).map(lambda hours: DAY + timedelta(hours=hours)))


def sums(database: Postgres, now: datetime = LATER, log: ListLog | None = None) -> LedgerSums:
    """What makes the sums, on a database."""
    return LedgerSums(database, QUERIES, Clock(now), log or ListLog())


def tasks() -> BackgroundTasks:
    """Where a test starts what goes on beside it."""
    return BackgroundTasks(ListLog())


async def waits(database: Postgres, mode: str) -> bool:
    """Whether anybody waits for a lock of that kind in this database."""
    query = """
        SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE NOT granted AND mode = $1 AND datname = current_database()
    """
    return bool(await database.fetch(query, mode))


async def summed(database: Postgres) -> Sequence[date]:
    """The days of which there are sums."""
    return [row["day"] for row in await database.fetch("SELECT day FROM ledger_summed_days ORDER BY day")]


class Question(NamedTuple):
    """What is asked for."""

    by: list[str]
    since: datetime | None
    until: datetime | None
    workspace: str | None

    async def answered(self, database: Postgres) -> Document:
        """What came of it."""
        by, since, until, workspace = self
        return await Spend(database, QUERIES).report(by, since, until, workspace=workspace)


QUESTIONS = st.builds(
    Question,
    by=st.lists(st.sampled_from(SUMMED), min_size=1, max_size=3, unique=True),
    since=MOMENTS,
    until=MOMENTS,
    workspace=st.sampled_from([None, "acme", "nobody"]),
)
# What budgets are held to, by the ledger's names; an empty name is that of those who name nothing.
SHARES = st.fixed_dictionaries(
    {"unit": st.sampled_from(["usd", "requests", "tokens"])},
    optional={
        "workspace": st.sampled_from(["acme", "nobody"]),
        "model": st.sampled_from(["a/m", "a/n", "b/m"]),
        "tag": st.sampled_from(["x", "y"]),
        **dict.fromkeys(("feature", "user_id", "key_id", "provider_name"), st.sampled_from(["a", "b", ""])),
    },
)


@st.composite
def charged(draw: st.DrawFn) -> Entry:
    """An entry of any classes of tokens, or one of a request that used nothing."""
    if draw(st.integers(0, 3)) == 0:
        return draw(entries()) | {"amount_usd": None, "cost_provenance": None, "usage_provenance": None} | TOKENLESS
    return draw(entries()) | {name: draw(st.integers(0, 9)) for name in TOKEN_CLASSES}


@given(rows=st.lists(entries(), min_size=1, max_size=12), asked=QUESTIONS, days_over=st.integers(0, 4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_say_what_the_rows_say(database_url: str, rows: list[Entry], asked: Question, days_over: int) -> None:
    """Whatever is asked for, and however many of the days have been summed up."""

    async def run(database: Postgres) -> None:
        await write(database, rows)
        await database.execute("DELETE FROM ledger_summed_days")
        expected = await asked.answered(database)
        await sums(database, DAY + timedelta(days=days_over, hours=6)).sum_up()
        assert len(await summed(database)) <= days_over
        assert await asked.answered(database) == expected

    on(database_url, run)


class Count(NamedTuple):
    """What a budget begins with: a share of the ledger, in a window from some hours on; None for one without end."""

    share: dict[str, str]
    first: int
    hours: int | None

    async def counted(self, database: Postgres) -> Decimal:
        """What came of it."""
        since = DAY + timedelta(hours=self.first)
        before = "infinity" if self.hours is None else (since + timedelta(hours=self.hours)).isoformat()
        query = "SELECT llmproxy_ledger_sum($1::json, $2, $3::text::timestamptz) AS used"
        row = await database.fetch_row(query, self.share, since, before)
        assert row is not None
        return Decimal(row["used"])


COUNTS = st.builds(Count, SHARES, st.integers(-30, 60), st.one_of(st.none(), st.integers(1, 100)))


@given(rows=st.lists(charged(), min_size=1, max_size=12), wanted=COUNTS, days_over=st.integers(1, 4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_budgets_count_the_same_with_sums(database_url: str, rows: list[Entry], wanted: Count, days_over: int) -> None:
    """What a budget begins with is what its rows add up to, whatever it is held to and wherever its window lies."""

    async def run(database: Postgres) -> None:
        await write(database, rows)
        await database.execute("DELETE FROM ledger_summed_days")
        expected = await wanted.counted(database)
        await sums(database, DAY + timedelta(days=days_over, hours=6)).sum_up()
        assert len(await summed(database)) <= days_over
        assert await wanted.counted(database) == expected

    on(database_url, run)


async def test_budgets_do_not_read_the_rows_of_summed_days(database: Postgres) -> None:
    """But those of the days at the ends of their windows, of a day that is not over, and of tags."""
    await write(database, [entry("1", at=DAY + timedelta(days=number), tags=["x"]) for number in range(4)])
    await sums(database, DAY + timedelta(days=3, hours=6)).sum_up()
    await database.execute("UPDATE ledger_sums SET amount_usd = 100")
    query = "SELECT llmproxy_ledger_sum($1::json, $2, 'infinity') AS used"
    found = [
        await database.fetch_row(query, {"unit": "usd", **share}, since)
        for share in ({}, {"model": "upstream/test-model"}, {"key_id": ""}, {"tag": "x"})
        for since in (DAY, DAY + timedelta(hours=1))
    ]
    assert [int(row["used"]) for row in found if row] == [301, 201, 301, 201, 301, 201, 4, 3]


async def test_only_days_that_are_over_are_summed_up(database: Postgres) -> None:
    """A day is left six hours longer for what comes late, and is summed up once."""
    days = [DAY + timedelta(days=number) for number in range(4)]
    await write(database, [entry(at=day) for day in days])
    for hours, count in ((5, 2), (6, 3), (7, 3)):
        await sums(database, days[3] + timedelta(hours=hours)).sum_up()
        assert await summed(database) == [day.date() for day in days[:count]]


async def test_rows_of_summed_days_are_not_read(database: Postgres) -> None:
    """A question about many days is answered without them: the sums are what is used."""
    await write(database, [entry("1", at=DAY + timedelta(days=number)) for number in range(4)])
    await sums(database).sum_up()
    # Nobody can add to a sum; that one is different shows where the answer comes from.
    await database.execute("UPDATE ledger_sums SET amount_usd = 100")
    report = Spend(database, QUERIES).report
    assert (await report(["workspace"], None, None))["total"]["amount_usd"] == "400"
    noon = DAY + timedelta(hours=12)
    assert (await report(["day"], noon, noon + timedelta(days=2)))["total"]["amount_usd"] == "101"
    assert (await report(["user", "model"], None, None))["total"]["amount_usd"] == "400"
    assert (await report(["tag"], None, None))["total"]["amount_usd"] == "4"
    assert (await report(["user", "key"], None, None))["total"]["amount_usd"] == "4"


async def test_a_late_row_takes_the_sums_of_its_day_away(database: Postgres) -> None:
    """The row counts at once, and the day is summed up again with it."""
    await write(database, [entry("1", at=DAY + timedelta(days=number)) for number in range(3)])
    await sums(database).sum_up()
    await write(database, [entry("0.000000001", at=DAY + timedelta(days=1, hours=23))])
    assert await summed(database) == [DAY.date(), (DAY + timedelta(days=2)).date()]
    report = Spend(database, QUERIES).report
    assert (await report(["workspace"], None, None))["total"]["amount_usd"] == "3.000000001"
    await sums(database).sum_up()
    assert len(await summed(database)) == 3
    assert (await report(["workspace"], None, None))["total"]["amount_usd"] == "3.000000001"


async def test_who_writes_while_a_day_is_summed_up_is_not_left_out(database: Postgres) -> None:
    """Summing up waits for rows that are on their way."""
    await write(database, [entry("1")])
    late = "INSERT INTO ledger_entries SELECT * FROM json_populate_record((SELECT e FROM ledger_entries AS e), $1)"
    async with database.transaction() as connection:
        await connection.execute(late, {"entry": 1, "amount_usd": "2"})
        task = tasks().start("sums", sums(database).sum_up())
        await eventually(lambda: waits(database, "ShareLock"))
        assert await summed(database) == []
    await task
    assert await summed(database) == [DAY.date()]
    assert (await Spend(database, QUERIES).report(["workspace"], None, None))["total"]["amount_usd"] == "3"


async def test_a_row_that_waits_for_the_sums_takes_them_away(database: Postgres) -> None:
    """The other way round: what is added while a day is summed up is missing in no answer."""
    await write(database, [entry("1")])
    late = "INSERT INTO ledger_entries SELECT * FROM json_populate_record((SELECT e FROM ledger_entries AS e), $1)"
    async with database.transaction() as connection:
        await connection.execute(QUERIES["hold_ledger_day"].format(partition=f"ledger_entries_{DAY:%Y%m%d}"))
        task = tasks().start("late", database.execute(late, {"entry": 1, "amount_usd": "2"}))
        await eventually(lambda: waits(database, "RowExclusiveLock"))
        await connection.execute("INSERT INTO ledger_summed_days (day) VALUES ($1)", DAY.date())
    await task
    assert await summed(database) == []


async def test_a_partition_that_is_taken_away_takes_its_sums_along(database: Postgres) -> None:
    """What an operator has put elsewhere is in no answer, summed up or not."""
    await write(database, [entry("1"), entry("2", at=DAY + timedelta(days=1))])
    await sums(database).sum_up()
    await database.execute(f"ALTER TABLE ledger_entries DETACH PARTITION ledger_entries_{DAY:%Y%m%d}")
    assert (await Spend(database, QUERIES).report(["workspace"], None, None))["total"]["amount_usd"] == "2"


async def test_summing_up_goes_on_every_hour(database: Postgres) -> None:
    """And a failure is logged and tried again."""
    await write(database, [entry("1")])
    clock, log = Clock(LATER), ListLog()
    await database.execute("ALTER TABLE ledger_summed_days RENAME TO elsewhere")
    task = tasks().start("sums", LedgerSums(database, QUERIES, clock, log).run())
    await wait_until(lambda: clock.sleepers > 0)
    assert log.of("ledger_not_summed_up")
    await database.execute("ALTER TABLE elsewhere RENAME TO ledger_summed_days")
    await clock.advance(3600)
    await wait_until(lambda: clock.sleepers > 0)
    assert await summed(database) == [DAY.date()]
    task.cancel()


@pytest.mark.parametrize("statement", ["DELETE FROM ledger_summed_days", "TRUNCATE ledger_summed_days CASCADE"])
async def test_sums_may_be_thrown_away_at_any_time(database: Postgres, statement: str) -> None:
    """They hold nothing that the rows do not."""
    await write(database, [entry("1")])
    await sums(database).sum_up()
    await database.execute(statement)
    assert await database.fetch("SELECT FROM ledger_sums") == []
    assert (await Spend(database, QUERIES).report(["workspace"], None, None))["total"]["amount_usd"] == "1"
