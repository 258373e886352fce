"""`python -m benchmarks.audit`: what the audit chain costs, beside the same gateway and the same writer without it.

First throughput: two gateways, of which one writes no chain, take turns behind the same load, their workers on a core
of their own, everything else on another. Ratios are taken within a round. Then CPU time, of the process that writes
batches and of all processes of its Postgres, batch by batch in turn.
"""

from __future__ import annotations

import argparse
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
import uvloop

from benchmarks.gateway import installation
from benchmarks.load import WholeAnswers
from benchmarks.processes import cpu_seconds, pin_apart, running
from benchmarks.report import Measure, database_microseconds, markdown, rate, worker_microseconds
from benchmarks.subjects import Sample, Subject, sample
from llmproxy.db import Postgres
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.migrate import core_component, migrate
from llmproxy.request import Document
from llmproxy.testing.database import make_postgres
from tests.audit_rows import make_chain, make_chained_writer, verified
from tests.test_audit import record

WITHOUT: Final = "without the chain"
WITH: Final = "with it"
CLIENTS: Final = 64
WANTED_PERCENT: Final = 3

Write = Callable[[Sequence[Document]], Awaitable[None]]
Samples = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it.

    Attributes:
        seconds: Of load, for each subject in each round.
        batches: How many of each size are written in a round: so many that the kernel's clock ticks do not count.
    """

    load_rounds: int
    seconds: float
    batch_rounds: int
    batches: Mapping[int, int]


FULL: Final = Scale(60, 1.5, 9, {20: 100, 100: 40, 500: 10})
QUICK: Final = Scale(5, 2, 3, {100: 30, 500: 8})


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description="Measure what the audit costs.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    scale = QUICK if parser.parse_args().quick else FULL
    samples = uvloop.run(_loaded(scale))
    print(f"### Whole answers, {CLIENTS} clients, {scale.load_rounds} rounds\n\n{_throughput(samples)}\n", flush=True)
    with embedded_server() as (url, database, directory):
        costs = asyncio.run(_written(url, database, directory, scale))
    both = _median(samples[WITH], lambda taken: worker_microseconds(taken) + database_microseconds(taken))
    print(f"### Batches, CPU µs for each record\n\n{_batches(costs, both)}\n")
    print(f"Under {WANTED_PERCENT} % is wanted.")


# Throughput


async def _loaded(scale: Scale) -> Samples:
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        programs = {WITHOUT: "benchmarks.unchained", WITH: "llmproxy"}
        subjects = [stack.enter_context(_gateway(name, program, upstream_port)) for name, program in programs.items()]
        pin_apart(subjects)
        for subject in subjects:
            await sample(subject, WholeAnswers(CLIENTS, 1), numbers)
        samples: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
        for number in range(scale.load_rounds):
            # Who comes first alternates: a machine that others use too does not stay the same.
            for subject in subjects if number % 2 else reversed(subjects):
                load = WholeAnswers(CLIENTS, scale.seconds)
                samples[subject.name].append(await sample(subject, load, numbers))
        return samples


@contextmanager
def _gateway(name: str, program: str, upstream_port: int) -> Iterator[Subject]:
    with (
        tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-") as place,
        installation(Path(place), upstream_port) as installed,
        installed.serving(program) as served,
    ):
        yield Subject(name, served.port, served.worker, served)


def _throughput(samples: Samples) -> str:
    measures: Mapping[str, Measure] = {
        "answers/s": rate,
        "worker, CPU µs": worker_microseconds,
        "Postgres, CPU µs": database_microseconds,
        "both, CPU µs": lambda taken: worker_microseconds(taken) + database_microseconds(taken),
        "worker busy, %": lambda taken: taken.busy * 100,
    }
    rows = [[name, *(f"{_median(own, each):,.0f}" for each in measures.values())] for name, own in samples.items()]
    return markdown(["", *measures], [*rows, ["difference, %", *(_change(samples, m) for m in measures.values())]])


def _change(samples: Samples, measure: Measure) -> str:
    """The median over the rounds, and the half of them that is nearest to it."""
    changes = sorted(
        (measure(chained) / measure(plain) - 1) * 100
        for chained, plain in zip(samples[WITH], samples[WITHOUT], strict=True)
    )
    quarter = len(changes) // 4
    return f"{median(changes):+.1f} ({changes[quarter]:+.1f} to {changes[-1 - quarter]:+.1f})"


def _median(samples: Sequence[Sample], measure: Measure) -> float:
    return median(map(measure, samples))


# Batches


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time for each record, in microseconds."""

    writer: float
    database: float


async def _written(
    url: str, database: psutil.Process, directory: Path, scale: Scale
) -> Mapping[int, Sequence[list[Cost]]]:
    await migrate(url, [core_component()])
    postgres = make_postgres(url)
    await postgres.open()
    try:
        costs = await _measured(postgres, database, directory, scale)
        report = await verified(postgres)
        # Rows that were written without a chain are strays, and the only problem there is.
        if any("is in no chain" not in problem.message for problem in report.problems):
            raise RuntimeError(report.problems[0].message)
        return costs
    finally:
        await postgres.close()


async def _measured(
    postgres: Postgres, database: psutil.Process, directory: Path, scale: Scale
) -> Mapping[int, Sequence[list[Cost]]]:
    """For each size of a batch, the rounds without the chain and those with it."""
    without = make_chained_writer(postgres, None, directory).write
    chained = make_chained_writer(postgres, make_chain(), directory).write
    costs: dict[int, tuple[list[Cost], list[Cost]]] = {rows: ([], []) for rows in scale.batches}
    for write in (without, chained):
        await _cost(write, 100, 10, database)
    for number, (rows, count) in itertools.product(range(scale.batch_rounds), scale.batches.items()):
        for place in (0, 1) if number % 2 else (1, 0):
            costs[rows][place].append(await _cost((without, chained)[place], rows, count, database))
    return costs


async def _cost(write: Write, rows: int, count: int, database: psutil.Process) -> Cost:
    batches = [[record() for _ in range(rows)] for _ in range(count)]
    writer_started, database_started = process_time(), cpu_seconds(database)
    for batch in batches:
        await write(batch)
    writer, spent = process_time() - writer_started, cpu_seconds(database) - database_started
    return Cost(writer / rows / count * 1e6, spent / rows / count * 1e6)


def _batches(costs: Mapping[int, Sequence[list[Cost]]], request_microseconds: float) -> str:
    head = ["rows in a batch", "writer", "the chain adds", "Postgres", "the chain adds", "of a request, %"]
    return markdown(head, [_row(rows, each, request_microseconds) for rows, each in costs.items()])


def _row(rows: int, costs: Sequence[list[Cost]], request_microseconds: float) -> list[str]:
    without, chained = costs
    pairs = list(zip(chained, without, strict=True))
    writer = median(one.writer - other.writer for one, other in pairs)
    database = median(one.database - other.database for one, other in pairs)
    return [
        str(rows),
        f"{median(each.writer for each in without):.1f}",
        f"{writer:.1f}",
        f"{median(each.database for each in without):.1f}",
        f"{database:.1f}",
        f"{(writer + database) / request_microseconds * 100:.1f}",
    ]


@contextmanager
def embedded_server() -> Iterator[tuple[str, psutil.Process, Path]]:
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


if __name__ == "__main__":
    main()
