"""A hard cap under everything at once: workers and replicas, streams, failures, hang-ups and `kill -9`.

`python -m tests.budget_load` runs it as large as it gets; `test_budgets_under_load` runs a smaller one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Final

from llmproxy.embedded import EmbeddedPostgres
from llmproxy.segments import owners
from llmproxy.testing import (
    RawClient,
    RecordedRequest,
    Reply,
    ScriptedUpstream,
    cut_after,
    fail,
    reply,
    stream,
    tokens,
    wait_until,
)
from llmproxy.testing.chat import model_of
from llmproxy.testing.database import make_postgres
from llmproxy.testing.http1 import MalformedMessageError
from tests.load_gateway import GatewayProcess

CAP: Final = Decimal(1)
MOST_TOKENS: Final = 1000
KEY: Final = "sk-budget-load-7c1d90aa42e84b6f"
# An answer costs at most 0.0022 dollars, and usually 0.001.
USAGE: Final = tokens(20, 500)
REPLIES: Final = {
    "whole": reply("An answer.", usage=USAGE),
    "stream": stream(*["word "] * 8, usage=USAGE, delay_seconds=0.005),
    "fails": fail(500),
    "cut": cut_after(3, stream(*["word "] * 8, usage=USAGE)),
}
_MODELS: Final = ("whole", "whole", "stream", "whole", "stream", "fails", "whole", "stream", "cut", "whole")
_PATIENCE: Final = 6
_LOST: Final = (ConnectionError, asyncio.IncompleteReadError, MalformedMessageError, TimeoutError)
CONFIG: Final = """
server: {{workers: {workers}}}
database: {{url: "{database_url}"}}
providers: {{upstream: {{kind: openai, base_url: "{base_url}"}}}}
prices: [{{match: upstream/*, input_usd_per_mtok: 1, output_usd_per_mtok: 2}}]
workspaces: {{acme: {{keys: [{key}]}}}}
plugins:
  budgets:
    limits:
      - {{scope: workspace, match: acme, usd: {cap}, window: lifetime}}
      - {{scope: user, match: "*", usd: {cap}, window: day}}
      - {{scope: model, match: "*", tokens: 100000000, window: hour, rolling: true}}
logging: {{format: json}}
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    workers: int
    replicas: int
    clients: int
    kills: int


@dataclass(slots=True)
class Result:
    """What came of it. `held` is what is still leased in the end."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    spent: Decimal = Decimal(0)
    settled: Decimal = Decimal(0)
    held: Decimal = Decimal(0)
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


def answer(request: RecordedRequest) -> Reply:
    """The upstream does what the model's name says."""
    return REPLIES[model_of(request)]


async def run(scale: Scale, database_url: str, directory: Path) -> Result:
    """Spend all there is, through every replica, while workers are killed."""
    result = Result()
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream(default=answer))
        config = CONFIG.format(
            workers=scale.workers, database_url=database_url, base_url=upstream.base_url, key=KEY, cap=CAP
        )
        replicas = [GatewayProcess(config, _made(directory / str(number))) for number in range(scale.replicas)]
        async with asyncio.TaskGroup() as starting:
            for replica in replicas:
                starting.create_task(stack.enter_async_context(replica))
        started = time.monotonic()
        await _load(scale, replicas, result)
        result.seconds = time.monotonic() - started
        for replica in replicas:
            await wait_until(lambda of=replica: len(owners(of.journal)) == scale.workers, 30)  # type: ignore[misc]
            await replica.stop()
            result.errors += [str(entry) for entry in replica.log() if entry["level"] == "error"]
    await _read(database_url, result)
    return result


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


async def _load(scale: Scale, replicas: list[GatewayProcess], result: Result) -> None:
    numbers = count()
    async with asyncio.TaskGroup() as tasks:
        for client in range(scale.clients):
            tasks.create_task(_client(replicas[client % len(replicas)].port, numbers, result.statuses))
        tasks.create_task(_kill(scale, replicas, result.statuses))


async def _client(port: int, numbers: Iterator[int], statuses: Counter[int]) -> None:
    refused = 0
    while refused < _PATIENCE:
        status = 0
        with suppress(*_LOST):
            status = await _ask(port, next(numbers))
        statuses[status] += 1
        refused = refused + 1 if status == 402 else 0
        if refused:
            # As long as `retry-after` says, or a little less.
            await asyncio.sleep(0.5)


async def _ask(port: int, number: int) -> int:
    model = _MODELS[number % len(_MODELS)]
    members = {
        "model": f"upstream/{model}",
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": MOST_TOKENS,
        "stream": model in ("stream", "cut"),
    }
    body = json.dumps(members).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nx-llmproxy-user: ann\r\n\r\n"
    )
    async with RawClient("127.0.0.1", port, deadline_seconds=20) as connection:
        await connection.send(head.encode() + body)
        status = (await connection.read_head()).status
        if number % 10 == 7 and status == 200:
            return status  # Hangs up in the middle of a stream.
        await connection.read_body()
    return status


async def _kill(scale: Scale, replicas: list[GatewayProcess], statuses: Counter[int]) -> None:
    for kill in range(scale.kills):
        wanted = 800 * (kill + 1) // (scale.kills + 1)
        await wait_until(lambda at=wanted: statuses[200] >= at or statuses[402] > 0, 60)  # type: ignore[misc]
        replica = replicas[kill % len(replicas)]
        replica.kill_worker()
        await wait_until(lambda of=replica: len(of.workers) == scale.workers, 20)  # type: ignore[misc]


async def _read(database_url: str, result: Result) -> None:
    database = make_postgres(database_url)
    await database.open()
    try:
        [row] = await database.fetch("SELECT sum(amount_usd) AS spent FROM ledger_entries")
        result.spent = row["spent"]
        for row in await database.fetch(
            "SELECT settled, leased FROM quota_buckets WHERE allowance LIKE '%workspace=acme'"
        ):
            result.settled, result.held = row["settled"], row["leased"]
        rows = await database.fetch("SELECT outcome, count(*) AS count FROM requests GROUP BY 1")
        result.outcomes = Counter({row["outcome"]: row["count"] for row in rows})
    finally:
        await database.close()


def main() -> None:
    """Four workers in each of two replicas, two hundred clients, four `kill -9`."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        server = EmbeddedPostgres(directory)
        try:
            result = asyncio.run(run(Scale(4, 2, 200, 4), server.start(), directory / "replicas"))
        finally:
            server.stop()
    sys.stdout.write(f"{result}\n")


if __name__ == "__main__":
    main()
