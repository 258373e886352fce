"""Props for the tests of the ledger: entries written as they are stored, and commands run on a database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from click.testing import CliRunner, Result

from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_notary import ActionLog, Notary
from llmproxy.cli.commands import command_line
from llmproxy.config import PriceConfig
from llmproxy.db import Postgres
from llmproxy.exchange import Target
from llmproxy.ids import new_id
from llmproxy.ledger import Pricer
from llmproxy.pricing import PriceBook
from llmproxy.queries import Queries
from llmproxy.repricing import Repricing
from llmproxy.services import Database, SystemClock
from llmproxy.testing.database import make_postgres
from llmproxy.usage import Cost, Usage
from tests.audit_rows import KEYS
from tests.test_audit import ListLog

DAY = datetime(2026, 3, 14, tzinfo=UTC)
QUERIES = Queries()
Entry = dict[str, Any]  # columns of whatever type
T = TypeVar("T")
_INSERT = (
    "INSERT INTO ledger_entries ({0}) SELECT {0} FROM json_populate_recordset(NULL::ledger_entries, $1::text::json)"
)


def entry(amount: str | None = "0.25", *, at: datetime = DAY, **fields: object) -> Entry:
    """An entry of an exchange that took ten tokens in and five out."""
    charged = {"amount_usd": amount, "cost_provenance": "measured", "usage_provenance": "measured"}
    usage = {"uncached_input_tokens": 10, "text_output_tokens": 5}
    served = {"provider_name": "upstream", "response_model": "test-model", "request_model": "test"}
    identity = {"request_id": new_id(at), "occurred_at": at.isoformat(), "entry": 0, "kind": "exchange"}
    return {**identity, "workspace": "acme", **served, **usage, **charged, **fields}


async def write(database: Database, entries: Sequence[Entry]) -> None:
    """Store entries, each with all columns that any of them has."""
    columns = list(dict.fromkeys(name for each in (_defaults(), *entries) for name in each))
    for day in {datetime.fromisoformat(each["occurred_at"]).astimezone(UTC).date() for each in entries}:
        await database.fetch("SELECT llmproxy_create_partitions($1, $1)", day)
    full = [_defaults() | each for each in entries]
    await database.execute(_INSERT.format(", ".join(columns)), json.dumps(full, default=str))


def _defaults() -> Entry:
    names = ("cache_read", "cache_write_5m", "cache_write_1h", "audio")
    counts = [*(f"{name}_input_tokens" for name in names), "reasoning_output_tokens", "audio_output_tokens"]
    return dict.fromkeys(counts, 0)


def on(url: str, work: Callable[[Postgres], Awaitable[T]]) -> T:
    """What comes of some work on a database, for tests that are not asynchronous."""

    async def run() -> T:
        database = make_postgres(url)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def prices_of(*sections: Mapping[str, Any]) -> Pricer:
    """Prices by sections of a configuration."""
    book = PriceBook([PriceConfig.model_validate(section) for section in sections])

    def price(target: Target, usage: Usage, at: datetime) -> Cost:
        return book.cost(usage, book.prices(target, None, at, usage.service_tier))

    return price


def make_repricing(
    database: Database, *sections: Mapping[str, Any], model: str | None = None, keys: AuditKeys = KEYS
) -> Repricing:
    """Repricing by sections of a configuration."""
    actions = ActionLog(Notary(QUERIES, keys, SystemClock(), ListLog()), "a test")
    return Repricing(database, QUERIES, prices_of(*sections), lambda name: model in (None, name), actions)


async def amounts(database: Database) -> Mapping[tuple[UUID, int], Decimal | None]:
    """Every amount in the ledger, by request and entry."""
    rows = await database.fetch("SELECT request_id, entry, amount_usd FROM ledger_entries")
    return {(row["request_id"], row["entry"]): row["amount_usd"] for row in rows}


class CommandLine:
    """Runs `llmproxy` with a configuration of its own.

    Args:
        directory: Where its files are.
    """

    def __init__(self, directory: Path, database_url: str) -> None:
        self._directory = directory
        self._file = directory / "config.yaml"
        self._url = database_url
        self.configure()

    def configure(self, **sections: object) -> None:
        """Write the configuration anew; JSON is YAML."""
        provider = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": "k", "models": ["test-model"]}
        fixed = {"database": {"url": self._url}, "providers": {"upstream": provider}}
        self._file.write_text(json.dumps({**fixed, **sections}))

    def __call__(self, *arguments: str) -> Result:
        """How a command ended."""
        shared = ("--config", str(self._file), "--state-dir", str(self._directory / "state"))
        return CliRunner().invoke(command_line, [*arguments, *shared])

    def document(self, *arguments: str) -> Any:  # whatever the command answers
        """What a command answers in JSON."""
        result = self(*arguments, "--json")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return json.loads(result.stdout)
