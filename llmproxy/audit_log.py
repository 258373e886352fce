"""The signed log above the chains: which began and ended, how far each was at which time, and what operators did. Pure.

Its entries form one chain for all workers and replicas, so that a chain of requests cannot vanish together with
what was said about it. They are few: a worker adds one about once a minute, and an operator one for each action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from llmproxy.audit_chain import AuditKeys, Form, Problem, genesis
from llmproxy.request import Document

# The action that vouches for all adjustments that the ledger has of a day.
ADJUSTED: Final = "ledger_adjusted"
_PURPOSE: Final = b"llmproxy log "
NO_ENTRY: Final = bytes(32)


class Kind(StrEnum):
    """What an entry says."""

    CHAIN_BEGAN = "chain_began"
    CHECKPOINT = "checkpoint"
    CHAIN_ENDED = "chain_ended"
    RETENTION = "retention"
    ACTION = "action"


class LogEntry(NamedTuple):
    """An entry as it is stored; the document is JSON and has all that it says."""

    number: int
    document: str
    entry_sha256: bytes
    key_id: str
    signature: bytes


class LogHead(NamedTuple):
    """The last entry of the log at some time: whoever keeps it elsewhere will notice when the log was cut off."""

    number: int
    entry_sha256: bytes


EMPTY_LOG: Final = LogHead(0, NO_ENTRY)


def make_entry(head: LogHead, keys: AuditKeys, at: datetime, kind: Kind, facts: Document) -> LogEntry:
    """The entry that follows `head`."""
    number = head.number + 1
    document = orjson.dumps({"number": number, "at": at, "kind": kind, **facts}, default=str).decode()
    digest = _hash(head.entry_sha256, document)
    return LogEntry(number, document, digest, keys.key_id, keys.sign(_PURPOSE, digest))


def _hash(previous: bytes, document: str) -> bytes:
    return hashlib.sha256(previous + document.encode()).digest()


@dataclass(slots=True)
class ChainFacts:
    """What the log says of a chain: its form, its key, and the furthest place at which it was seen."""

    form: Form
    key_id: str
    genesis: bytes
    length: int = 0
    link_sha256: bytes | None = None
    has_ended: bool = False


class LogCheck:
    """Reads the log from its first entry to its last.

    Args:
        until: What was said at this time or later does not count; None for all.

    Attributes:
        chains: What it says of each chain, in the order in which they began.
        began_at: The time of the first entry; None when there is none.
        dropped_before: The rows of requests of earlier days may be gone, as their retention is over.
        adjusted: The SHA-256 of the ledger's adjustments, by the day that they are of.
        head: The last entry.
        ended_at: Its time.
    """

    def __init__(self, keys: AuditKeys, until: datetime | None = None) -> None:
        self._keys = keys
        self._until = until
        self.chains: Final[dict[UUID, ChainFacts]] = {}
        self.began_at: datetime | None = None
        self.dropped_before: date | None = None
        self.adjusted: Final[dict[date, str]] = {}
        self.head: LogHead = EMPTY_LOG
        self.ended_at: datetime | None = None

    def feed(self, entry: LogEntry) -> Iterator[Problem]:
        """What is wrong with the next entry; what it says counts only when nothing is."""
        mistake = self._mistake(entry)
        self.head = LogHead(entry.number, entry.entry_sha256)
        if mistake:
            yield Problem(mistake, number=entry.number)
            return
        # Signed, and so written by us.
        document = orjson.loads(entry.document)
        at = datetime.fromisoformat(document["at"])
        self.began_at = self.began_at or at
        self.ended_at = at
        if self._until is None or at < self._until:
            self._note(Kind(document["kind"]), document)

    def _mistake(self, entry: LogEntry) -> str | None:
        name = f"Entry {entry.number} of the log"
        if entry.number != self.head.number + 1:
            return f"{name} follows entry {self.head.number}: what was between them is missing."
        if _hash(self.head.entry_sha256, entry.document) != entry.entry_sha256:
            return f"{name} is not what was written, or the one before it is not."
        if not self._keys.knows(entry.key_id):
            return f"{name} is signed with the key {entry.key_id}; add it to audit.former_keys."
        if not self._keys.is_signature(entry.key_id, _PURPOSE, entry.entry_sha256, entry.signature):
            return f"{name} has not our signature."
        document = orjson.loads(entry.document)
        return None if document["number"] == entry.number else f"{name} was written as entry {document['number']}."

    # A document that we wrote, of one of several shapes.
    def _note(self, kind: Kind, document: dict[str, Any]) -> None:
        if kind is Kind.RETENTION:
            self.dropped_before = max(self.dropped_before or date.min, date.fromisoformat(document["before"]))
        if kind is Kind.ACTION and document["action"] == ADJUSTED:
            self.adjusted[date.fromisoformat(document["subject"])] = document["details"]["sha256"]
        if kind in (Kind.ACTION, Kind.RETENTION):
            return
        chain = UUID(document["chain"])
        if kind is Kind.CHAIN_BEGAN:
            form, key_id = document["form"], document["key_id"]
            self.chains[chain] = ChainFacts(form, key_id, genesis(chain, form))
        # Of a chain whose first entry is gone or was changed, which has been said by then, nothing can be verified.
        elif (facts := self.chains.get(chain)) and document["length"] >= facts.length:
            facts.length, facts.link_sha256 = document["length"], bytes.fromhex(document["link"])
            facts.has_ended = kind is Kind.CHAIN_ENDED
