"""An event loop in which time is counted, not waited for: what takes an hour is over at once, and in the same order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class _Selector(selectors.SelectSelector):
    """Instead of waiting it says how long it would have."""

    waited_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "Everything waits, and for nothing that time could bring."
        self.waited_seconds += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time moves on only when everybody waits, and then at once to when the first of them wakes."""

    def __init__(self) -> None:
        self._waiting = _Selector()
        super().__init__(self._waiting)

    def time(self) -> float:
        """Seconds waited so far."""
        return self._waiting.waited_seconds


class LoopClock:
    """The loop's own time as the gateway's clock."""

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


# A coroutine's send and yield types say nothing here, so they may be anything.
def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, in its own virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
