"""`python -m benchmarks.others`: the gateway with everything on, beside other gateways that do nothing but pass on.

`make bench-others` installs them, each into an environment of its own. One that is not there, or does not start, is
left out. The subjects take turns within each round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import psutil
import uvloop

from benchmarks.everything import ON, gateways
from benchmarks.load import Load, Streams, WholeAnswers, WrongAnswerError
from benchmarks.other_gateways import litellm, litellm_name, portkey, portkey_name, portkey_order
from benchmarks.processes import memory, pin_apart, running
from benchmarks.report import (
    DIRECT,
    RELAY,
    Column,
    Measure,
    Samples,
    markdown,
    rate,
    ratio,
    table,
    wait,
    worker_microseconds,
    worst_stretch,
)
from benchmarks.rewritten import RewrittenOrder
from benchmarks.rounds import Scale
from benchmarks.subjects import Sample, Subject, sample
from benchmarks.traffic import API_KEY, Order

_WAITS: Final = (Column("p50 ms", wait(50), decimals=2), Column("p99 ms", wait(99), decimals=2))
_ANSWERS: Final = (Column("answers/s", rate), Column("CPU µs", worker_microseconds), *_WAITS)
_EVENTS: Final = (
    Column("events/s", rate),
    Column("CPU µs/event", worker_microseconds, decimals=1),
    Column("first event p99 ms", wait(99), decimals=1),
    Column("slowest stream late, %", worst_stretch, decimals=1),
)


class Ordering(Protocol):
    """Makes orders that a subject understands."""

    def __call__(self, number: int, events: int = 0, gap_ms: int = 0) -> Order:
        """One of them."""


Loading = Callable[[Ordering], Load]


@dataclass(frozen=True, slots=True)
class Contender:
    """A subject, and how it is asked.

    Attributes:
        may_fail: Whether the rest is measured on without it when it does not answer as it has to.
    """

    subject: Subject
    order: Ordering = Order
    may_fail: bool = False


FULL: Final = Scale(rounds=5, seconds=3)
QUICK: Final = Scale(rounds=3, seconds=1.5)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.others", description="Measure other gateways too.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        contenders: Sequence[Contender] = [*_known(stack, upstream_port), *_others(stack, upstream_port)]
        pin_apart(each.subject for each in contenders)
        contenders, _ = await _round(contenders, partial(WholeAnswers, 8, 1), numbers)
        print(f"### Memory after some answers\n\n{_memories(contenders)}\n", flush=True)
        measured = {}
        for title, load, columns in _loads(scale.seconds):
            contenders, measured[title] = await _rounds(scale.rounds, contenders, load, numbers)
            print(f"### {title}\n\n{table(measured[title], columns)}\n", flush=True)
    print(f"### {ON}, as a multiple of each\n\n{_multiples(measured)}")


def _loads(seconds: float) -> Iterator[tuple[str, Loading, Sequence[Column]]]:
    """What is done to each subject in each round, and what is shown of it."""
    for clients in (64, 8, 1):
        yield f"{clients} client{'s' * (clients > 1)}", partial(WholeAnswers, clients, seconds), _ANSWERS
    events = int(seconds * 100)
    yield "100 streams, an event every 5 ms", lambda order: Streams(100, events, gap_ms=5, order=order), _EVENTS


def _known(stack: ExitStack, upstream_port: int) -> Iterator[Contender]:
    yield Contender(Subject(DIRECT, upstream_port))
    process, port = stack.enter_context(running("benchmarks.relay", f"http://127.0.0.1:{upstream_port}"))
    yield Contender(Subject(RELAY, port, process))
    yield from map(Contender, gateways(stack, upstream_port, alone=False))


def _others(stack: ExitStack, upstream_port: int) -> Iterator[Contender]:
    wanted: Sequence[tuple[str, AbstractContextManager[tuple[psutil.Process, int]], Ordering]] = (
        (litellm_name(), litellm(upstream_port, None), RewrittenOrder),
        (f"{litellm_name()}, master key", litellm(upstream_port, API_KEY), RewrittenOrder),
        (portkey_name(), portkey(), portkey_order(upstream_port)),
    )
    for name, starting, order in wanted:
        try:
            process, port = stack.enter_context(starting)
        except (OSError, RuntimeError) as error:
            print(f"{name} is left out. {error}\n", flush=True)
        else:
            yield Contender(Subject(name, port, process), order, may_fail=True)


async def _rounds(
    rounds: int, contenders: Sequence[Contender], load: Loading, numbers: Iterator[int]
) -> tuple[Sequence[Contender], Samples]:
    """Those that have answered in every round, and their samples."""
    taken: list[Mapping[str, Sample]] = []
    for _ in range(rounds):
        contenders, samples = await _round(contenders, load, numbers)
        taken.append(samples)
    return contenders, {name: [samples[name] for samples in taken] for name in taken[-1]}


async def _round(
    contenders: Sequence[Contender], load: Loading, numbers: Iterator[int]
) -> tuple[Sequence[Contender], Mapping[str, Sample]]:
    """Those that have answered as they have to, and a sample of each."""
    left, samples = [], {}
    for each in contenders:
        name = each.subject.name
        try:
            samples[name] = await sample(each.subject, load(each.order), numbers)
            left.append(each)
        except (WrongAnswerError, TimeoutError, OSError, ValueError) as error:
            if not each.may_fail:
                raise
            print(f"{name} is left out from here on: {str(error) or 'It did not answer in time.'}\n", flush=True)
    return left, samples


def _memories(contenders: Sequence[Contender]) -> str:
    held = {each.subject.name: memory(each.subject.worker) for each in contenders if each.subject.worker}
    rows = [[name, f"{it.resident_bytes / 1e6:.0f}", f"{it.unique_bytes / 1e6:.0f}"] for name, it in held.items()]
    return markdown(["", "worker, MB", "of it its own, MB"], rows)


def _multiples(measured: Mapping[str, Samples]) -> str:
    """What everything on is of each subject, in answers a second and in CPU time."""
    names = [name for name in next(iter(measured.values())) if name not in {DIRECT, ON}]
    *whole, streams = measured
    head = ["", *(f"answers/s, {title}" for title in whole), *(f"CPU, {title}" for title in whole), "CPU of an event"]
    columns = [(title, rate) for title in whole] + [(title, worker_microseconds) for title in (*whole, streams)]
    rows = [[name, *(_multiple(measured[title], name, measure) for title, measure in columns)] for name in names]
    return markdown(head, rows)


def _multiple(samples: Samples, name: str, measure: Measure) -> str:
    return ratio(samples[ON], samples[name], measure) if name in samples else "-"


if __name__ == "__main__":
    main()
