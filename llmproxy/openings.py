"""Openings: what the ledger holds of an allowance that is new is counted before anything is used of it.

Apart from what else is asked of Postgres, for it may take long, and nobody else is to wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from llmproxy.db import REJECTED
from llmproxy.errors import StorageError
from llmproxy.lease import AWAY_SECONDS, Lease, Want, described
from llmproxy.segments import encode_json
from llmproxy.services import Clock, Database, Log, Tasks

# How long a request waits until what the ledger holds of a new allowance is counted.
OPENED_SECONDS: Final = 2.0
# What takes too long to count, or cannot be counted, is not tried again before.
OPENED_AGAIN_SECONDS: Final = 10.0


class Openings:
    """The openings of one worker.

    Args:
        query: Counts, for one allowance.
        on_end: Told of each lease that was opened, or could not be.
    """

    def __init__(
        self, database: Database, query: str, clock: Clock, log: Log, tasks: Tasks, *, on_end: Callable[[Lease], None]
    ) -> None:
        self._database = database
        self._query = query
        self._clock = clock
        self._log = log
        self._tasks = tasks
        self._on_end = on_end
        # One at a time, so that there are connections left for everything else.
        self._one_at_a_time = asyncio.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Begin no more of them."""
        self._is_closed = True

    def begin(self, lease: Lease) -> None:
        """Have it counted what the ledger holds, unless that was in vain a moment ago."""
        opening, lease.room = lease.opening, None
        opening.is_done = False
        if opening.running is None and not self._is_closed and self._clock.monotonic() >= opening.again_at:
            opening.running = asyncio.get_running_loop().create_future()
            self._tasks.start("quota opening", self._open(lease, opening.running))

    async def wait(self, leases: Sequence[Lease]) -> None:
        """Return when they may be asked for again. Raises StorageError when they cannot be opened now."""
        running = [lease.opening.running for lease in leases if lease.opening.running is not None]
        if running:
            await asyncio.wait(running, timeout=OPENED_SECONDS)
        now = self._clock.monotonic()
        are_waiting = any(lease.opening.running is None and now < lease.opening.again_at for lease in leases)
        if are_waiting or not all(opening.done() and opening.result() for opening in running):
            raise StorageError(
                "What the ledger holds of a budget is still being counted, as it is once for each; try again later.",
                retry_after_seconds=OPENED_SECONDS,
            )

    async def _open(self, lease: Lease, running: asyncio.Future[bool]) -> None:
        is_done, began = False, self._clock.monotonic()
        try:
            async with self._one_at_a_time:
                began = self._clock.monotonic()
                await self._database.execute(self._query, encode_json(described(0, Want(lease), began)).decode())
            is_done = True
        except StorageError as error:
            now = self._clock.monotonic()
            is_lasting = error.error_code == REJECTED or now - began > OPENED_SECONDS
            lease.opening.again_at = now + (OPENED_AGAIN_SECONDS if is_lasting else AWAY_SECONDS)
            self._log.warning("quota_not_opened", allowance=lease.allowance.name, error=error.message)
        finally:
            lease.opening.running = None
            running.set_result(is_done)
        self._on_end(lease)
