"""`python -m benchmarks.semantic_cache`: what finding the nearest question takes, by how many there are in its scope.

The plugin's own search compares the question with every other of its scope. Beside it, if asked for, stands the same
search with an approximate index (HNSW) over ten such scopes: how long it takes, how often it finds what is nearest, and
how long it takes to build. What is asked is near one of the questions, as a hit is: at a similarity of 0.98.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from statistics import median, quantiles
from time import perf_counter
from typing import Final

import structlog

from benchmarks.audit import embedded_server
from benchmarks.report import markdown
from llmproxy.config import DatabaseConfig
from llmproxy.db import Postgres
from llmproxy.migrate import Component, core_component, migrate
from llmproxy.services import Connection, SystemClock
from llmproxy.tasks import BackgroundTasks
from llmproxy_plugins.semantic_cache import SemanticCache
from llmproxy_plugins.semantic_cache.questions import Question
from llmproxy_plugins.semantic_cache.store import Entry, Store

ENTRIES: Final = (1_000, 10_000, 100_000)
SEARCHES: Final = 40
WORKSPACE: Final = "acme"
# How long filling the table and building an index may take.
BUILD_SECONDS: Final = 1800
SEED: Final = 7
# Of the values of a vector, which lie between -0.5 and 0.5.
NOISE: Final = 0.1

# Copies of the one entry that the plugin has kept, each with a vector of its own. The condition keeps Postgres from
# making one vector for all of them.
_FILL: Final = """
INSERT INTO semantic_cache_entries
    (workspace, model, scope, question, embedding, body, provider, target, tokens, created_at, expires_at)
SELECT workspace, model, CASE WHEN $4::boolean THEN scope ELSE sha256(int4send(n % 9)) END,
    sha256(int4send(n)), ARRAY(SELECT random() - 0.5 + 0 * n FROM generate_series(1, $3::integer))::vector,
    body, provider, target, tokens, created_at, expires_at
FROM semantic_cache_entries, generate_series($1::integer, $2::integer) AS n WHERE id = 1
"""
_BUILD: Final = """
CREATE INDEX semantic_cache_entries_near ON semantic_cache_entries
USING hnsw ((embedding::vector({dimensions})) vector_cosine_ops)
"""
_APPROXIMATE: Final = """
SELECT 1 - (embedding::vector({dimensions}) <=> $2::text::vector) AS similarity FROM semantic_cache_entries
WHERE workspace = $1 AND scope = (SELECT scope FROM semantic_cache_entries WHERE id = 1) AND expires_at > now()
ORDER BY embedding::vector({dimensions}) <=> $2::text::vector LIMIT 1
"""
_SOME: Final = """
SELECT embedding::real[] AS embedding FROM semantic_cache_entries
WHERE scope = (SELECT scope FROM semantic_cache_entries WHERE id = 1) AND id > 1 ORDER BY question LIMIT $1
"""
_INDEX_ONLY: Final = (
    "SET LOCAL hnsw.iterative_scan = strict_order",
    "SET LOCAL enable_seqscan = off",
    "SET LOCAL enable_bitmapscan = off",
    "SET LOCAL enable_sort = off",
)


@dataclass(frozen=True, slots=True)
class Search:
    """How long searches took, in milliseconds, and how near the nearest was each time."""

    waits_ms: Sequence[float]
    similarities: Sequence[float]

    def cells(self) -> Sequence[str]:
        """The middle and the slow end."""
        return f"{median(self.waits_ms):.1f}", f"{quantiles(self.waits_ms, n=100, method='inclusive')[94]:.1f}"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic_cache", description="Measure the search.")
    parser.add_argument("--dimensions", type=int, default=1536, help="of the vectors; an index takes up to 2000")
    parser.add_argument("--entries", type=int, nargs="+", default=ENTRIES, help="in the scope that is asked")
    parser.add_argument("--approximate", action="store_true", help="beside it an index, with nine more such scopes")
    arguments = parser.parse_args()
    with embedded_server() as (url, _, _):
        rows = asyncio.run(
            _measured(url, arguments.dimensions, sorted(arguments.entries), approximate=arguments.approximate)
        )
    head = ["entries in the scope", "every one compared, p50 ms", "p95 ms"]
    more = ["index, p50 ms", "p95 ms", "found the nearest, %", "to build it, s"] if arguments.approximate else []
    print(f"{arguments.dimensions} dimensions, {SEARCHES} searches.\n\n{markdown([*head, *more], rows)}")


async def _measured(url: str, dimensions: int, sizes: Sequence[int], *, approximate: bool) -> Sequence[Sequence[str]]:
    await migrate(url, [core_component(), Component(SemanticCache.name, SemanticCache.migrations)])
    postgres = _postgres(url)
    await postgres.open()
    try:
        store, rows = Store(postgres, SystemClock()), []
        await _keep_one(store, dimensions)
        for size, before in zip(sizes, [1, *sizes], strict=False):
            await _fill(postgres, before, size, dimensions, is_scope=True)
            questions = await _questions(postgres)
            exact = await _exact(store, questions)
            rows.append([f"{size:,}", *exact.cells()])
            if approximate:
                rows[-1] += await _beside(postgres, before, size, questions, exact)
        return rows
    finally:
        await postgres.close()


def _postgres(url: str) -> Postgres:
    log = structlog.get_logger()
    config = DatabaseConfig(pool_size=2, statement_seconds=BUILD_SECONDS)
    return Postgres(url, config, SystemClock(), log, BackgroundTasks(log))


async def _keep_one(store: Store, dimensions: int) -> None:
    now = datetime.now(UTC)
    entry = Entry(b"x" * 1500, "openai", "openai/model", 100, None, now)
    vector, question = [1.0] * dimensions, Question("the first", b"scope")
    await store.keep(WORKSPACE, "model", question, vector, entry, asked_at=now, ttl_seconds=86_400, max_entries=10**9)


async def _fill(postgres: Postgres, first: int, last: int, dimensions: int, *, is_scope: bool) -> None:
    # In lots, as a statement may not run for longer than half a minute.
    for start in range(first, last, 5_000):
        await postgres.execute(_FILL, start, min(start + 5_000, last) - 1, dimensions, is_scope)
    await postgres.execute("ANALYZE semantic_cache_entries")


async def _exact(store: Store, questions: Sequence[Sequence[float]]) -> Search:
    waits, similarities = [], []
    for vector in questions:
        started = perf_counter()
        nearest = await store.nearest(WORKSPACE, Question("another", b"scope"), vector)
        waits.append((perf_counter() - started) * 1000)
        similarities.append(nearest.similarity if nearest else 0.0)
    return Search(waits, similarities)


# The index


async def _beside(
    postgres: Postgres, before: int, size: int, questions: Sequence[Sequence[float]], exact: Search
) -> Sequence[str]:
    """With nine times as many entries of other scopes."""
    dimensions = len(questions[0])
    await _fill(postgres, 10**7 + 9 * before, 10**7 + 9 * size, dimensions, is_scope=False)
    seconds = await _built(postgres, dimensions)
    found = await _approximate(postgres, questions)
    pairs = zip(exact.similarities, found.similarities, strict=True)
    share = sum(abs(one - other) < 1e-6 for one, other in pairs) / SEARCHES * 100
    await postgres.execute("DROP INDEX semantic_cache_entries_near")
    return [*found.cells(), f"{share:.0f}", f"{seconds:.0f}"]


async def _built(postgres: Postgres, dimensions: int) -> float:
    async with postgres.transaction() as connection:
        await connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
        started = perf_counter()
        await connection.execute(_BUILD.format(dimensions=dimensions))
        return perf_counter() - started


async def _approximate(postgres: Postgres, questions: Sequence[Sequence[float]]) -> Search:
    async with postgres.transaction() as connection:
        for statement in _INDEX_ONLY:
            await connection.execute(statement)
        query = _APPROXIMATE.format(dimensions=len(questions[0]))
        taken = [await _one(connection, query, vector) for vector in questions]
        return Search([wait for wait, _ in taken], [similarity for _, similarity in taken])


async def _one(connection: Connection, query: str, vector: Sequence[float]) -> tuple[float, float]:
    started = perf_counter()
    row: Mapping[str, float] | None = await connection.fetch_row(query, WORKSPACE, str(vector))
    return (perf_counter() - started) * 1000, row["similarity"] if row else 0.0


async def _questions(postgres: Postgres) -> Sequence[Sequence[float]]:
    """Vectors that are each near one of the scope's."""
    chance = Random(SEED)  # noqa: S311 - the same in every run
    rows = await postgres.fetch(_SOME, SEARCHES)
    return [[value + chance.uniform(-NOISE, NOISE) for value in row["embedding"]] for row in rows]


if __name__ == "__main__":
    main()
