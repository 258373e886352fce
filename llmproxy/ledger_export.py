"""The ledger as a file, CSV or Parquet, a page at a time; amounts are text, so that none loses a digit."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from io import TextIOWrapper
from types import ModuleType
from typing import Any, BinaryIO, Final, Protocol
from uuid import UUID

import orjson

from llmproxy.batch_writer import COLUMNS
from llmproxy.errors import ConfigError
from llmproxy.ledger import PAGE_ROWS, day_bounds, pages
from llmproxy.queries import Queries
from llmproxy.services import Database, Row
from llmproxy.usage import USAGE_CLASSES

EXPORTED: Final = COLUMNS["ledger_entries"]


class RowFile(Protocol):
    """A file that takes rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""

    def close(self) -> None:
        """Write the end; what the file stands on stays open."""


async def export_ledger(
    database: Database,
    queries: Queries,
    target: RowFile,
    since: datetime | None,
    until: datetime | None,
    *,
    page_rows: int = PAGE_ROWS,
) -> int:
    """Write what occurred in a span, as the ledger is now, and say how many rows that is.

    No more than a page of rows is in memory at a time. Raises StorageError.
    """
    query = queries["ledger_page"].format(columns=", ".join(EXPORTED))
    written = 0
    async with database.transaction() as connection:
        await connection.execute(queries["ledger_snapshot"])
        for row in await connection.fetch(queries["ledger_days"], since, until):
            first, before = day_bounds(row["day"], since, until)
            async for page in pages(connection, query, first, before, page_rows):
                target.write(page)
                written += len(page)
    target.close()
    return written


class CsvFile:
    """CSV with a heading. Times are ISO 8601 in UTC, tags a JSON array, and what is null is empty."""

    def __init__(self, file: BinaryIO) -> None:
        self._text = TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._lines = csv.writer(self._text, lineterminator="\n")
        self._lines.writerow(EXPORTED)

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        self._lines.writerows([_text(row[name]) for name in EXPORTED] for row in rows)

    def close(self) -> None:
        """Write the end."""
        self._text.detach()


class ParquetFile:
    """Parquet, with a row group for each page. Raises ConfigError when its library is not installed."""

    def __init__(self, file: BinaryIO) -> None:
        self._arrow = _library("pyarrow")
        self._schema = _schema(self._arrow)
        # The library has no types of its own.
        self._writer: Any = _library("pyarrow.parquet").ParquetWriter(file, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        columns = {name: [_plain(row[name]) for row in rows] for name in EXPORTED}
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))

    def close(self) -> None:
        """Write the end."""
        self._writer.close()


FORMATS: Final[Mapping[str, type[CsvFile | ParquetFile]]] = {"csv": CsvFile, "parquet": ParquetFile}


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError("Parquet needs a library of its own: pip install 'llmproxy[parquet]'.") from error


def _schema(arrow: ModuleType) -> object:
    special = {
        "occurred_at": arrow.timestamp("us", tz="UTC"),
        "entry": arrow.int32(),
        "tags": arrow.list_(arrow.string()),
        **dict.fromkeys(USAGE_CLASSES, arrow.int64()),
    }
    return arrow.schema([(name, special.get(name, arrow.string())) for name in EXPORTED])


def _plain(value: object) -> object:
    """A value as Parquet takes it."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value) if isinstance(value, UUID) else value


def _text(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return orjson.dumps(value).decode() if isinstance(value, list) else _plain(value)
