"""Background tasks: the one place that starts them, keeps them alive, and hears what they raise."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from llmproxy.services import Log


class BackgroundTasks:
    """Tasks that belong to a worker and end with it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    # A coroutine's send and yield types say nothing here, so they may be anything.
    def start(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `coroutine` in the background; an exception is logged under `name`."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        # The loop itself holds tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_all(self) -> None:
        """End every task and wait until they have."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._log.error("background_task_failed", task=task.get_name(), error=repr(error), exc_info=error)
