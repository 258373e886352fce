"""A large database: what the gateway asks of it reads what it needs to, by an index or in the days it is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.growth_rows import Size, days, fill_database
from llmproxy.admin.keys import StoredKeys
from llmproxy.admin.requests import RequestFilter, RequestLog
from llmproxy.admin.spend import GROUPS, spend_query
from llmproxy.admin.workspaces import StoredWorkspaces
from llmproxy.audit_notary import ActionLog, Notary
from llmproxy.batch_writer import BatchPart, BatchWriter
from llmproxy.config import AuditConfig
from llmproxy.db import Postgres
from llmproxy.keys import Workspace
from llmproxy.partitions import Partitions
from llmproxy.queries import Queries
from llmproxy.quotas import QuotaSettlement
from llmproxy.request import Document
from llmproxy.services import Connection, Database, Row, SystemClock
from llmproxy.testing.database import TestDatabases, make_postgres
from tests.audit_rows import KEYS
from tests.test_audit import ListLog, record

SIZE = Size(keys=20_000, workspaces=100, targets=20, rows=120_000, days=8)
QUERIES = Queries()
# Whatever grows with the traffic, or with the number of tenants.
GROWING = r"^(ledger_entries|requests|attempts|request_bodies|audit_chain)_\d{8}$|^virtual_keys$"
SCANNED = """
SELECT relname FROM pg_stat_xact_user_tables WHERE seq_tup_read > 0 AND relname ~ $1 ORDER BY relname
"""
FETCHED = """
SELECT sum(idx_tup_fetch + seq_tup_read)::bigint AS fetched FROM pg_stat_xact_user_tables WHERE relname ~ '^requests_'
"""
PAGE = 50


@pytest.fixture(scope="module")
def large_url(test_databases: TestDatabases) -> Iterator[str]:
    """A database with a week of rows, and statistics on them."""
    url = asyncio.run(test_databases.create())
    asyncio.run(fill_database(url, SIZE))
    yield url
    asyncio.run(test_databases.drop(url))


@pytest.fixture
async def large(large_url: str) -> AsyncIterator[Postgres]:
    """An open pool on it."""
    postgres = make_postgres(large_url)
    await postgres.open()
    yield postgres
    await postgres.close()


class Plan:
    """How a query was carried out, from EXPLAIN."""

    def __init__(self, explained: Document) -> None:
        self._nodes = list(_below(explained["Plan"]))

    @property
    def rows_read(self) -> int:
        """The rows that were taken out of tables, wanted or not."""
        scans = [node for node in self._nodes if "Relation Name" in node]
        return sum(
            int((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]) for node in scans
        )

    def days(self, table: str) -> set[str]:
        """The days of a table that were looked into."""
        looked = [node for node in self._nodes if node["Actual Loops"]]
        names = [node.get("Relation Name", "") for node in looked]
        return {name.removeprefix(f"{table}_") for name in names if name.startswith(f"{table}_")}


def _below(node: Any) -> Iterator[Any]:  # a tree of JSON
    yield node
    for inner in node.get("Plans", ()):
        yield from _below(inner)


async def plan_of(database: Connection, query: str, *args: object) -> Plan:
    """How Postgres carries out a query."""
    [row] = await database.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *args)
    return Plan(row["QUERY PLAN"][0])


class Explaining:
    """A database that also notes how every query was carried out."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._plans: list[Plan] = []

    def __getattr__(self, name: str) -> Any:  # whatever Postgres has
        return getattr(self._database, name)

    @property
    def rows_read(self) -> int:
        """The rows that were taken out of tables by all of them."""
        return sum(plan.rows_read for plan in self._plans)

    def days(self, table: str) -> set[str]:
        """The days of a table that any of them looked into."""
        return {day for plan in self._plans for day in plan.days(table)}

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """The rows."""
        self._plans.append(await plan_of(self._database, query, *args))
        return await self._database.fetch(query, *args)

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        """The first row."""
        return next(iter(await self.fetch(query, *args)), None)


async def scanned(database: Database, query: str, *args: object) -> list[str]:
    """The growing tables of which a query, and whatever functions it calls, read rows one after the other."""
    async with database.transaction() as connection:
        await connection.fetch(query, *args)
        return [row["relname"] for row in await connection.fetch(SCANNED, GROWING)]


class OneConnection:
    """A database whose every query goes over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:  # whatever a connection has
        return getattr(self._connection, name)


async def fetched(connection: Connection) -> int:
    """The rows that a transaction has taken out of `requests` so far."""
    row = await connection.fetch_row(FETCHED)
    return int(row["fetched"]) if row else 0


def names_of(wanted: Sequence[object]) -> set[str]:
    """Days as partitions are called."""
    return {f"{day:%Y%m%d}" for day in wanted}


# Requests


class Scans:
    """A part of a batch that writes nothing, but notes what was scanned up to then."""

    def __init__(self) -> None:
        self.found: list[str] = []

    async def write(self, connection: Connection, recorded: Sequence[Document]) -> None:
        """Look."""
        assert recorded
        self.found += [row["relname"] for row in await connection.fetch(SCANNED, GROWING)]


async def test_recording_scans_nothing(large: Postgres, tmp_path: Path) -> None:
    """A batch finds by index what it may have written before, on a day full of rows."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    partitions = Partitions(large, QUERIES, AuditConfig(), SystemClock(), ListLog())
    scans = Scans()
    parts: Sequence[BatchPart] = [QuotaSettlement(QUERIES), scans]
    writer = BatchWriter(
        large, QUERIES, partitions, tmp_path / "rejected", clock=SystemClock(), log=ListLog(), parts=parts
    )
    await writer.write([record(admitted_at=yesterday.isoformat()) for _ in range(20)])
    assert scans.found == []


WINDOW = "SELECT llmproxy_ledger_sum($1::json, $2, $3)"
NOON = time(12, tzinfo=UTC)


@pytest.mark.parametrize("share", [{"workspace": "w7"}, {"user_id": "user7"}, {"key_id": "key_7"}])
async def test_opening_a_budget_scans_nothing(large: Postgres, share: dict[str, str]) -> None:
    """What a workspace, a user or a key spent in a window is counted by index, also on days that have no sums."""
    since, before = (datetime.combine(day, NOON) for day in days(SIZE.days)[-3:-1])
    assert await scanned(large, WINDOW, {"unit": "usd", **share}, since, before) == []


@pytest.mark.parametrize("share", [{}, {"feature": "feature7"}, {"provider_name": "p0"}, {"model": "p0/model"}])
async def test_opening_a_budget_reads_no_day_that_is_summed_up(large: Postgres, share: dict[str, str]) -> None:
    """Whatever it is held to: of a window that begins and ends within a day, the rows of those two days are left."""
    since, before = (datetime.combine(day, NOON) for day in (days(SIZE.days)[0], days(SIZE.days)[-2]))
    found = await scanned(large, WINDOW, {"unit": "usd", **share}, since, before)
    assert {name.removeprefix("ledger_entries_") for name in found} <= names_of([since, before])


async def test_a_window_reads_its_own_days_only(large: Postgres) -> None:
    """Also a budget of a scope that has no index."""
    since, before = (datetime.combine(day, NOON) for day in days(SIZE.days)[-3:-1])
    found = await scanned(large, WINDOW, {"unit": "usd", "tag": "anything"}, since, before)
    assert {name.removeprefix("ledger_entries_") for name in found} == names_of(days(SIZE.days)[-3:-1])


async def test_a_changed_key_is_read_alone(large: Postgres) -> None:
    """A worker that is told of a key reads that one, of all there are."""
    query = QUERIES.stored_keys.format(which=QUERIES.stored_keys_named)
    assert (await plan_of(large, query, ["key_77", "key_78"])).rows_read == 2


async def test_all_keys_are_read_page_by_page(large: Postgres) -> None:
    """A page in the midst of them costs what it holds."""
    query = QUERIES.stored_keys.format(which=QUERIES.stored_keys_after)
    assert (await plan_of(large, query, "key_5", 100)).rows_read == 100


# Spend


@pytest.mark.parametrize("by", GROUPS)
async def test_spend_reads_the_days_it_is_about(large: Postgres, by: str) -> None:
    """`spend --since` looks into no other day's rows, whatever it sums up for."""
    last = days(SIZE.days)[-2:]
    since = datetime.combine(last[0], time(), UTC)
    plan = await plan_of(large, spend_query(QUERIES, [by], of_workspace=False), since, None, None)
    today = datetime.now(UTC).date()
    allowed = names_of([*last, *(today + timedelta(days=number) for number in range(10))])
    assert names_of(last) <= plan.days("ledger_entries") <= allowed
    assert plan.days("requests") <= allowed


async def test_spend_of_a_long_time_reads_no_day_that_is_summed_up(large: Postgres) -> None:
    """A question about everything looks into the days beside the sums alone."""
    found = [row["day"] for row in await large.fetch("SELECT day FROM ledger_summed_days ORDER BY day")]
    assert len(found) >= SIZE.days - 1
    first, last = (datetime.combine(day, time(), UTC) for day in (found[0], found[-1]))
    query = spend_query(QUERIES, ["workspace"], of_workspace=False, has_sums=True)
    plan = await plan_of(large, query, None, None, None, found, first, last + timedelta(days=1))
    assert plan.days("ledger_entries") & names_of(found) == set()


async def test_spend_of_a_workspace_reads_its_rows_alone(large: Postgres) -> None:
    """A hundredth of what there is, where there are a hundred."""
    plan = await plan_of(large, spend_query(QUERIES, ["model"], of_workspace=True), None, None, None, "w7")
    assert plan.rows_read == SIZE.rows // SIZE.workspaces


# Lists


def listed(database: Database) -> StoredKeys:
    """The keys, on a database."""
    actions = ActionLog(Notary(QUERIES, KEYS, SystemClock(), ListLog()), "a test")
    return StoredKeys(database, QUERIES, SystemClock(), actions, dict)


@pytest.mark.parametrize("workspace", [None, "w7"])
async def test_a_page_of_keys_reads_a_page(large: Postgres, workspace: str | None) -> None:
    """The first as the one after it, of all keys and of a workspace's."""
    explaining = Explaining(large)
    keys = listed(explaining)
    first = await keys.find(workspace, None, PAGE)
    second = await keys.find(workspace, first["data"][-1]["id"], PAGE)
    ids = [key["id"] for page in (first, second) for key in page["data"]]
    assert len(set(ids)) == 2 * PAGE
    # One more of each page is read to know of more, and one to know where the second begins.
    assert explaining.rows_read <= 2 * (PAGE + 1) + 1


async def test_every_key_is_on_one_page(large: Postgres) -> None:
    """Pages neither overlap nor leave anything out, also where many keys were made in the same moment."""
    await large.execute("UPDATE virtual_keys SET created_at = '2026-01-01' WHERE workspace = 'w8'")
    keys = listed(large)
    found, after = [], None
    while True:
        page = await keys.find("w8", after, 30)
        found += [key["id"] for key in page["data"]]
        if not page["has_more"]:
            break
        after = found[-1]
    assert sorted(found) == sorted(f"key_{number}" for number in range(8, SIZE.keys, SIZE.workspaces))


async def test_workspaces_come_page_by_page(large: Postgres) -> None:
    """Those of the configuration in their places between those of the database."""
    actions = ActionLog(Notary(QUERIES, KEYS, SystemClock(), ListLog()), "a test")
    configured = {name: Workspace() for name in ("A", "w30", "w300", "z")}
    workspaces = StoredWorkspaces(large, QUERIES, actions, lambda: configured)
    found: list[Document] = []
    while True:
        page = await workspaces.list(found[-1]["id"] if found else None, 7)
        found += page["data"]
        assert len(page["data"]) <= 7
        if not page["has_more"]:
            break
    names = [each["id"] for each in found]
    assert names == sorted({*configured, *(f"w{number}" for number in range(SIZE.workspaces))})
    assert [each["id"] for each in found if each["source"] == "config"] == ["A", "w300", "z"]


@pytest.mark.parametrize("workspace", [None, "w7"])
async def test_a_page_of_requests_reads_a_page(large: Postgres, workspace: str | None) -> None:
    """The latest, and those after them: what `requests tail` shows and the admin API lists."""
    explaining = Explaining(large)
    log = RequestLog(explaining, QUERIES)
    first = await log.find(RequestFilter(workspace=workspace, limit=PAGE))
    await log.find(RequestFilter(workspace=workspace, limit=PAGE, after=str(first["data"][-1]["id"])))
    # Rows of the same moment are sorted by their ids, for which the next one has to be seen.
    assert explaining.rows_read <= 2 * (PAGE + 3)


async def test_a_filter_without_an_index_reads_the_days_asked_for(large: Postgres) -> None:
    """Requests that failed are looked for in the days between `since` and `until`."""
    first, second = days(SIZE.days)[2:4]
    midnight = datetime.combine(first, time(), UTC)
    span = midnight, midnight + timedelta(days=2)
    explaining = Explaining(large)
    await RequestLog(explaining, QUERIES).find(RequestFilter(outcome="failed", since=span[0], until=span[1]))
    assert explaining.days("requests") <= names_of([first, second])


async def test_one_request_is_found_at_once(large: Postgres) -> None:
    """`requests show`: its id says where it is, and so for its attempts and bodies."""
    yesterday = datetime.combine(days(SIZE.days)[-1], time(), UTC)
    [row] = (await RequestLog(large, QUERIES).find(RequestFilter(until=yesterday, limit=1)))["data"]
    explaining = Explaining(large)
    found = await RequestLog(explaining, QUERIES).get(str(row["id"]))
    assert (found["id"], len(found["attempts"])) == (row["id"], 1)
    assert explaining.rows_read == 2


async def test_what_was_asked_before_makes_no_plan_worse(large_url: str) -> None:
    """A connection that has often listed all requests does not read all to list a workspace's."""
    large = make_postgres(large_url, pool_size=2)
    await large.open()
    async with large.transaction() as connection:
        log = RequestLog(OneConnection(connection), QUERIES)
        for _ in range(10):
            await log.find(RequestFilter(limit=PAGE))
        before = await fetched(connection)
        await log.find(RequestFilter(workspace="w7", limit=PAGE))
        assert await fetched(connection) - before <= PAGE + 3
    await large.close()
