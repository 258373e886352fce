"""`python -m benchmarks.audit`: what the audit chain costs, beside writing the same batches without it.

CPU time, not time: of the process that writes, and of all processes of its Postgres. Batches are written in turn
with and without the chain, and ratios are taken within a round. What a request costs the gateway as a whole is
measured in the same run, as `python -m benchmarks` does it, to say which part of it the chain is.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Final

import psutil

from benchmarks.gateway import installation
from benchmarks.load import WholeAnswers
from benchmarks.processes import cpu_seconds, running
from benchmarks.report import GATEWAY, markdown
from benchmarks.subjects import Subject, sample
from llmproxy.db import Postgres
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.exchange import Document
from llmproxy.migrate import core_component, migrate
from llmproxy.testing.database import make_postgres
from tests.audit_rows import make_chain, make_chained_writer, verified
from tests.test_audit import record

ROUNDS: Final = 7
# Of each size so many that the kernel's clock ticks do not count.
BATCHES: Final[Mapping[int, int]] = {1: 300, 20: 80, 50: 60, 100: 40}
GATEWAY_SECONDS: Final = 3
WANTED_PERCENT: Final = 3

Write = Callable[[Sequence[Document]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time for each record, in microseconds."""

    writer: float
    database: float

    @property
    def both(self) -> float:
        """Of all processes."""
        return self.writer + self.database


async def _cost(write: Write, rows: int, database: psutil.Process) -> Cost:
    batches = [[record() for _ in range(rows)] for _ in range(BATCHES[rows])]
    writer_started, database_started = process_time(), cpu_seconds(database)
    for batch in batches:
        await write(batch)
    writer, spent = process_time() - writer_started, cpu_seconds(database) - database_started
    return Cost(writer / rows / BATCHES[rows] * 1e6, spent / rows / BATCHES[rows] * 1e6)


async def _measured(
    postgres: Postgres, database: psutil.Process, directory: Path
) -> Mapping[int, Sequence[list[Cost]]]:
    """For each size of a batch, the rounds without the chain and those with it."""
    without = make_chained_writer(postgres, None, directory).write
    chained = make_chained_writer(postgres, make_chain(), directory).write
    costs: dict[int, tuple[list[Cost], list[Cost]]] = {rows: ([], []) for rows in BATCHES}
    for write in (without, chained):
        await _cost(write, 100, database)
    for number, rows in itertools.product(range(ROUNDS), BATCHES):
        # Who comes first alternates, as the second finds the caches warm.
        for place in (0, 1) if number % 2 else (1, 0):
            costs[rows][place].append(await _cost((without, chained)[place], rows, database))
    return costs


def _row(rows: int, without: Sequence[Cost], chained: Sequence[Cost], request: Cost) -> list[str]:
    added = [one.both - other.both for one, other in zip(chained, without, strict=True)]
    ratios = [one.both / other.both for one, other in zip(chained, without, strict=True)]
    writer = median(one.writer - other.writer for one, other in zip(chained, without, strict=True))
    return [
        str(rows),
        f"{median(each.both for each in without):.0f}",
        f"{median(each.both for each in chained):.0f}",
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{median(added):.0f}",
        f"{writer:.0f}",
        f"{median(added) / request.both * 100:.1f}",
        f"{writer / request.writer * 100:.1f}",
    ]


@contextmanager
def _server() -> Iterator[tuple[str, psutil.Process, Path]]:
    """An embedded Postgres: its URL, its first process, and its directory."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)
        server = EmbeddedPostgres(directory)
        try:
            url = server.start()
            process_id = int((server.home / "data" / "postmaster.pid").read_text().split()[0])
            yield url, psutil.Process(process_id), directory
        finally:
            server.stop()


async def _on(url: str, database: psutil.Process, directory: Path) -> Mapping[int, Sequence[list[Cost]]]:
    await migrate(url, [core_component()])
    postgres = make_postgres(url)
    await postgres.open()
    try:
        costs = await _measured(postgres, database, directory)
        report = await verified(postgres)
        # Rows that were written without a chain are strays, and the only problem there is.
        if any("is in no chain" not in problem.message for problem in report.problems):
            raise RuntimeError(report.problems[0].message)
        return costs
    finally:
        await postgres.close()


async def _request() -> Cost:
    """What a request costs the gateway's worker, and its Postgres; the chain is in it."""
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-")))
        gateway = stack.enter_context(stack.enter_context(installation(directory, upstream_port)).serving())
        subject = Subject(GATEWAY, gateway.port, gateway.worker, gateway)
        await sample(subject, WholeAnswers(8, 0.5), numbers)
        taken = [await sample(subject, WholeAnswers(8, GATEWAY_SECONDS), numbers) for _ in range(3)]
    each = [Cost(t.worker_seconds / t.seen.units * 1e6, t.database_seconds / t.seen.units * 1e6) for t in taken]
    return Cost(median(cost.writer for cost in each), median(cost.database for cost in each))


async def _main() -> None:
    request = await _request()
    with _server() as (url, database, directory):
        costs = await _on(url, database, directory)
    print(f"A request costs the worker {request.writer:.0f} µs and Postgres {request.database:.0f} µs.\n")
    head = ["rows in a batch", "without, µs", "with, µs", "ratio (range)", "added, µs", "of it by the writer"]
    shares = ["of a request, %", "of the worker's, %"]
    print(markdown([*head, *shares], [_row(rows, *rounds, request) for rows, rounds in costs.items()]))
    print(f"\nUnder {WANTED_PERCENT} % is wanted. All figures are CPU time for each record.")


def main() -> None:
    """Measure, and print a table."""
    asyncio.run(_main())


if __name__ == "__main__":
    main()
