"""Adding to the signed log, in the transaction of what the entry is about."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

import orjson

from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_log import EMPTY_LOG, Kind, LogHead, make_entry
from llmproxy.services import Clock, Connection, Database, Log


class Anchor:
    """A file beside the database that remembers how far the signed log was: cutting the log off is then noticed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> LogHead | None:
        """What is remembered; None when nothing is. Raises OSError, ValueError when the file is no anchor."""
        try:
            document = orjson.loads(self._path.read_bytes())
            return LogHead(int(document["number"]), bytes.fromhex(document["entry_sha256"]))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self._path} is no anchor of an audit log.") from error

    def advance(self, head: LogHead) -> None:
        """Remember a committed head, unless a later one is. Raises OSError, ValueError."""
        kept = self.read()
        if kept is not None and kept.number >= head.number:
            return
        with NamedTemporaryFile("wb", dir=self._path.parent, prefix=self._path.name, delete=False) as draft:
            draft.write(anchor_document(head))
        Path(draft.name).replace(self._path)


def anchor_document(head: LogHead) -> bytes:
    """What an anchor file holds."""
    return orjson.dumps(_fields(head), option=orjson.OPT_APPEND_NEWLINE)


def _fields(head: LogHead) -> dict[str, object]:
    return {"number": head.number, "entry_sha256": head.entry_sha256.hex()}


class Notary:
    """Writes entries of the signed log, one after the other whoever writes them.

    Args:
        anchor: Where this machine remembers the log's head.
    """

    def __init__(
        self, queries: Mapping[str, str], keys: AuditKeys, clock: Clock, log: Log, anchor: Anchor | None = None
    ) -> None:
        self._queries = queries
        self._keys = keys
        self._clock = clock
        self._log = log
        self._anchor = anchor
        self._known = EMPTY_LOG

    async def append(self, connection: Connection, kind: Kind, **facts: object) -> None:
        """Add an entry to what is being committed; until then, no other is added. Raises StorageError."""
        await connection.fetch(self._queries["lock_log"])
        entry = make_entry(await self._head(connection), self._keys, self._clock.now(), kind, facts)
        await connection.execute(self._queries["append_to_log"], *entry)

    async def remember(self, database: Database) -> None:
        """Let this machine know of the log's committed head, and so its logs. Raises StorageError."""
        head = await self._head(database)
        self._note(head)
        if self._anchor is None or head == EMPTY_LOG:
            return
        try:
            await asyncio.to_thread(self._anchor.advance, head)
        except (OSError, ValueError) as error:
            self._log.warning("audit_anchor_not_written", error=str(error))

    def _note(self, head: LogHead) -> None:
        if head == self._known:
            return
        if head.number <= self._known.number:
            self._log.error("audit_log_cut", had_entry=self._known.number, ends_at_entry=head.number)
            return
        self._known = head
        # Where the gateway's logs are collected, whoever may change the database cannot take it back.
        self._log.info("audit_head", **_fields(head))

    async def _head(self, connection: Connection) -> LogHead:
        row = await connection.fetch_row(self._queries["head_of_log"])
        return LogHead(**row) if row else EMPTY_LOG


class ActionLog:
    """What operators do, in the signed log.

    Args:
        actor: By which way they came.
    """

    def __init__(self, notary: Notary, actor: str) -> None:
        self._notary = notary
        self._actor = actor

    async def record(self, connection: Connection, action: str, subject: str | None = None, **details: object) -> None:
        """Add an action to what is being committed; details are never secrets. Raises StorageError."""
        facts = {"actor": self._actor, "action": action, "subject": subject, "details": details}
        await self._notary.append(connection, Kind.ACTION, **facts)
