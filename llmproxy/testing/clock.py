"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta
from typing import Final

START: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)

# A woken task may need several turns of the loop to reach its next sleep: one for each task it awaits.
SETTLING_TURNS: Final = 20


class Clock:
    """Time for tests; sleepers wake only in `advance`.

    Counts in whole microseconds, so that ten steps of 0.1 seconds do wake whoever sleeps for one second.
    """

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed_microseconds = 0
        self._sleeps_begun = 0
        self._sleeping: list[tuple[int, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """The wall clock, in the time zone of the start."""
        return self._start + timedelta(microseconds=self._elapsed_microseconds)

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self._elapsed_microseconds / 1_000_000

    @property
    def sleepers(self) -> int:
        """How many are asleep."""
        return sum(not wake.done() for _, _, wake in self._sleeping)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been advanced by `seconds`; zero or less only yields."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due = self._elapsed_microseconds + _microseconds(seconds)
        # The count keeps those due at the same time in the order in which they fell asleep.
        self._sleeps_begun += 1
        heapq.heappush(self._sleeping, (due, self._sleeps_begun, wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Move time on, waking each sleeper at its own time and in order.

        Who sleeps again at once, as a periodic task does, is woken again as often as `seconds` holds. Raises
        ValueError for a step backwards.
        """
        if seconds < 0:
            raise ValueError("A clock cannot be advanced by less than nothing.")
        end = self._elapsed_microseconds + _microseconds(seconds)
        await _settle()
        while self._sleeping and self._sleeping[0][0] <= end:
            due, _, wake = heapq.heappop(self._sleeping)
            if not wake.done():
                self._elapsed_microseconds = due
                wake.set_result(None)
                await _settle()
        self._elapsed_microseconds = end


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


async def _settle() -> None:
    for _ in range(SETTLING_TURNS):
        await asyncio.sleep(0)
