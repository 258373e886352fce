"""`python -m benchmarks.soak`: half an hour of mixed load, and what has grown in the meantime.

Whole answers, streams, and streams that their clients give up, at the same time and at full load, on a gateway with
everything on. Exits with 1 when an answer was wrong, or when not every request is in the ledger once.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import linear_regression
from time import perf_counter
from typing import Final

import uvloop

from benchmarks.everything import ON, everything
from benchmarks.gateway import WORKSPACE, installation
from benchmarks.hangups import Hangups
from benchmarks.load import Load, Seen, Streams, WholeAnswers
from benchmarks.processes import memory, pin_apart, running
from benchmarks.report import markdown
from benchmarks.subjects import Subject
from llmproxy.seat import allow_open_files

_SECONDS_PER_HOUR: Final = 3600
# Streams that are read to their end, and streams that are not.
_STREAMS: Final = Streams(16, events=50, gap_ms=10)
_HASTY_KEY: Final = "sk-benchmarks-hasty-6d20e1b94c7f4a13"
_HANGUPS: Final = Hangups(16, events=50, gap_ms=10, most=7, key=_HASTY_KEY)
# A workspace of their own, so that the other's requests are exactly those that were answered.
_WORKSPACES: Final = f'workspaces:\n  hasty: {{keys: ["{_HASTY_KEY}"]}}\n'
_CLIENTS: Final = 8
# So many at least: a line takes two points, and so does that of the second half.
_LOOKS: Final = 5


@dataclass(frozen=True, slots=True)
class Moment:
    """What there was at one time.

    Attributes:
        seconds: Since the load began.
        rate: Requests a second since the moment before.
    """

    seconds: float
    resident_bytes: int
    unique_bytes: int
    files: int
    journal_bytes: int
    rate: float

    def __str__(self) -> str:
        return (
            f"{self.seconds:,.0f} s: {self.unique_bytes / 1e6:.1f} of {self.resident_bytes / 1e6:.1f} MB its own, "
            f"{self.files} files, journal of {self.journal_bytes / 1e6:.1f} MB, {self.rate:,.0f} requests/s"
        )


@dataclass(slots=True)
class Soak:
    """A gateway, and what has been asked of it."""

    subject: Subject
    journal: Path
    numbers: Iterator[int]
    requests: int = 0

    async def steep(self, minutes: float, every_seconds: float) -> Sequence[Moment]:
        """Load it, and look at it every so often; prints what it sees. Raises WrongAnswerError."""
        moments: list[Moment] = []
        began = perf_counter()
        while (now := perf_counter() - began) < minutes * 60:
            before = self.requests
            await self._load(every_seconds)
            seconds = perf_counter() - began
            moments.append(self._look(seconds, (self.requests - before) / (seconds - now)))
            print(moments[-1], flush=True)
        return moments

    async def _load(self, seconds: float) -> None:
        until = perf_counter() + seconds
        async with asyncio.TaskGroup() as loads:
            for load in (WholeAnswers(_CLIENTS, seconds), _STREAMS, _HANGUPS):
                loads.create_task(self._repeat(load, until))

    async def _repeat(self, load: Load, until: float) -> None:
        while perf_counter() < until:
            seen: Seen = await load.run(self.subject.port, self.numbers)
            self.requests += seen.requests

    def _look(self, seconds: float, rate: float) -> Moment:
        worker = self.subject.worker
        held, files = memory(worker), worker.num_fds() if worker else 0
        journal = sum(path.stat().st_size for path in self.journal.rglob("*") if path.is_file())
        return Moment(seconds, held.resident_bytes, held.unique_bytes, files, journal, rate)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Load a gateway for long.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=10, help="seconds between two looks at it")
    arguments = parser.parse_args()
    allow_open_files()
    sys.exit(uvloop.run(_soak(arguments.minutes, min(arguments.every, arguments.minutes * 60 / _LOOKS))))


async def _soak(minutes: float, every_seconds: float) -> int:
    with (
        running("benchmarks.upstream") as (_, upstream_port),
        tempfile.TemporaryDirectory(prefix="llmproxy-soak-") as place,
        installation(Path(place), upstream_port) as installed,
    ):
        installed.edit({"plugins: []": everything(), "workspaces:\n": _WORKSPACES})
        with installed.serving() as gateway:
            pin_apart([gateway])
            subject = Subject(ON, gateway.port, gateway.worker, gateway, WORKSPACE)
            return await _verdict(Soak(subject, installed.journal, itertools.count(1)), minutes, every_seconds)


async def _verdict(soak: Soak, minutes: float, every_seconds: float) -> int:
    since = datetime.now(UTC)
    try:
        print(f"\n{slopes(await soak.steep(minutes, every_seconds))}\n", flush=True)
        await soak.subject.settle(soak.requests, since)
    except (ExceptionGroup, RuntimeError) as mistake:
        print(f"Failed after {soak.requests:,} requests: {getattr(mistake, 'exceptions', mistake)}")
        return 1
    print(f"{soak.requests:,} requests were answered as they should be, and are in the ledger.")
    return 0


def slopes(moments: Sequence[Moment]) -> str:
    """What each figure was at first, in the end, and by how much it rose in an hour, as the line through all has it."""
    figures: dict[str, tuple[Callable[[Moment], float], int]] = {
        "resident, MB": (lambda moment: moment.resident_bytes / 1e6, 1),
        "of it its own, MB": (lambda moment: moment.unique_bytes / 1e6, 1),
        "open files": (lambda moment: moment.files, 0),
        "journal, MB": (lambda moment: moment.journal_bytes / 1e6, 1),
        "requests/s": (lambda moment: moment.rate, 0),
    }
    hours = [moment.seconds / _SECONDS_PER_HOUR for moment in moments]
    rows = []
    for title, (measure, decimals) in figures.items():
        values = [measure(moment) for moment in moments]
        halves = [linear_regression(hours[half], values[half]).slope for half in _halves(len(moments))]
        shown = (values[0], values[-1], max(values), *halves)
        rows.append([title, *(f"{value:,.{decimals}f}" for value in shown)])
    return markdown(["", "first", "last", "most", "slope an hour", "of the second half"], rows)


def _halves(count: int) -> tuple[slice, slice]:
    """All, and the second half: what fills up at the beginning is not what grows."""
    return slice(0, count), slice(count // 2, count)


if __name__ == "__main__":
    main()
