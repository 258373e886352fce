"""Starting: how long until the first answer, what an idle process holds, and what each live stream adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from benchmarks.load import Streams, WholeAnswers
from benchmarks.processes import Memory, memory
from benchmarks.subjects import Subject

STREAMS: Final = 500
# Long enough for all of them to be live at once.
_EVENTS: Final = 8
_GAP_MS: Final = 250
_ONE_ANSWER: Final = WholeAnswers(clients=1, seconds=0)


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        seconds: From starting the process to the first answer.
        idle: After the first answer.
        live: With all streams open.
    """

    seconds: float
    idle: Memory
    live: Memory


async def start(starting: AbstractContextManager[Subject], numbers: Iterator[int]) -> Start:
    """Start a subject, measure it, and stop it again."""
    began = perf_counter()
    with starting as subject:
        await _ONE_ANSWER.run(subject.port, numbers)
        seconds = perf_counter() - began
        idle = memory(subject.worker)
        return Start(seconds, idle, await _with_streams(subject, numbers))


async def _with_streams(subject: Subject, numbers: Iterator[int]) -> Memory:
    held: list[Memory] = []
    streams = Streams(STREAMS, _EVENTS, _GAP_MS, when_live=lambda: held.append(memory(subject.worker)))
    await streams.run(subject.port, numbers)
    return held[0]
