"""Tampering with the tables themselves, as somebody does who can switch triggers off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from llmproxy.audit_log import LogHead
from llmproxy.audit_reader import DatabaseReader, Span
from llmproxy.audit_verify import Report, verify
from llmproxy.db import Postgres
from tests.audit_rows import KEYS, QUERIES, messages, verified, written

# Where a column takes but certain values, or refers to others.
VALUES: Mapping[str, str] = {
    "outcome": "'failed'",
    "kind": "'adjustment'",
    "usage_provenance": "'assumed'",
    "cost_provenance": "'assumed'",
}
CHANGES: Mapping[str, str] = {
    "text": "coalesce({0}, '') || 'x'",
    "uuid": "gen_random_uuid()",
    "timestamp with time zone": "coalesce({0}, now()) + interval '1 microsecond'",
    "boolean": "NOT {0}",
    "integer": "coalesce({0}, 0) + 1",
    "bigint": "coalesce({0}, 0) + 1",
    "numeric": "coalesce({0}, 0) + 0.000000000000000001",
    "double precision": "coalesce({0}, 0) + 0.001",
    "ARRAY": "{0} || '{{x}}'",
    "jsonb": """'{{"x": 1}}'""",
    "bytea": "coalesce(set_byte({0}, 0, get_byte({0}, 0) # 1), '\\x00')",
}
OWN_ID = {"requests": "id", "attempts": "request_id", "ledger_entries": "request_id", "audit_chain": "request_id"}


async def columns(database: Postgres) -> Sequence[Mapping[str, Any]]:
    """Every column of the tables that are chained."""
    query = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_name = ANY($1)"
    return await database.fetch(f"{query} ORDER BY 1, 2", list(OWN_ID))


class _UndoError(Exception):
    """Takes a tampering back."""


async def tampered(database: Postgres, *statements: str) -> Report:
    """What verifying finds after statements of somebody who can switch triggers off; nothing of it stays."""
    reports = []
    with suppress(_UndoError):
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL session_replication_role = replica")
            for statement in statements:
                await connection.execute(statement)
            reports.append(await verify(DatabaseReader(connection, QUERIES, Span()), KEYS))
            raise _UndoError
    return reports[0]


async def test_a_change_of_any_column_is_found(database: Postgres, tmp_path: Path) -> None:
    """In the database itself, a change of any column of any of the tables is found, and its request named."""
    await written(database, tmp_path)
    ids = [row["id"] for row in await database.fetch("SELECT request_id AS id FROM audit_chain ORDER BY number, chain")]
    missed, every = [], await columns(database)
    for number, column in enumerate(every):
        table, name, request_id = column["table_name"], column["column_name"], ids[number % len(ids)]
        change = VALUES.get(name) or CHANGES[column["data_type"]].format(name)
        where = f"{OWN_ID[table]} = '{request_id}'"
        report = await tampered(database, f"UPDATE {table} SET {name} = {change} WHERE {where}")  # noqa: S608 - ours
        if request_id not in {problem.request_id for problem in report.problems}:
            missed.append((table, name, messages(report)))
    assert missed == []
    assert len(every) > 100
    assert messages(await tampered(database)) == []


@pytest.mark.parametrize("table", OWN_ID)
async def test_rows_deleted_or_added_are_found(database: Postgres, tmp_path: Path, table: str) -> None:
    """A row that is deleted from any table, or doubled under another id, is found and its request named."""
    await written(database, tmp_path)
    [row] = await database.fetch("SELECT request_id AS id, chain FROM audit_chain WHERE number = 9 LIMIT 1")
    where, other = f"{OWN_ID[table]} = '{row['id']}'", uuid4()
    deleted = await tampered(database, f"DELETE FROM {table} WHERE {where}")  # noqa: S608 - ours
    assert row["id"] in {problem.request_id for problem in deleted.problems}
    copy = f"CREATE TEMP TABLE copy AS SELECT * FROM {table} WHERE {where}"  # noqa: S608 - ours
    change = f"UPDATE copy SET {OWN_ID[table]} = '{other}'"  # noqa: S608 - ours
    added = await tampered(
        database,
        copy,
        change,
        *_unbound(table),
        f"INSERT INTO {table} SELECT * FROM copy",  # noqa: S608 - ours
    )
    assert other in {problem.request_id for problem in added.problems}


def _unbound(table: str) -> Sequence[str]:
    """A second link of a number needs another chain, or another time."""
    return ["UPDATE copy SET admitted_at = admitted_at + interval '1 microsecond'"] if table == "audit_chain" else []


async def test_a_whole_request_that_is_removed_is_found(database: Postgres, tmp_path: Path) -> None:
    """A request that is deleted from every table leaves a gap, which the next link names."""
    await written(database, tmp_path)
    rows = await database.fetch(
        "SELECT request_id AS id FROM audit_chain WHERE number IN (9, 10) ORDER BY chain, number"
    )
    gone, following = rows[0]["id"], rows[1]["id"]
    report = await tampered(
        database,
        *(f"DELETE FROM {table} WHERE {name} = '{gone}'" for table, name in OWN_ID.items()),  # noqa: S608 - ours
    )
    assert report.problem_count == 1
    assert report.problems[0].request_id == following
    assert "comes after link 8" in report.problems[0].message


async def test_a_chain_that_is_removed_is_found(database: Postgres, tmp_path: Path) -> None:
    """Without its entries in the log a chain cannot be removed, with them the log is cut or has a gap."""
    await written(database, tmp_path)
    [first, last] = [
        row["chain"]
        for row in await database.fetch("SELECT chain FROM audit_chain GROUP BY chain ORDER BY min(recorded_at)")
    ]
    gone = [
        f"DELETE FROM {table} WHERE {name} IN (SELECT request_id FROM audit_chain WHERE chain = '{{0}}')"  # noqa: S608
        for table, name in OWN_ID.items()
    ]
    rows_only = await tampered(database, *(statement.format(first) for statement in gone))
    assert "breaks off at link 0" in messages(rows_only)[0]
    entries = f"DELETE FROM audit_log WHERE document LIKE '%{first}%'"  # noqa: S608 - ours
    with_entries = await tampered(database, *(statement.format(first) for statement in gone), entries)
    assert "missing" in messages(with_entries)[0]
    [head] = await database.fetch(QUERIES["head_of_log"])
    cut = [*(statement.format(last) for statement in gone), f"DELETE FROM audit_log WHERE document LIKE '%{last}%'"]  # noqa: S608
    unnoticed = await tampered(database, *cut)
    assert messages(unnoticed) == []
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        for statement in cut:
            await connection.execute(statement)
    found = await verified(database, anchors=[LogHead(**head)])
    assert "is known to have had entry" in messages(found)[0]
