"""`python -m benchmarks.everything`: the gateway with everything on, beside itself without, a bare relay and nginx.

With `--alone`, each plugin that is installed alone as well. Whole answers only. The subjects take turns within each
round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final

import uvloop

from benchmarks.load import WholeAnswers
from benchmarks.nginx import MISSING, PROGRAM, nginx
from benchmarks.processes import pin_apart, running
from benchmarks.quotas import budgets, gateway
from benchmarks.report import RELAY, Measure, database_microseconds, markdown, rate, ratio, wait, worker_microseconds
from benchmarks.subjects import Sample, Subject, sample
from llmproxy.plugins import installed

NGINX: Final = "nginx"
OFF: Final = "llmproxy, no plugin"
ON: Final = "llmproxy, everything on"
# Each plugin that can do something to requests as they are here, and lets them pass.
_PLUGINS: Final[Mapping[str, str]] = {
    "budgets": budgets(),
    "rate_limits": """\
  rate_limits:
    limits:
      - {scope: workspace, match: "*", requests: 1000000000, tokens: 1000000000000, window: minute}
      - {scope: key, match: "*", requests: 1000000000, window: minute}
""",
    "routing": "  routing: {}\n",
    "fallback": "  fallback: {}\n",
    "caching": "  caching: {}\n",
    "redaction": "  redaction: {detectors: {email: placeholder, card: mask}}\n",
    "runaway": "  runaway: {requests: null, loop: null}\n",
}
# Caching is off and redaction is not chosen by everybody: what they save or cost depends on what is asked.
_EVERYTHING: Final = ("budgets", "rate_limits", "routing", "fallback")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    seconds: float


FULL: Final = Scale(rounds=7, seconds=2)
QUICK: Final = Scale(rounds=3, seconds=1.5)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.everything", description="Measure plugins together.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--alone", action="store_true", help="each installed plugin alone as well")
    arguments = parser.parse_args()
    uvloop.run(_measure(QUICK if arguments.quick else FULL, alone=arguments.alone))


async def _measure(scale: Scale, *, alone: bool) -> None:
    if PROGRAM is None:
        print(f"{MISSING}\n", flush=True)
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        subjects = [*_others(stack, upstream_port), *gateways(stack, upstream_port, alone=alone)]
        pin_apart(subjects)
        for subject in subjects:
            await sample(subject, WholeAnswers(8, 0.5), numbers)
        for clients in (64, 8, 1):
            samples: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
            for _, subject in itertools.product(range(scale.rounds), subjects):
                samples[subject.name].append(await sample(subject, WholeAnswers(clients, scale.seconds), numbers))
            print(f"### Whole answers, {clients} client{'s' * (clients > 1)}\n\n{_table(samples)}\n", flush=True)


def _others(stack: ExitStack, upstream_port: int) -> Iterator[Subject]:
    if PROGRAM is not None:
        process, port = stack.enter_context(nginx(upstream_port))
        yield Subject(NGINX, port, process)
    process, port = stack.enter_context(running("benchmarks.relay", f"http://127.0.0.1:{upstream_port}"))
    yield Subject(RELAY, port, process)


def gateways(stack: ExitStack, upstream_port: int, *, alone: bool) -> Iterator[Subject]:
    """A gateway without plugins, one with everything on and, if wanted, one for each plugin."""
    there = [name for name in _PLUGINS if name in installed()]
    wanted = {OFF: "plugins: []", ON: _enabled(name for name in there if name in _EVERYTHING)}
    if alone:
        wanted |= {f"llmproxy, {name}": _enabled([name]) for name in there}
    for name, plugins in wanted.items():
        yield stack.enter_context(gateway(name, upstream_port, plugins))


def _enabled(names: Iterator[str] | Sequence[str]) -> str:
    return "plugins:\n" + "".join(_PLUGINS[name] for name in names)


def _table(samples: Mapping[str, Sequence[Sample]]) -> str:
    bases = [name for name in (NGINX, RELAY, OFF) if name in samples]
    head = ["", "answers/s", *(f"of {name}" for name in bases), "CPU µs", f"of {RELAY}", f"of {OFF}"]
    rows = [
        [
            name,
            _figure(own, rate),
            *(ratio(own, samples[base], rate) for base in bases),
            _figure(own, worker_microseconds),
            *(ratio(own, samples[base], worker_microseconds) for base in (RELAY, OFF)),
            _figure(own, database_microseconds),
            *(_figure(own, wait(percent), decimals=2) for percent in (50, 99)),
        ]
        for name, own in samples.items()
    ]
    return markdown([*head, "database µs", "p50 ms", "p99 ms"], rows)


def _figure(own: Sequence[Sample], measure: Measure, *, decimals: int = 0) -> str:
    return f"{median(map(measure, own)):,.{decimals}f}"


if __name__ == "__main__":
    main()
