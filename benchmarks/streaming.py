"""`python -m benchmarks.streaming`: many live streams, with and without everything on, beside a bare relay and nginx.

The subjects take turns within each round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Final

import uvloop

from benchmarks.everything import NGINX, OFF, proxies
from benchmarks.load import Load, Streams
from benchmarks.nginx import say_if_missing
from benchmarks.report import RELAY, rate, wait, worker_microseconds, worst_stretch
from benchmarks.rounds import Beside, Scale, print_table, rounds
from llmproxy.seat import allow_open_files

_COLUMNS: Final = (
    Beside("events/s", rate),
    Beside("CPU µs/event", worker_microseconds, (NGINX, RELAY, OFF), decimals=1),
    Beside("core busy, %", lambda each: each.busy * 100),
    Beside("first event p50 ms", wait(50)),
    Beside("p99 ms", wait(99)),
    Beside("slowest stream late, %", worst_stretch, decimals=1),
)
FULL: Final = Scale(rounds=3, seconds=15)
QUICK: Final = Scale(rounds=1, seconds=5)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description="Measure many streams.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--event-loop", choices=("asyncio", "uvloop"), default="asyncio", help="the gateways' own")
    arguments = parser.parse_args()
    # Each stream takes two files of its worker, and one of each end.
    allow_open_files()
    say_if_missing()
    uvloop.run(_measure(QUICK if arguments.quick else FULL, arguments.event_loop))


async def _measure(scale: Scale, event_loop: str) -> None:
    numbers = itertools.count(1)
    edits = {"workers: 1": f"workers: 1, event_loop: {event_loop}"}
    async with proxies(numbers, edits=edits) as subjects:
        for title, load in _loads(scale.seconds):
            samples = await rounds(dict.fromkeys(subjects, load), scale.rounds, numbers)
            print_table(title, samples, _COLUMNS)


def _loads(seconds: float) -> Iterator[tuple[str, Load]]:
    for count, gap_ms in ((100, 5), (500, 5), (500, 100), (2_000, 500)):
        yield f"{count:,} streams, an event every {gap_ms} ms", Streams(count, int(seconds * 1000 / gap_ms), gap_ms)


if __name__ == "__main__":
    main()
