"""`python -m benchmarks.workers`: what a second worker adds, on as many cores as there are.

Workers have a core each; the load, the upstream and Postgres move between all cores, and so take from the workers what
they need. Where that is much, answers per second say little about workers: what they could do with cores to themselves
follows from the CPU time that they spend on each answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Final

import psutil
import uvloop

from benchmarks.everything import OFF, ON, everything
from benchmarks.gateway import Gateway
from benchmarks.load import Seen, WholeAnswers
from benchmarks.processes import cores, cpu_seconds, pin, running
from benchmarks.quotas import gateway
from benchmarks.report import markdown
from benchmarks.rounds import Scale
from benchmarks.subjects import Subject

WORKERS: Final = (1, 2)
_BUSIEST: Final = "connections / CPU of the busiest worker, each round"
FULL: Final = Scale(rounds=7, seconds=3)
QUICK: Final = Scale(rounds=2, seconds=1.5)


@dataclass(frozen=True, slots=True)
class Taken:
    """One load on one gateway. CPU time counts until the last row is in Postgres.

    Attributes:
        worker_seconds: CPU time of each worker.
        clients: How many connections each worker had.
        all_seconds: CPU time of everything that runs here: workers, database, load and upstream.
    """

    seen: Seen
    worker_seconds: Sequence[float]
    clients: Sequence[int]
    all_seconds: float

    def rate(self) -> float:
        """Answers a second."""
        return self.seen.units / self.seen.seconds

    def worker_microseconds(self) -> float:
        """CPU time of all workers for each answer."""
        return sum(self.worker_seconds) / self.seen.units * 1e6

    def all_microseconds(self) -> float:
        """CPU time of everything for each answer."""
        return self.all_seconds / self.seen.units * 1e6

    def possible(self) -> float:
        """Answers a second when each worker has a core to itself, and always something to do."""
        return len(self.worker_seconds) * self.seen.units / sum(self.worker_seconds)

    def busiest(self) -> str:
        """The shares of the busiest worker: of the connections, and of the CPU time of all workers."""
        shares = max(self.clients) / sum(self.clients), max(self.worker_seconds) / sum(self.worker_seconds)
        return " / ".join(f"{share:.0%}" for share in shares)


# What was measured, one a round.
Measured = Mapping[int, Sequence[Taken]]


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description="Measure a second worker.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    numbers = itertools.count(1)
    for title, plugins in ((OFF, "plugins: []"), (ON, everything())):
        with ExitStack() as stack:
            _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
            subjects = {
                count: stack.enter_context(
                    gateway(f"{count}", upstream_port, plugins, {"workers: 1": f"workers: {count}"})
                )
                for count in WORKERS
            }
            for subject in subjects.values():
                _spread(_gateway(subject))
                await _take(subject, WholeAnswers(8, 0.5), numbers)
            for clients in (256, 64, 8):
                load, taken = WholeAnswers(clients, scale.seconds), {count: list[Taken]() for count in subjects}
                for _, (count, subject) in itertools.product(range(scale.rounds), subjects.items()):
                    taken[count].append(await _take(subject, load, numbers))
                print(f"### {title}, {clients} clients\n\n{_table(taken)}\n", flush=True)


def _gateway(subject: Subject) -> Gateway:
    if subject.gateway is None:
        raise TypeError(f"{subject.name} is no gateway.")
    return subject.gateway


def _spread(serving: Gateway) -> None:
    """Give each of two workers a core; whatever else runs may use all."""
    for worker, core in zip(serving.workers, cores(), strict=False):
        pin([worker], core)


async def _take(subject: Subject, load: WholeAnswers, numbers: Iterator[int]) -> Taken:
    since, workers = datetime.now(UTC), _gateway(subject).workers
    before, all_before = [cpu_seconds(worker) for worker in workers], _all_seconds(subject)
    async with asyncio.TaskGroup() as both:
        loaded = both.create_task(load.run(subject.port, numbers))
        counted = both.create_task(_clients(subject, after_seconds=load.seconds / 2))
    seen = loaded.result()
    await subject.settle(seen.requests, since)
    used = [cpu_seconds(worker) - spent for worker, spent in zip(workers, before, strict=True)]
    return Taken(seen, used, counted.result(), _all_seconds(subject) - all_before)


def _all_seconds(subject: Subject) -> float:
    # The database has left the family of what started it.
    return cpu_seconds(psutil.Process()) + cpu_seconds(subject.database)


async def _clients(subject: Subject, *, after_seconds: float) -> Sequence[int]:
    """How many connections each worker has then."""
    await asyncio.sleep(after_seconds)
    return [
        sum(each.laddr.port == subject.port and each.status == psutil.CONN_ESTABLISHED for each in connections)
        for connections in [worker.net_connections("tcp") for worker in _gateway(subject).workers]
    ]


def _table(taken: Measured) -> str:
    count_of_cores = os.cpu_count() or 1
    head = ["workers", "answers/s", "of one", "CPU µs of the workers", "of one", "of everything"]
    rows = [
        [
            str(count),
            *_beside(own, taken[1], Taken.rate),
            *_beside(own, taken[1], Taken.worker_microseconds),
            f"{median(map(Taken.all_microseconds, own)):,.0f}",
            f"{median(count_of_cores * 1e6 / each.all_microseconds() for each in own):,.0f}",
            *_beside(own, taken[1], Taken.possible),
            ", ".join(map(Taken.busiest, own)) if count > 1 else "-",
        ]
        for count, own in taken.items()
    ]
    return markdown(
        [*head, f"most that {count_of_cores} cores allow", "with cores of their own", "of one", _BUSIEST], rows
    )


def _beside(own: Sequence[Taken], one: Sequence[Taken], measure: Callable[[Taken], float]) -> tuple[str, str]:
    ratios = [measure(each) / measure(base) for each, base in zip(own, one, strict=True)]
    figure = f"{median(map(measure, own)):,.0f}"
    return figure, "-" if own is one else f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
