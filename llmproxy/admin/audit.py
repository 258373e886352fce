"""The audit as operators verify and export it, and as they erase from it what may be erased."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from llmproxy.admin.documents import Body, Word
from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_export import export
from llmproxy.audit_log import LogHead
from llmproxy.audit_notary import ActionLog, Anchor
from llmproxy.audit_reader import Span, bounds_of, database_reader
from llmproxy.audit_verify import Report, verify
from llmproxy.errors import BadRequest, StorageError
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Database

# It is put together in memory.
MAX_EXPORT_BYTES: Final = 67_108_864


class Erasure(Body):
    """Whose bodies to erase: a workspace's, or one of its users'."""

    workspace: Word
    user: Word | None = None


class AuditTrail:
    """The audit in Postgres, and what this machine knows of it.

    Args:
        anchor: What this machine remembers of the log.
    """

    def __init__(self, database: Database, queries: Queries, keys: AuditKeys, anchor: Anchor) -> None:
        self._database = database
        self._queries = queries
        self._keys = keys
        self._anchor = anchor

    async def verify(self, span: Span, anchors: Sequence[LogHead] = ()) -> Report:
        """What is wrong with what was recorded in the span. Raises StorageError."""
        try:
            kept = self._anchor.read()
        except (OSError, ValueError) as error:
            raise StorageError("What this machine remembers of the audit log cannot be read.") from error
        # Read before the database is, which may only be further by then.
        known = [*anchors, *([kept] if kept else [])]
        async with database_reader(self._database, self._queries, span) as reader:
            return await verify(reader, self._keys, known)

    async def export(self, actions: ActionLog, span: Span, max_bytes: int = MAX_EXPORT_BYTES) -> bytes:
        """What was recorded in the span, as a file that proves itself. Raises BadRequest when it is too large."""
        await record_export(self._database, actions, span)
        exported = bytearray()
        async with database_reader(self._database, self._queries, span) as reader:
            async for line in export(reader, self._keys):
                exported += line
                if len(exported) > max_bytes:
                    message = (
                        "This span is too much for one answer; choose a shorter one, or use 'llmproxy audit export'."
                    )
                    raise BadRequest(message, param="since")
        return bytes(exported)


async def record_export(database: Database, actions: ActionLog, span: Span) -> None:
    """Say in the log that somebody is about to take a copy along. Raises StorageError, and then nobody does."""
    async with database.transaction() as connection:
        await actions.record(connection, "audit_exported", since=span.since, until=span.until)


async def erase(database: Database, queries: Queries, actions: ActionLog, wanted: Erasure) -> Document:
    """Erase bodies, and say of how many requests. Raises StorageError."""
    erased = await erase_bodies(database, queries, actions, wanted.workspace, wanted.user)
    return {"workspace": wanted.workspace, "user": wanted.user, "requests": erased}


async def erase_bodies(
    database: Database, queries: Queries, actions: ActionLog, workspace: str, user: str | None
) -> int:
    """Delete the kept bodies of a workspace, or of one of its users, and say how many requests had any.

    No chain holds bodies, so that everything verifies as before. The log keeps a hash of the user's name only, as
    it is kept for good. Raises StorageError.
    """
    erased = 0
    async with database.transaction() as connection:
        for row in await connection.fetch(queries["partition_days"]):
            bounds = bounds_of(row["day"])
            counted = await connection.fetch_row(queries["erase_bodies"], workspace, user, *bounds)
            erased += counted["bodies"] if counted else 0
        hashed = hashlib.sha256(user.encode()).hexdigest() if user is not None else None
        await actions.record(connection, "bodies_erased", workspace, user_sha256=hashed, requests=erased)
    return erased
