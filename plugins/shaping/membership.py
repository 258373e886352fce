"""How many workers share the accounts, and which of them this one is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from uuid import uuid4

from llmproxy.api import Services, StorageError

HEARTBEAT_SECONDS: Final = 2.0
LIFETIME_SECONDS: Final = 10.0
_CHANNEL: Final = "shaping_workers"

_CLEAN: Final = "DELETE FROM shaping_workers WHERE seen_at < clock_timestamp() - $1::interval"
_LEAVE: Final = "DELETE FROM shaping_workers WHERE worker = $1"
_HERE: Final = """
INSERT INTO shaping_workers (worker, seen_at) VALUES ($1, clock_timestamp())
ON CONFLICT (worker) DO UPDATE SET seen_at = EXCLUDED.seen_at
RETURNING xmax = 0 AS is_new
"""
_WORKERS: Final = "SELECT worker FROM shaping_workers WHERE seen_at >= clock_timestamp() - $1::interval ORDER BY worker"
_TELL: Final = "SELECT pg_notify($1, '')"
_LIFETIME: Final = timedelta(seconds=LIFETIME_SECONDS)


class Membership:
    """This worker among all of them.

    Args:
        on_change: Told how many there are, and this one's rank, whenever that is another.
    """

    def __init__(self, services: Services, on_change: Callable[[int, int], None]) -> None:
        self._services = services
        self._on_change = on_change
        self._worker = uuid4().hex
        self._known: tuple[int, int] = (1, 0)
        self._has_left = False
        # One after the other, so that what was read before does not replace what was read later.
        self._looking = asyncio.Lock()
        self._stop_listening: Callable[[], None] = lambda: None
        self._upkeep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Count oneself in, and the others; without a database, be alone until there is one."""
        await self._try_to_look()
        self._stop_listening = self._services.database.listen(_CHANNEL, lambda _: self._look_soon(), self._look_soon)
        self._upkeep = self._services.tasks.start("shaping workers", self._keep_house())

    async def stop(self) -> None:
        """Leave the others one's share."""
        self._stop_listening()
        if self._upkeep is not None:
            self._upkeep.cancel()
        self._has_left = True
        try:
            # Who is looking counts oneself in.
            async with self._looking:
                await self._services.database.execute(_LEAVE, self._worker)
                await self._services.database.execute(_TELL, _CHANNEL)
        except StorageError as error:
            self._services.log.warning("shaping_worker_not_signed_off", error=error.message)

    async def look(self) -> None:
        """Say that this worker is there, and see who else is. Raises StorageError."""
        async with self._looking:
            if self._has_left:
                return
            row = await self._services.database.fetch_row(_HERE, self._worker)
            if row is not None and row["is_new"]:
                await self._services.database.execute(_CLEAN, _LIFETIME)
                await self._services.database.execute(_TELL, _CHANNEL)
            await self._count()

    async def _count(self) -> None:
        rows = await self._services.database.fetch(_WORKERS, _LIFETIME)
        workers = [row["worker"] for row in rows]
        found = (len(workers), workers.index(self._worker)) if self._worker in workers else (len(workers) + 1, 0)
        if found != self._known:
            self._known = found
            self._on_change(*found)

    async def _keep_house(self) -> None:
        while True:
            await self._services.clock.sleep(HEARTBEAT_SECONDS)
            await self._try_to_look()

    def _look_soon(self) -> None:
        self._services.tasks.start("shaping workers", self._try_to_look())

    async def _try_to_look(self) -> None:
        try:
            await self.look()
        except StorageError as error:
            # As many as there were, until somebody can be asked again.
            self._services.log.warning("shaping_workers_not_counted", error=error.message)
