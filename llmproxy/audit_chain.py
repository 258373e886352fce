"""The audit chain: one link for each request, over what was stored of it and the link before. Pure.

Every run of a worker has a chain of its own, so that workers need not wait for each other. A link holds the SHA-256
of the request's rows as Postgres stored them; the last link of each transaction is signed. Whoever changes, adds,
removes or reorders rows leaves links that do not fit, and cannot sign others without the key.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import orjson

# The columns, by table, that a content is made of. A chain keeps those that it began with: columns added later are
# in later chains.
Form = Mapping[str, Sequence[str]]

# Times are as Postgres sends them: microseconds since then.
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LINK: Final = struct.Struct("!16sqq")
_PLACE: Final = struct.Struct("!16sq")
_STORED: Final = struct.Struct("!16sq64s")
_LINK_PURPOSE: Final = b"llmproxy link "
_KEY_ID_CHARACTERS: Final = 16


class Link(NamedTuple):
    """One link as it is stored; only the last of a transaction has a signature."""

    number: int
    recorded_at: datetime
    request_id: UUID
    admitted_at: datetime
    request_sha256: bytes
    ledger_sha256: bytes
    link_sha256: bytes
    signature: bytes | None = None


class Contents(NamedTuple):
    """What the tables hold of a request now, as the text that Postgres makes of rows of the form's columns.

    `request` is its row and those of its attempts, None when there is no such row; `ledger` the rows of the ledger.
    """

    request: str | None
    ledger: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the audit, in a sentence that names the row."""

    message: str
    request_id: UUID | None = None
    chain: UUID | None = None
    number: int | None = None


def genesis(chain: UUID, form: Form) -> bytes:
    """What the first link of a chain is made to follow."""
    return hashlib.sha256(b"llmproxy audit chain " + chain.bytes + orjson.dumps(dict(form))).digest()


def link_hash(chain: UUID, link: Link, previous: bytes) -> bytes:
    """The SHA-256 of a link's fields and of the link before it."""
    place = _PLACE.pack(link.request_id.bytes, _microseconds(link.admitted_at))
    fields = _LINK.pack(chain.bytes, link.number, _microseconds(link.recorded_at))
    return hashlib.sha256(previous + fields + place + link.request_sha256 + link.ledger_sha256).digest()


def make_links(chain: UUID, number: int, previous: bytes, recorded_at: datetime, stored: bytes) -> Sequence[bytes]:
    """The SHA-256s of the links that follow link `number`, as `link_hash` says; with as little work as can be.

    Args:
        stored: For each the request's id and time and the hashes of both contents, as Postgres sends them.
    """
    sha256, pack, size = hashlib.sha256, _LINK.pack, _STORED.size
    chain_bytes, time = chain.bytes, _microseconds(recorded_at)
    links = []
    for at in range(0, len(stored), size):
        number += 1
        previous = sha256(previous + pack(chain_bytes, number, time) + stored[at : at + size]).digest()
        links.append(previous)
    return links


def times_of(stored: bytes) -> Sequence[int]:
    """The times of the requests that `make_links` is given, in microseconds since Postgres' epoch."""
    return [time for _, time, _ in _STORED.iter_unpack(stored)]


def content_hash(content: str) -> bytes:
    """The SHA-256 of a content's text."""
    return hashlib.sha256(content.encode()).digest()


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


class AuditKeys:
    """The keys of the audit: one that signs and, after a change of keys, those that older rows were signed with."""

    def __init__(self, current: str, former: Sequence[str] = ()) -> None:
        self._keys: Final = {_key_id(key): key.encode() for key in (current, *former)}
        self.key_id: Final = _key_id(current)

    def sign(self, purpose: bytes, digest: bytes) -> bytes:
        """The HMAC-SHA256 of a digest; the purpose keeps it from standing for anything else."""
        return self._signature(self.key_id, purpose, digest)

    def knows(self, key_id: str) -> bool:
        """Whether signatures of this key can be verified."""
        return key_id in self._keys

    def is_signature(self, key_id: str, purpose: bytes, digest: bytes, signature: bytes) -> bool:
        """Whether a key that is known here made this signature."""
        return self.knows(key_id) and hmac.compare_digest(self._signature(key_id, purpose, digest), signature)

    def sign_link(self, link_sha256: bytes) -> bytes:
        """The signature of a link, and so of all before it."""
        return self.sign(_LINK_PURPOSE, link_sha256)

    def is_link_signature(self, key_id: str, link_sha256: bytes, signature: bytes) -> bool:
        """Whether this is the signature of a link."""
        return self.is_signature(key_id, _LINK_PURPOSE, link_sha256, signature)

    def _signature(self, key_id: str, purpose: bytes, digest: bytes) -> bytes:
        return hmac.digest(self._keys[key_id], purpose + digest, "sha256")


def _key_id(key: str) -> str:
    """What a key is known by, and cannot be found out from."""
    return hashlib.sha256(b"llmproxy audit key " + key.encode()).hexdigest()[:_KEY_ID_CHARACTERS]
