"""`python -m benchmarks.keeping_step`: what it saves that requests which are ready together take each step together.

Beside the same gateway whose requests go on at once. Some loads are answers alone; in others streams run beside them,
of which only the CPU time is counted: a request that waited for others must not wait for their events.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import uvloop

from benchmarks.load import Load, Seen, Streams, WholeAnswers
from benchmarks.processes import running
from benchmarks.quotas import budgets, gateway, limits
from benchmarks.report import rate, wait, worker_microseconds
from benchmarks.rounds import Beside, Scale, prepare, print_table, rounds

_OPENING_SECONDS: Final = 1.0
_COLUMNS: Final = ("answers/s", rate), ("CPU µs", worker_microseconds), ("p50 ms", wait(50)), ("p99 ms", wait(99))
FULL: Final = Scale(rounds=7, seconds=2)
QUICK: Final = Scale(rounds=3, seconds=1)


@dataclass(frozen=True, slots=True)
class AnswersBeside:
    """Whole answers while streams run, which begin before them and end after them."""

    answers: WholeAnswers
    streams: Streams

    async def run(self, port: int, numbers: Iterator[int]) -> Seen:
        """Do both; what is told is the answers. Raises WrongAnswerError."""
        async with asyncio.TaskGroup() as tasks:
            streaming = tasks.create_task(self.streams.run(port, numbers))
            await asyncio.sleep(_OPENING_SECONDS)
            seen = await self.answers.run(port, numbers)
        seen.requests += (await streaming).requests
        return seen


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keeping_step", description="Measure what it saves.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    numbers = itertools.count(1)
    for name, plugins in {"no plugin": "plugins: []", "budgets and limits": f"plugins:\n{budgets()}{limits()}"}.items():
        with ExitStack() as stack:
            _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
            programs = {"each at once": "benchmarks.out_of_step", "in step": "llmproxy"}
            subjects = [
                stack.enter_context(gateway(each, upstream_port, plugins, program=program))
                for each, program in programs.items()
            ]
            await prepare(subjects, numbers)
            columns = [Beside(title, measure, ("each at once",), decimals=2) for title, measure in _COLUMNS]
            for title, load in _loads(scale.seconds).items():
                samples = await rounds(dict.fromkeys(subjects, load), scale.rounds, numbers)
                print_table(f"{name}: {title}", samples, columns)


def _loads(seconds: float) -> Mapping[str, Load]:
    lasting = int(1000 * (seconds + 2 * _OPENING_SECONDS))
    return {
        "64 clients": WholeAnswers(64, seconds),
        "8 clients": WholeAnswers(8, seconds),
        "1 client": WholeAnswers(1, seconds),
        "8 clients beside 100 streams, an event every 5 ms": AnswersBeside(
            WholeAnswers(8, seconds), Streams(100, lasting // 5, 5)
        ),
        "8 clients beside 500 streams, an event every 50 ms": AnswersBeside(
            WholeAnswers(8, seconds), Streams(500, lasting // 50, 50)
        ),
    }


if __name__ == "__main__":
    main()
