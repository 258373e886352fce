"""What is kept in Postgres: entries, purges, trials."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from llmproxy.api import Clock, Connection, Database
from llmproxy_plugins.semantic_cache.questions import Question
from llmproxy_plugins.semantic_cache.vectors import Vector

# The vector is read from its text by a query of its own: once, and not for each entry that it is compared with.
_NEAREST: Final = """
SELECT body, provider, target, tokens, cost_usd, created_at, 1 - distance AS similarity
FROM (
    SELECT *, embedding <=> (SELECT $4::text::vector) AS distance FROM semantic_cache_entries
    WHERE workspace = $1 AND scope = $2 AND expires_at > $3
) AS entry
ORDER BY distance LIMIT 1
"""
# Shared by all who keep, exclusive for a purge: what is kept meanwhile is either seen by it, or sees it.
_LOCK_SHARED: Final = "SELECT pg_advisory_xact_lock_shared(hashtext('semantic_cache'))"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('semantic_cache'))"
_KEEP: Final = """
INSERT INTO semantic_cache_entries
    (workspace, model, scope, question, embedding, body, provider, target, tokens, cost_usd, created_at, expires_at)
SELECT $1::text, $2::text, $3::bytea, $4::bytea, $5::text::vector, $6::bytea, $7::text, $8::text, $9::bigint,
    $10::numeric, $11::timestamptz, $12::timestamptz
WHERE NOT EXISTS (
    SELECT FROM semantic_cache_purges
    WHERE workspace IN ('', $1::text) AND model IN ('', $2::text) AND purged_at >= $13::timestamptz
)
ON CONFLICT (workspace, scope, question) DO UPDATE SET
    embedding = excluded.embedding, body = excluded.body, provider = excluded.provider, target = excluded.target,
    tokens = excluded.tokens, cost_usd = excluded.cost_usd, created_at = excluded.created_at,
    expires_at = excluded.expires_at
"""
_FORGET_EXPIRED: Final = "DELETE FROM semantic_cache_entries WHERE expires_at <= $1"
_FORGET_SURPLUS: Final = """
DELETE FROM semantic_cache_entries WHERE id IN (
    SELECT id FROM semantic_cache_entries WHERE workspace = $1 ORDER BY created_at DESC, id DESC OFFSET $2::bigint
)
"""
_PURGE_ENTRIES: Final = """
WITH dropped AS (
    DELETE FROM semantic_cache_entries WHERE $1::text IN ('', workspace) AND $2::text IN ('', model) RETURNING 1
)
SELECT count(*) AS dropped FROM dropped
"""
_PURGE_LATER: Final = """
INSERT INTO semantic_cache_purges (workspace, model, purged_at) VALUES ($1, $2, $3)
ON CONFLICT (workspace, model) DO UPDATE SET purged_at = greatest(excluded.purged_at, semantic_cache_purges.purged_at)
"""
_TRY: Final = """
INSERT INTO semantic_cache_trials (created_at, workspace, model, similarity, answer_similarity, is_same)
VALUES ($1, $2, $3, $4, $5, $6)
"""
_FORGET_TRIALS: Final = "DELETE FROM semantic_cache_trials WHERE created_at < $1"
_TRIALS: Final = """
SELECT model, similarity, answer_similarity, is_same FROM semantic_cache_trials
WHERE $1::text IN ('', workspace) ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept answer, whole, with who gave it and what it cost."""

    body: bytes
    provider: str
    target: str
    tokens: int
    cost_usd: Decimal | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Nearest:
    """The entry whose question is nearest to another, and how near that is; 1 is the same."""

    entry: Entry
    similarity: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What shadow mode saw of one request: `similarity` is None when there was no other question."""

    model: str
    similarity: float | None = None
    answer_similarity: float | None = None
    is_same: bool | None = None


class Store:
    """The plugin's tables. Every method raises StorageError."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def nearest(self, workspace: str, question: Question, vector: Vector) -> Nearest | None:
        """The nearest question of the same scope, if there is any."""
        arguments = (workspace, _scope(question, vector), self._clock.now(), _written(vector))
        row = await self._database.fetch_row(_NEAREST, *arguments)
        if row is None:
            return None
        fields = {name: row[name] for name in ("body", "provider", "target", "tokens", "cost_usd", "created_at")}
        return Nearest(Entry(**fields), float(row["similarity"]))

    async def keep(
        self,
        workspace: str,
        model: str,
        question: Question,
        vector: Vector,
        entry: Entry,
        *,
        asked_at: datetime,
        ttl_seconds: float,
        max_entries: int,
    ) -> None:
        """Keep an answer, unless it was purged after it had been asked for; the oldest make room for it."""
        expires_at = entry.created_at + timedelta(seconds=ttl_seconds)
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK_SHARED)
            await connection.execute(
                _KEEP,
                *(workspace, model, _scope(question, vector), question.digest, _written(vector)),
                *(entry.body, entry.provider, entry.target, entry.tokens, entry.cost_usd),
                *(entry.created_at, expires_at, asked_at),
            )
            await connection.execute(_FORGET_EXPIRED, self._clock.now())
            await connection.execute(_FORGET_SURPLUS, workspace, max_entries)

    async def purge(self, workspace: str, model: str) -> int:
        """Forget the entries of a workspace and a model, empty for any, and what is on its way there; say how many."""
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK)
            await connection.execute(_PURGE_LATER, workspace, model, self._clock.now())
            row = await connection.fetch_row(_PURGE_ENTRIES, workspace, model)
            return int(row["dropped"]) if row else 0

    async def note(self, workspace: str, trial: Trial, retention_days: int) -> None:
        """Keep a trial, and forget old ones."""
        now = self._clock.now()
        async with self._database.transaction() as connection:
            await _note(connection, now, workspace, trial)
            await connection.execute(_FORGET_TRIALS, now - timedelta(days=retention_days))

    async def trials(self, workspace: str) -> Sequence[Trial]:
        """The trials of a workspace, empty for all."""
        return [Trial(**row) for row in await self._database.fetch(_TRIALS, workspace)]


async def _note(connection: Connection, now: datetime, workspace: str, trial: Trial) -> None:
    similarities = (trial.similarity, trial.answer_similarity)
    await connection.execute(_TRY, now, workspace, trial.model, *similarities, trial.is_same)


def _scope(question: Question, vector: Vector) -> bytes:
    # Vectors of two lengths cannot be compared; a model may be changed behind its name.
    return hashlib.sha256(question.scope + len(vector).to_bytes(4)).digest()


def _written(vector: Vector) -> str:
    return f"[{','.join(map(repr, vector))}]"
