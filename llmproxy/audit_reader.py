"""Reading the audit back from Postgres, a page at a time, all of it as it was at one moment."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from uuid import UUID

from llmproxy.audit_chain import Contents, Link, Problem
from llmproxy.audit_contents import links_of_chain
from llmproxy.audit_log import ChainFacts, LogCheck, LogEntry
from llmproxy.services import Connection, Database, Row

PAGE_ROWS: Final = 500
_MAX_STRAYS_OF_A_DAY: Final = 100
_SNAPSHOT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
_NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
_NO_ADJUSTMENTS: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Span:
    """Which links are looked at, by the time at which they were recorded; None has no bound."""

    since: datetime | None = None
    until: datetime | None = None


@asynccontextmanager
async def database_reader(database: Database, queries: Mapping[str, str], span: Span) -> AsyncIterator[DatabaseReader]:
    """A reader that sees the tables as they are now, whatever is written or dropped meanwhile. Raises StorageError."""
    async with database.transaction() as connection:
        await connection.execute(_SNAPSHOT)
        yield DatabaseReader(connection, queries, span)


class DatabaseReader:
    """The audit as the tables have it."""

    def __init__(self, connection: Connection, queries: Mapping[str, str], span: Span) -> None:
        self._connection = connection
        self._queries = queries
        self.span: Final = span

    async def entries(self) -> AsyncIterator[LogEntry]:
        """The signed log, from its beginning."""
        number = 0
        while page := await self._connection.fetch(self._queries["page_of_log"], number, PAGE_ROWS):
            for row in page:
                yield LogEntry(**row)
            number = page[-1]["number"]

    async def start(self, chain: UUID) -> Link | None:
        """The link of a chain after which the span begins; None for the chain's own beginning."""
        if self.span.since is None:
            return None
        row = await self._connection.fetch_row(self._queries["last_link_before"], chain, self.span.since)
        return Link(**row) if row else None

    async def rows(self, chain: UUID, facts: ChainFacts, start: Link | None) -> AsyncIterator[tuple[Link, Contents]]:
        """Every link of a chain after `start`, and what the tables hold of its request."""
        query = links_of_chain(self._queries, facts.form)
        place = (start.number, start.admitted_at) if start else (0, _BEGINNING)
        while page := await self._connection.fetch(query, chain, *place, self.span.until, PAGE_ROWS):
            for row in page:
                fields = dict(row)
                contents = Contents(fields.pop("request"), fields.pop("ledger"))
                yield Link(**fields), contents
            place = (page[-1]["number"], page[-1]["admitted_at"])

    async def strays(self, log: LogCheck) -> AsyncIterator[Problem]:
        """Rows that are in no chain, and chains of which the log knows nothing."""
        # Rows from before the first entry were recorded by a release that had no chains.
        began_at = log.began_at or _NEVER
        first = max(began_at, self.span.since or began_at)
        for row in await self._connection.fetch(self._queries["partition_days"]):
            start, end = bounds_of(row["day"])
            for problem in await self._unknown_chains(start, end, log):
                yield problem
            for problem in await self._stray_rows(max(start, first), end):
                yield problem
            for problem in await self._unknown_adjustments(row["day"], log):
                yield problem

    async def _unknown_adjustments(self, day: date, log: LogCheck) -> Sequence[Problem]:
        start, end = bounds_of(day)
        if self.span.since is not None and end <= self.span.since:
            return ()
        row = await self._connection.fetch_row(self._queries["adjustments_of_day"], start, end)
        if row is None or row["sha256"] == log.adjusted.get(day, _NO_ADJUSTMENTS):
            return ()
        return (Problem(f"The adjustments of {day} in ledger_entries are not those that the log knows of."),)

    async def _unknown_chains(self, start: datetime, end: datetime, log: LogCheck) -> Sequence[Problem]:
        rows = await self._connection.fetch(self._queries["chains_of_day"], start, end)
        return [
            Problem(f"The log knows no chain {row['chain']}, in which request {row['request_id']} is.", *_place(row))
            for row in rows
            if row["chain"] not in log.chains
        ]

    async def _stray_rows(self, start: datetime, end: datetime) -> Sequence[Problem]:
        rows = await self._connection.fetch(self._queries["strays_of_day"], start, end, _MAX_STRAYS_OF_A_DAY)
        return [
            Problem(f"Request {row['request_id']}: a row of {row['found_in']} is in no chain.", row["request_id"])
            for row in rows
        ]


def _place(row: Row) -> tuple[UUID, UUID, int]:
    return row["request_id"], row["chain"], row["number"]


def bounds_of(day: date) -> tuple[datetime, datetime]:
    """The beginning and the end of a UTC day."""
    start = datetime.combine(day, time(), UTC)
    return start, start + timedelta(days=1)
