"""`python -m benchmarks.gate`: fails when the gateway has become much dearer beside a bare relay, and stays so.

CPU time for each answer or event, as a multiple of the relay's in the same run, because machines differ and are noisy.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Final

import uvloop

from benchmarks.everything import OFF, ON, gateways
from benchmarks.load import Load, Streams, WholeAnswers
from benchmarks.processes import pin_apart, running
from benchmarks.report import RELAY, markdown, worker_microseconds
from benchmarks.subjects import Subject, sample

ANSWERS: Final = "whole answers, 64 clients"
STREAMS: Final = "32 streams at full speed"
_LOADS: Final[Mapping[str, Load]] = {ANSWERS: WholeAnswers(64, 1.0), STREAMS: Streams(32, 400)}
# The ratio above which something has gone wrong: about half as much again as was measured when it was last set.
MOST: Final[Mapping[tuple[str, str], float]] = {
    (OFF, ANSWERS): 2.9,
    (ON, ANSWERS): 4.8,
    (OFF, STREAMS): 3.8,
    (ON, STREAMS): 4.5,
}
_ROUNDS: Final = 3
# What is too dear is measured again: only what stays so is a loss.
_PASSES: Final = 3


def main() -> None:
    """Measure, print the ratios, and exit with 1 when one of them is too high each time."""
    sys.exit(uvloop.run(_gate()))


async def _gate() -> int:
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        process, port = stack.enter_context(running("benchmarks.relay", f"http://127.0.0.1:{upstream_port}"))
        relay = Subject(RELAY, port, process)
        subjects = [relay, *gateways(stack, upstream_port, alone=False)]
        pin_apart(subjects)
        for subject in subjects:
            await sample(subject, WholeAnswers(8, 0.5), numbers)
        suspects = set(MOST)
        for _ in range(_PASSES):
            found = await _ratios(subjects, suspects, numbers)
            print(f"{_table(found)}\n", flush=True)
            suspects = {each for each, ratio in found.items() if ratio > MOST[each]}
            if not suspects:
                return 0
    for subject_name, load in sorted(suspects):
        print(f"{subject_name}, {load}: more than {MOST[subject_name, load]} times the relay's CPU time, repeatedly.")
    return 1


async def _ratios(
    subjects: Sequence[Subject], wanted: set[tuple[str, str]], numbers: Iterator[int]
) -> Mapping[tuple[str, str], float]:
    found = {}
    for load in [name for name in _LOADS if any(name == each for _, each in wanted)]:
        samples: dict[str, list[float]] = {subject.name: [] for subject in subjects}
        for _, subject in itertools.product(range(_ROUNDS), subjects):
            samples[subject.name].append(worker_microseconds(await sample(subject, _LOADS[load], numbers)))
        for name in [name for name, each in wanted if each == load]:
            found[name, load] = median(a / b for a, b in zip(samples[name], samples[RELAY], strict=True))
    return found


def _table(found: Mapping[tuple[str, str], float]) -> str:
    rows = [[name, load, f"{ratio:.2f}", f"{MOST[name, load]:.2f}"] for (name, load), ratio in sorted(found.items())]
    return markdown(["", "load", f"CPU of the {RELAY}'s", "at most"], rows)


if __name__ == "__main__":
    main()
