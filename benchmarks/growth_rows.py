"""A gateway's data at two sizes: keys, workspaces, aliases, and months of a ledger, straight into the real schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from time import perf_counter
from typing import Final

import structlog

from benchmarks.gateway import Installation
from benchmarks.traffic import Order
from llmproxy.config import DatabaseConfig
from llmproxy.db import Postgres
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.ledger_sums import LedgerSums
from llmproxy.queries import Queries
from llmproxy.services import Database, SystemClock
from llmproxy.tasks import BackgroundTasks

DAYS: Final = 90
_FILL_SECONDS: Final = 7200
_AT_ONCE: Final = 2
_KEYS: Final = """
INSERT INTO virtual_keys (id, workspace, key_sha256, key_hint, created_at)
SELECT 'key_' || n, 'w' || n % $2, encode(sha256(convert_to('sk-growth-' || n, 'UTF8')), 'hex'), 'sk-growth',
    now() - interval '1 day' + n * interval '1 ms'
FROM generate_series(0, $1 - 1) AS n
"""
_WORKSPACES: Final = "INSERT INTO workspaces (id) SELECT 'w' || n FROM generate_series(0, $1 - 1) AS n"
# An id begins with its time in milliseconds, as the gateway's own do.
_ASKED: Final = """
WITH spread AS (
    SELECT n, $1::timestamptz + n * (86400000.0 / $2::integer) * interval '1 ms' AS at
    FROM generate_series(0, $2 - 1) AS n
), asked AS (
    SELECT
        (
            lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
            || '7' || $6 || '008' || lpad(to_hex(n), 15, '0')
        )::uuid AS id,
        at, 'w' || n * 7919::bigint % $4 AS workspace, 'key_' || n * 7919::bigint % $3 AS key,
        'user' || n % 500 AS person, 'feature' || n % 20 AS feature, 'p' || n % $5 AS provider,
        200 + n % 1000 AS input, 50 + n % 700 AS output
    FROM spread
)"""
_AUDITED: Final = """, audited AS (
    INSERT INTO requests (
        id, admitted_at, operation_name, path, workspace, key_id, feature, user_id, request_model, provider_name,
        response_model, outcome, http_status, attempts, duration_seconds, uncached_input_tokens, text_output_tokens,
        usage_provenance, cost_usd, cost_provenance, price_source
    )
    SELECT id, at, 'chat', '/v1/chat/completions', workspace, key, feature, person, 'm', provider, 'model',
        CASE WHEN output = 77 THEN 'failed' ELSE 'succeeded' END, 200, 1, 0.5, input, output,
        'measured', (input + 2 * output) / 1000000.0, 'measured', 'configuration'
    FROM asked
), tried AS (
    INSERT INTO attempts (
        request_id, admitted_at, number, provider_name, model, started_at, duration_seconds, http_status,
        uncached_input_tokens, text_output_tokens, usage_provenance, cost_usd, cost_provenance
    )
    SELECT id, at, 1, provider, 'model', at, 0.5, 200, input, output,
        'measured', (input + 2 * output) / 1000000.0, 'measured'
    FROM asked
)"""
_CHARGED: Final = """
INSERT INTO ledger_entries (
    request_id, occurred_at, kind, workspace, key_id, feature, user_id, operation_name, request_model, provider_name,
    response_model, uncached_input_tokens, text_output_tokens, usage_provenance, amount_usd, cost_provenance,
    price_source, tags
)
SELECT id, at, 'exchange', workspace, key, feature, person, 'chat', 'm', provider, 'model', input, output,
    'measured', (input + 2 * output) / 1000000.0, 'measured', 'configuration', '{}'
FROM asked
"""
# As of the beginning of a day, as months begin.
_WINDOW: Final = """
SELECT llmproxy_ledger_sum($1::json, date_trunc('day', now() - interval '30 days', 'UTC'), now())
"""
_CONFIG: Final = """\
server: {{host: 127.0.0.1, port: 0, workers: 1}}
database: {{url: embedded}}
logging: {{level: warning}}
providers:
{providers}
models:
{models}
prices:
  - {{match: "*", input_usd_per_mtok: 1, output_usd_per_mtok: 2}}
plugins:
  budgets:
    limits:
{limits}
"""
_PROVIDER: Final = '  p{}: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: k, models: [{models}]}}'


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is, spread over `days`.

    Attributes:
        rows: Requests, with all their rows in the audit and the ledger.
        entries: What else the ledger has, of requests that the audit no longer keeps.
    """

    keys: int
    workspaces: int
    targets: int
    rows: int
    entries: int = 0
    days: int = DAYS

    @property
    def aliases(self) -> int:
        """Each has two targets."""
        return self.targets // 2

    @property
    def providers(self) -> int:
        """Each has twenty of the targets, or one of two."""
        return max(2, self.targets // 20)

    def order(self, number: int) -> Order:
        """A request with another key, and for another alias, than the one before."""
        return Order(number, model=f"m{number % self.aliases}", key=f"sk-growth-{number * 7919 % self.keys}")

    def usual_order(self, number: int) -> Order:
        """The same from a hundred keys, that are used again and again."""
        return Order(number, model=f"m{number % 7 % self.aliases}", key=f"sk-growth-{number % min(self.keys, 100)}")

    def config(self, upstream_port: int) -> str:
        """The configuration file."""
        targets = [(n % self.providers, f"model{n // 2}") for n in range(self.targets)]
        providers = [
            _PROVIDER.format(number, port=upstream_port, models=", ".join(m for each, m in targets if each == number))
            for number in range(self.providers)
        ]
        models = [
            f"  m{alias}: {{targets: [{', '.join(f'p{provider}/{model}' for provider, model in pair)}]}}"
            for alias, pair in enumerate(zip(targets[::2], targets[1::2], strict=True))
        ]
        limits = [
            f"      - {{scope: workspace, match: w{number}, usd: 1000000, window: month}}"
            for number in range(self.workspaces)
        ]
        return _CONFIG.format(providers="\n".join(providers), models="\n".join(models), limits="\n".join(limits))


async def fill(installed: Installation, size: Size) -> None:
    """Write all of it into the database of an installation that has been started before."""
    with _server(installed) as url:
        await fill_database(url, size)


async def fill_database(url: str, size: Size) -> None:
    """The same, in a database whose schema is there."""
    async with _connected(url) as database:
        await database.execute(_WORKSPACES, size.workspaces)
        await database.execute(_KEYS, size.keys, size.workspaces)
        await asyncio.gather(
            *(_fill_days(database, days(size.days)[first::_AT_ONCE], size) for first in range(_AT_ONCE))
        )
        await LedgerSums(database, Queries(), SystemClock(), structlog.get_logger()).sum_up()
        await database.execute("VACUUM ANALYZE")


async def window_sum(installed: Installation, share: Mapping[str, str]) -> float:
    """The seconds that opening a budget takes: counting what a share of the ledger was in the last month."""
    with _server(installed) as url:
        async with _connected(url) as database:
            began = perf_counter()
            await database.fetch(_WINDOW, {"unit": "usd", **share})
            return perf_counter() - began


@contextmanager
def _server(installed: Installation) -> Iterator[str]:
    server = EmbeddedPostgres(installed.directory / "state")
    try:
        yield server.start()
    finally:
        server.stop()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Database]:
    log = structlog.get_logger()
    database = Postgres(url, DatabaseConfig(statement_seconds=_FILL_SECONDS), SystemClock(), log, BackgroundTasks(log))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def days(count: int) -> Sequence[date]:
    """Those that have rows: the last ones up to yesterday."""
    today = datetime.now(UTC).date()
    return [today - timedelta(days=number) for number in range(count, 0, -1)]


async def _fill_days(database: Database, which: Iterable[date], size: Size) -> None:
    for day in which:
        await _fill_day(database, day, size)


async def _fill_day(database: Database, day: date, size: Size) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    await database.fetch("SELECT llmproxy_create_partitions($1, $1)", day)
    who = (size.keys, size.workspaces, size.providers)
    # Every day has one at least, however few were asked for.
    await database.execute(_ASKED + _AUDITED + _CHARGED, start, max(1, size.rows // size.days), *who, "0")
    if size.entries:
        await database.execute(_ASKED + _CHARGED, start, size.entries // size.days, *who, "1")
