"""`python -m benchmarks`: everything that is measured, in interleaved rounds, as a page of tables."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from benchmarks.gateway import Installation, installation
from benchmarks.load import Load, Streams, WholeAnswers
from benchmarks.processes import pin_apart, running
from benchmarks.report import (
    DIRECT,
    GATEWAY,
    RELAY,
    Column,
    database_microseconds,
    rate,
    starts_table,
    table,
    wait,
    worker_microseconds,
    worst_stretch,
)
from benchmarks.starts import STREAMS, Start, start
from benchmarks.subjects import Sample, Subject, sample

Starting = Callable[[], AbstractContextManager[Subject]]

_CPU: Final = Column("CPU µs", worker_microseconds, decimals=0, beside="ratio")
_EVENT_CPU: Final = Column("CPU µs/event", worker_microseconds, decimals=1, beside="ratio")
_BUSY: Final = Column("core busy, %", lambda each: each.busy * 100)
_DATABASE: Final = Column("database µs", database_microseconds)
_ANSWERS: Final = (
    Column("answers/s", rate, beside="ratio"),
    _CPU,
    _BUSY,
    _DATABASE,
    Column("p50 ms", wait(50), decimals=2, beside="added"),
    Column("p99 ms", wait(99), decimals=2, beside="added"),
)
_EVENTS: Final = (Column("events/s", rate), _EVENT_CPU, _BUSY, Column("first event p99 ms", wait(99), decimals=1))
_PACED: Final = (*_EVENTS, Column("slowest stream late, %", worst_stretch, decimals=1))


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    starts: int
    seconds: float

    def loads(self) -> Iterator[tuple[str, Load, Sequence[Column]]]:
        """What is done to each subject in each round."""
        for clients in (64, 8, 1):
            title = f"Whole answers, {clients} client{'s' if clients > 1 else ''}"
            yield title, WholeAnswers(clients, self.seconds), _ANSWERS
        events = int(self.seconds * 200)
        yield "100 streams, an event every 5 ms", Streams(100, events, gap_ms=5), _PACED
        yield f"{STREAMS} streams, an event every 100 ms", Streams(STREAMS, int(self.seconds * 15), gap_ms=100), _PACED
        yield "32 streams at full speed", Streams(32, events * 4), _EVENTS


FULL: Final = Scale(rounds=5, starts=5, seconds=3)
QUICK: Final = Scale(rounds=2, starts=2, seconds=1.5)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what the gateway costs.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, in less than two minutes")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    print(f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}; {scale}\n", flush=True)
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-")))
        installed = stack.enter_context(installation(directory, upstream_port))
        relay, gateway = partial(_relay, upstream_port), partial(_gateway, installed)
        with gateway():
            pass  # The first start makes the database, which no later one does.
        await _starts(scale, {RELAY: relay, GATEWAY: gateway}, numbers)
        subjects = [Subject(DIRECT, upstream_port), stack.enter_context(relay()), stack.enter_context(gateway())]
        await _rounds(scale, subjects, numbers)


async def _starts(scale: Scale, subjects: dict[str, Starting], numbers: Iterator[int]) -> None:
    starts: dict[str, list[Start]] = {name: [] for name in subjects}
    for _, (name, starting) in itertools.product(range(scale.starts), subjects.items()):
        starts[name].append(await start(starting(), numbers))
    print(f"### Starting, and memory with {STREAMS} live streams\n\n{starts_table(starts)}\n", flush=True)


async def _rounds(scale: Scale, subjects: Sequence[Subject], numbers: Iterator[int]) -> None:
    pin_apart(subjects)
    for subject in subjects:
        await sample(subject, WholeAnswers(8, 0.5), numbers)
    for title, load, columns in scale.loads():
        samples: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
        for _, subject in itertools.product(range(scale.rounds), subjects):
            samples[subject.name].append(await sample(subject, load, numbers))
        print(f"### {title}\n\n{table(samples, columns)}\n", flush=True)


@contextmanager
def _relay(upstream_port: int) -> Iterator[Subject]:
    with running("benchmarks.relay", f"http://127.0.0.1:{upstream_port}") as (process, port):
        yield Subject(RELAY, port, process)


@contextmanager
def _gateway(installed: Installation) -> Iterator[Subject]:
    with installed.serving() as gateway:
        yield Subject(GATEWAY, gateway.port, gateway.worker, gateway)


if __name__ == "__main__":
    main()
