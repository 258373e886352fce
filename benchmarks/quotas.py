"""`python -m benchmarks.quotas`: what budgets on four scopes cost, against the same gateway without, in one run."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Final

import uvloop

from benchmarks.gateway import installation
from benchmarks.load import Load, Streams, WholeAnswers
from benchmarks.processes import pin_apart, running
from benchmarks.report import database_microseconds, rate, wait, worker_microseconds
from benchmarks.subjects import Sample, Subject, sample

OFF: Final = "budgets off"
ON: Final = "budgets on four scopes"
_LIMIT: Final = 'scope: {scope}, match: "*", usd: 100000, window: month'
_SCOPES: Final = ("workspace", "key", "model", "[workspace, feature]")
_NO_PLUGINS: Final = "plugins: []"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    seconds: float


FULL: Final = Scale(rounds=7, seconds=3)
QUICK: Final = Scale(rounds=3, seconds=1.5)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quotas", description="Measure what budgets cost.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        subjects = [
            stack.enter_context(gateway(name, upstream_port, plugins))
            for name, plugins in ((OFF, _NO_PLUGINS), (ON, f"plugins:\n{budgets()}"))
        ]
        pin_apart(subjects)
        for subject in subjects:
            await sample(subject, WholeAnswers(8, 0.5), numbers)
        loads: Mapping[str, Load] = {
            "Whole answers, 64 clients": WholeAnswers(64, scale.seconds),
            "Whole answers, 1 client": WholeAnswers(1, scale.seconds),
            "32 streams of 200 events": Streams(32, 200),
        }
        for title, load in loads.items():
            samples: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
            for _, subject in itertools.product(range(scale.rounds), subjects):
                samples[subject.name].append(await sample(subject, load, numbers))
            print(f"### {title}\n\n{_table(samples)}\n", flush=True)


def budgets() -> str:
    """Limits on four scopes that let everything pass, as a part of a configuration's plugins."""
    limits = [_LIMIT.format(scope=scope) for scope in _SCOPES]
    # As many patterns as scopes.
    limits = [limit.replace('match: "*"', 'match: ["*", "*"]') if "[" in limit else limit for limit in limits]
    return "  budgets:\n    limits:\n" + "".join(f"      - {{{limit}}}\n" for limit in limits)


def _table(samples: Mapping[str, Sequence[Sample]]) -> str:
    head = [
        "| | a second (of off) | CPU µs (of off) | database µs | p50 ms | p99 ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *(_line(name, samples[name], samples[OFF]) for name in samples)])


def _line(name: str, own: Sequence[Sample], off: Sequence[Sample]) -> str:
    rates = median(rate(a) / rate(b) for a, b in zip(own, off, strict=True))
    costs = median(worker_microseconds(a) / worker_microseconds(b) for a, b in zip(own, off, strict=True))
    p50, p99 = (median(wait(percent)(each) for each in own) for percent in (50, 99))
    return (
        f"| {name} | {median(map(rate, own)):,.0f} ({rates:.2f}) | {median(map(worker_microseconds, own)):.0f} "
        f"({costs:.2f}) | {median(map(database_microseconds, own)):.0f} | {p50:.2f} | {p99:.2f} |"
    )


@contextmanager
def gateway(
    name: str, upstream_port: int, plugins: str, edits: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Subject]:
    """A gateway with these plugins, further edits of its configuration and a database of its own."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-") as place:
        directory = Path(place)
        with installation(directory, upstream_port) as installed:
            installed.edit({_NO_PLUGINS: plugins, **edits})
            with installed.serving() as served:
                yield Subject(name, served.port, served.worker, served)


if __name__ == "__main__":
    main()
