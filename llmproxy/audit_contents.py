"""What is stored of requests: the queries for it, made for the columns of a chain's form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from llmproxy.audit_chain import Form
from llmproxy.errors import StorageError
from llmproxy.exchange import Document
from llmproxy.services import Connection, Row

TABLES: Final = ("requests", "attempts", "ledger_entries")
# The queries of so many pairs of days are kept; there is one nearly always.
_TEXTS: Final = 8
_COLUMN: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)


class Written(NamedTuple):
    """The link that a chain wrote last, by its number and the time of its request."""

    number: int
    admitted_at: str


@dataclass(slots=True)
class BatchContents:
    """What was stored of the requests of a batch, as columns.

    Attributes:
        places: The id and the time of each request, as Postgres sends them.
        is_committed: Whether the link that was written last is in the database.
    """

    ids: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    places: list[bytes] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    ledgers: list[bytes] = field(default_factory=list)
    is_committed: bool = False


class ContentReader:
    """Reads back what a batch has stored, within its transaction."""

    def __init__(self, queries: Mapping[str, str], form: Form) -> None:
        self._queries = queries
        self._form = form
        self._text = lru_cache(_TEXTS)(self._make_text)

    async def read(
        self, connection: Connection, recorded: Sequence[Document], chain: UUID, written: Written | None
    ) -> BatchContents:
        """The contents, ordered by day. Raises StorageError."""
        days: dict[date, tuple[list[str], list[str]]] = {}
        for record in recorded:
            time = record["request"]["admitted_at"]
            ids, times = days.setdefault(_day(time), ([], []))
            ids.append(record["request"]["id"])
            times.append(time)
        contents = BatchContents()
        for day, (ids, times) in days.items():
            place = written or Written(0, times[0])
            row = await connection.fetch_row(self._text(day, _day(place.admitted_at)), ids, times, chain, *place)
            _extend(contents, ids, times, row)
        return contents

    def _make_text(self, day: date, written_day: date) -> str:
        return _with_contents(
            self._queries, "contents_of_batch", self._form, _suffix(day), written_day=_suffix(written_day)
        )


def _extend(contents: BatchContents, ids: list[str], times: list[str], row: Row | None) -> None:
    if row is None or None in row["requests"]:
        raise StorageError("The rows that were just written cannot be read back.")
    contents.ids += ids
    contents.times += times
    contents.places += row["places"]
    contents.requests += row["requests"]
    contents.ledgers += row["ledgers"]
    contents.is_committed = row["is_committed"]


def _day(time: str) -> date:
    return datetime.fromisoformat(time).astimezone(UTC).date()


def links_of_chain(queries: Mapping[str, str], form: Form) -> str:
    """The query for a page of links with the contents of their requests. Raises StorageError for a form not ours."""
    return _with_contents(queries, "links_of_chain", form, "")


def _with_contents(queries: Mapping[str, str], name: str, form: Form, day: str, **more: str) -> str:
    columns = {table: ", ".join(f"{table}.{_checked(column)}" for column in form[table]) for table in TABLES}
    parts = {part: queries[f"{part}_content"].format(**columns, day=day) for part in ("request", "ledger")}
    return queries[name].format(**parts, **more)


def _suffix(day: date) -> str:
    """What the partitions of a day are called behind the name of their table."""
    return f"_{day:%Y%m%d}"


def _checked(column: str) -> str:
    """A form is read from the database, and a signature says only who wrote it."""
    if not _COLUMN.fullmatch(column):
        raise StorageError(f"The audit log names a column {column!r}, which cannot be one.")
    return column
