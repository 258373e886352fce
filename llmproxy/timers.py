"""The four timers of one attempt: when the wait that is on is overdue, and what is said then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Final, TypeVar

from llmproxy.config import Timeouts
from llmproxy.errors import TimeoutPhase, UpstreamTimeout

T = TypeVar("T")

_SENTENCES: Final[Mapping[TimeoutPhase, str]] = {
    "connect": "The provider could not be connected to within {seconds:g} seconds.",
    "first_byte": "The provider sent nothing for {seconds:g} seconds after the request.",
    "idle": "The provider went silent for {seconds:g} seconds in the middle of its answer.",
    "total": "The answer was not complete after {seconds:g} seconds.",
}


def timed_out(phase: TimeoutPhase, seconds: float | None) -> UpstreamTimeout:
    """The error for a timer that ran out."""
    return UpstreamTimeout(_SENTENCES[phase].format(seconds=seconds or 0), phase=phase)


def within(seconds: float | None, work: Awaitable[T], late: Callable[[float], UpstreamTimeout]) -> Awaitable[T]:
    """What comes of some work, if it does in time; without a limit, whenever it does. Raises what `late` gives."""
    return work if seconds is None else _within(seconds, work, late)


async def _within(seconds: float, work: Awaitable[T], late: Callable[[float], UpstreamTimeout]) -> T:
    timer = asyncio.timeout(None)
    try:
        async with timer:
            _WATCH.add(timer, seconds)
            try:
                return await work
            finally:
                _WATCH.remove(timer)
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise late(seconds) from error


class _Watch:
    """Has timers run out when they are due.

    One call by the event loop stands for all of them: hardly any ever runs out, and a call for each costs half as much
    again as waiting for it.
    """

    def __init__(self) -> None:
        self._due: dict[asyncio.Timeout, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._call: asyncio.TimerHandle | None = None
        self._looks_at = inf

    def add(self, timer: asyncio.Timeout, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # What waited in another one does so no more.
            self._loop, self._call, self._looks_at = loop, None, inf
            self._due.clear()
        due_at = self._due[timer] = loop.time() + seconds
        if due_at < self._looks_at:
            self._look(loop, due_at)

    def remove(self, timer: asyncio.Timeout) -> None:
        self._due.pop(timer, None)

    def _look(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._call is not None:
            self._call.cancel()
        self._call, self._looks_at = loop.call_at(at, self._end_late, loop), at

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call, self._looks_at = None, inf
        now = loop.time()
        for timer in [timer for timer, due_at in self._due.items() if due_at <= now]:
            del self._due[timer]
            timer.reschedule(now)
        if self._due:
            self._look(loop, min(self._due.values()))


_WATCH: Final = _Watch()


class Timers:
    """When the current wait is overdue, and by which timer: first byte, then idle gaps, within the total.

    Args:
        now: The event loop's time when the attempt began.
    """

    __slots__ = ("_now", "_timeouts", "_total_at", "due_at", "phase", "seconds")

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._now = now
        self._total_at = inf if timeouts.total_seconds is None else now + timeouts.total_seconds
        self._wait("first_byte", now, timeouts.first_byte_seconds)

    def connecting(self) -> None:
        """No connection is there yet; wait for one."""
        if self._timeouts.connect_seconds <= self._timeouts.first_byte_seconds:
            self._wait("connect", self._now, self._timeouts.connect_seconds)

    def first_byte(self) -> None:
        """The request can be sent; wait for the answer, for as long as is left since the attempt began."""
        self._wait("first_byte", self._now, self._timeouts.first_byte_seconds)

    def next_gap(self, now: float) -> None:
        """The first byte is there; wait for the next."""
        # Said for every event of a stream, and `_wait` mostly has nothing to change but the time.
        due_at = now + self._timeouts.idle_seconds
        if self.phase == "idle" and due_at <= self._total_at:
            self.due_at = due_at
        else:
            self._wait("idle", now, self._timeouts.idle_seconds)

    def error(self) -> UpstreamTimeout:
        """The error for the wait that is overdue."""
        return timed_out(self.phase, self.seconds)

    def _wait(self, phase: TimeoutPhase, now: float, seconds: float) -> None:
        self.phase: TimeoutPhase = phase
        self.seconds: float | None = seconds
        self.due_at = now + seconds
        if self._total_at < self.due_at:
            self.phase, self.seconds, self.due_at = "total", self._timeouts.total_seconds, self._total_at
