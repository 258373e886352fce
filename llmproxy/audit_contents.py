"""What is stored of requests: as writing it gives it back, and as it is read again, for the columns of a chain's form.

A row is the text that Postgres makes of it, `ROW(...)::text`. The content of a request is its row and those of its
attempts, that of its ledger the rows of the ledger, one behind the other: their brackets and quotes keep them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llmproxy.audit_chain import Form
from llmproxy.errors import StorageError

TABLES: Final = ("requests", "attempts", "ledger_entries")
_COLUMN: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)


def record_batch(queries: Mapping[str, str], columns: Form, zeros: str, *, is_read_back: bool) -> str:
    """The query that records a batch; with `is_read_back` it also gives what links are made of, as `stored`."""
    names = {table: ", ".join(columns[table]) for table in TABLES}
    rows = {table: f"ROW({names[table]})::text AS stored_row" for table in TABLES}
    read_back = {
        "row_of_requests": f", admitted_at, {rows['requests']}",
        "row_of_attempts": f"\n    RETURNING request_id, number, {rows['attempts']}",
        "row_of_ledger_entries": f"\n    RETURNING request_id, entry, {rows['ledger_entries']}",
        "stored": queries["stored_contents"],
    }
    ids_only = {**dict.fromkeys(read_back, ""), "stored": " FROM recorded"}
    return queries["record_batch"].format(**names, zeros=zeros, **(read_back if is_read_back else ids_only))


def links_of_chain(queries: Mapping[str, str], form: Form) -> str:
    """The query for a page of links with the contents of their requests. Raises StorageError for a form not ours."""
    columns = {table: ", ".join(f"{table}.{_checked(column)}" for column in form[table]) for table in TABLES}
    parts = {part: queries[f"{part}_content"].format(**columns) for part in ("request", "ledger")}
    return queries["links_of_chain"].format(**parts)


def _checked(column: str) -> str:
    """A form is read from the database, and a signature says only who wrote it."""
    if not _COLUMN.fullmatch(column):
        raise StorageError(f"The audit log names a column {column!r}, which cannot be one.")
    return column
