"""Attempts that run against each other: the first answer wins, the others are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from llmproxy.errors import UpstreamError
from llmproxy.exchange import Answer, Attempt


class Race:
    """Runs attempts at the same time.

    Attributes:
        winner: The attempt that answered first; None as long as none has.
    """

    def __init__(self) -> None:
        self.winner: Attempt | None = None
        self._running: dict[asyncio.Task[Answer], Attempt] = {}

    # A coroutine's send and yield types say nothing here, so they may be anything.
    def enter(self, attempt: Attempt, answering: Coroutine[Any, Any, Answer]) -> None:
        """Have an attempt run from now on."""
        self._running[asyncio.get_running_loop().create_task(answering)] = attempt

    async def is_decided_within(self, pause: Coroutine[Any, Any, None]) -> bool:
        """Whether any attempt has ended, well or badly, by the end of a pause."""
        timer = asyncio.get_running_loop().create_task(pause)
        try:
            await asyncio.wait({timer, *self._running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        return any(task.done() for task in self._running)

    async def result(self) -> Answer:
        """The first answer. Raises the last error when every attempt has failed, or what refuses an answer."""
        while True:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                attempt = self._running.pop(task)
                # Whoever refuses what was answered refuses the request; one never sent leaves it to the other.
                is_final = attempt.is_sent and not isinstance(task.exception(), UpstreamError)
                if is_final or task.exception() is None or not self._running:
                    self.winner = attempt
                    return task.result()

    async def stop(self) -> None:
        """Give up whatever still runs, answers that came too late included."""
        for task in self._running:
            task.cancel()
        for late in await asyncio.gather(*self._running, return_exceptions=True):
            if isinstance(late, Answer) and late.stream is not None:
                late.stream.close()
