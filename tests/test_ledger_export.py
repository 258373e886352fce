"""The ledger as a file: every entry once, exact to the last digit, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llmproxy.db import Postgres
from llmproxy.errors import BadRequest, StorageError
from llmproxy.ledger_export import EXPORTED, CsvFile, ParquetFile, export_ledger
from llmproxy.services import Row
from llmproxy.testing import StartProxy, reply, stream
from tests.ledger_rows import DAY, QUERIES, CommandLine, Entry, entry, on, write

# The library has no types of its own.
parquet: Any = import_module("pyarrow.parquet")
EXACT = "0.000000000000000000000000000000123456789"
MILLION = "123456789012345678901234.000000000000000001"


def rows() -> list[Entry]:
    """Entries that a careless export would damage."""
    first = entry(EXACT, tags=["a,b", 'say "hi"', "line\nbreak"], user_id="Zoë; =1+1")
    adjustment = {**first, "entry": 1, "kind": "adjustment", "amount_usd": f"-{EXACT}", "uncached_input_tokens": 0}
    return [first, adjustment, entry(MILLION, at=DAY + timedelta(hours=30)), entry(None, tags=[])]


def read_csv(data: bytes) -> list[dict[str, Any]]:
    """The lines of a CSV file, nothing in them read yet."""
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


async def test_csv_holds_what_the_ledger_holds(database: Postgres) -> None:
    """Every entry is there once, with amounts, times and tags that read back as they are stored."""
    await write(database, rows())
    file = io.BytesIO()
    assert await export_ledger(database, QUERIES, CsvFile(file), None, None) == 4
    read = {(line["request_id"], int(line["entry"])): line for line in read_csv(file.getvalue())}
    stored = await database.fetch("SELECT * FROM ledger_entries")
    assert read.keys() == {(str(row["request_id"]), row["entry"]) for row in stored}
    for row in stored:
        line = read[str(row["request_id"]), row["entry"]]
        assert tuple(line) == EXPORTED
        assert (Decimal(line["amount_usd"]) if line["amount_usd"] else None) == row["amount_usd"]
        assert datetime.fromisoformat(line["occurred_at"]) == row["occurred_at"]
        assert (json.loads(line["tags"]) if line["tags"] else None) == row["tags"]
        assert (line["user_id"] or None) == row["user_id"]
        assert "E" not in line["amount_usd"]


async def test_parquet_holds_what_the_ledger_holds(database: Postgres, tmp_path: Path) -> None:
    """Types are kept: times with their zone, counts as numbers, tags as lists; amounts are exact text."""
    await write(database, rows())
    path = tmp_path / "ledger.parquet"
    with path.open("wb") as file:
        await export_ledger(database, QUERIES, ParquetFile(file), None, None, page_rows=2)
    read = {(line["request_id"], line["entry"]): line for line in parquet.read_table(path).to_pylist()}
    for row in await database.fetch("SELECT * FROM ledger_entries"):
        expected = {**{name: row[name] for name in EXPORTED}, "request_id": str(row["request_id"])}
        line = read.pop((str(row["request_id"]), row["entry"]))
        amount = line.pop("amount_usd")
        assert (None if amount is None else Decimal(amount)) == expected.pop("amount_usd")
        assert line == expected
    assert read == {}


async def test_real_requests_are_exported_whole(proxy: StartProxy) -> None:
    """What a client was answered stands in the file with all that it cost."""
    async with proxy(upstream=[reply("a"), stream("b", "c")]) as client:
        await client.chat(headers={"x-llmproxy-tags": "team-a"})
        await client.chat(stream=True)
        ledger = (await client.rows()).ledger
        file = io.BytesIO()
        assert await export_ledger(client.app.services.database, QUERIES, CsvFile(file), None, None) == 2
        lines = read_csv(file.getvalue())
        assert [Decimal(line["amount_usd"]) for line in lines] == [row["amount_usd"] for row in ledger]
        assert [line["tags"] for line in lines] == ['["team-a"]', "[]"]


async def test_only_the_span_is_exported(database: Postgres) -> None:
    """From `since` on and before `until`, to the moment."""
    await write(database, [entry(at=DAY + timedelta(hours=hour)) for hour in range(48)])
    file = io.BytesIO()
    span = DAY + timedelta(hours=5), DAY + timedelta(hours=30)
    await export_ledger(database, QUERIES, CsvFile(file), *span)
    hours = sorted(datetime.fromisoformat(line["occurred_at"]) - DAY for line in read_csv(file.getvalue()))
    assert hours == [timedelta(hours=hour) for hour in range(5, 30)]


class CountingFile:
    """Takes rows and forgets them; knows the most that it was given at once."""

    def __init__(self) -> None:
        self.largest = self.rows = 0

    def write(self, rows: Sequence[Row]) -> None:
        self.largest, self.rows = max(self.largest, len(rows)), self.rows + len(rows)

    def close(self) -> None:
        pass


async def test_memory_does_not_grow_with_the_ledger(database: Postgres) -> None:
    """Twenty times the rows take the same memory: never more than a page of them."""
    await many(database, 1_000, DAY)
    small = await peak_bytes(database, DAY)
    await many(database, 20_000, DAY + timedelta(days=1))
    large = await peak_bytes(database, DAY + timedelta(days=1))
    assert large < small * 1.5


async def many(database: Postgres, count: int, day: datetime) -> None:
    """So many entries of one day."""
    await database.fetch("SELECT llmproxy_create_partitions($1, $1)", day.date())
    await database.execute(
        "INSERT INTO ledger_entries (request_id, occurred_at, kind, workspace, amount_usd) "
        "SELECT gen_random_uuid(), $1::timestamptz + n * interval '1 second', 'exchange', 'acme', n / 7.0 "
        "FROM generate_series(1, $2::integer) AS n",
        day,
        count,
    )


async def peak_bytes(database: Postgres, day: datetime) -> int:
    """The most memory that exporting a day takes."""
    target = CountingFile()
    tracemalloc.start()
    try:
        written = await export_ledger(database, QUERIES, target, day, day + timedelta(days=1), page_rows=500)
        assert (written, target.largest <= 500) == (target.rows, True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_command_writes_a_file_once(tmp_path: Path, database_url: str) -> None:
    """It says how many entries there are, and never writes over what is there."""
    command_line = CommandLine(tmp_path, database_url)
    on(database_url, lambda database: write(database, rows()))
    files = {form: tmp_path / f"ledger.{form}" for form in ("csv", "parquet")}
    for form, path in files.items():
        arguments = ("ledger", "export", "--since", "2026-03-14", "--format", form, "--file", str(path))
        assert command_line.document(*arguments)["entries"] == 4
        data = path.read_bytes()
        assert isinstance(command_line(*arguments).exception, BadRequest)
        assert path.read_bytes() == data
    assert len(read_csv(files["csv"].read_bytes())) == parquet.read_table(files["parquet"]).num_rows == 4


def test_half_a_ledger_is_no_file(tmp_path: Path, database_url: str) -> None:
    """When the database goes away, nothing is left that could be taken for the whole."""
    command_line = CommandLine(tmp_path, database_url)
    command_line.configure(database={"url": "postgresql://nobody@127.0.0.1:1/none", "connect_seconds": 1})
    path = tmp_path / "ledger.csv"
    result = command_line("ledger", "export", "--file", str(path))
    assert isinstance(result.exception, StorageError)
    assert not path.exists()


@pytest.mark.parametrize("hour", [0, 23])
async def test_an_empty_span_is_an_empty_file(database: Postgres, hour: int) -> None:
    """A heading and nothing else."""
    file = io.BytesIO()
    start = datetime(2026, 1, 1, hour, tzinfo=UTC)
    assert await export_ledger(database, QUERIES, CsvFile(file), start, start + timedelta(hours=2)) == 0
    assert file.getvalue().decode().rstrip("\n").split(",") == list(EXPORTED)
