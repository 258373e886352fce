"""Shipping: what ended goes from the journal to Postgres, every request exactly once, also those of dead workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import Final

from llmproxy.batch_writer import BatchWriter
from llmproxy.config import JournalConfig
from llmproxy.errors import StorageError
from llmproxy.journal import Journal, Orphan, Replayed
from llmproxy.request import Document
from llmproxy.services import Clock, Log, Tasks

SHIP_SECONDS: Final = 0.05
# Where so many rows come in that time, they are shipped more seldom and more at once: a transaction costs as much as
# many rows.
BUSY_ROWS: Final = 20
BUSY_SHIP_SECONDS: Final = 0.5
REPLAY_SECONDS: Final = 5
# After a pass that failed, so that a fault that stays does not flood the log.
FAILED_PASS_SECONDS: Final = 1


class Recorder:
    """Keeps Postgres up to date with the journal, and takes over the journals of workers that died.

    Args:
        interrupted: Makes the ending of a request of which only the beginning is known.
        replayed: Is told the name of a journal once everything in it is in Postgres. May raise StorageError, and is
            told again then.
    """

    def __init__(
        self,
        journal: Journal,
        writer: BatchWriter,
        config: JournalConfig,
        *,
        clock: Clock,
        log: Log,
        tasks: Tasks,
        interrupted: Callable[[Document], Document],
        replayed: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._config = config
        self._clock = clock
        self._log = log
        self._tasks = tasks
        self._interrupted = interrupted
        self._replayed = replayed
        self._running: list[asyncio.Task[None]] = []
        self._complete_until = clock.monotonic()

    @property
    def pending(self) -> int:
        """How many requests have ended but are not known to be in Postgres."""
        return self._journal.pending

    @property
    def lag_seconds(self) -> float:
        """For how long Postgres has been behind; 0 when everything that ended is there."""
        return self._clock.monotonic() - self._complete_until if self.pending else 0.0

    def startup(self) -> None:
        """Begin to ship, to sync the journal and to look for orphans."""
        self._running = [
            self._tasks.start("audit shipping", self._keep_shipping()),
            self._tasks.start("journal sync", self._repeat("sync", self._sync, self._config.sync_seconds)),
            self._tasks.start("journal replay", self._repeat("replay", self.replay, REPLAY_SECONDS)),
        ]

    async def shutdown(self, deadline_seconds: float) -> None:
        """Stop, and ship what is left as far as that is done in time; the rest stays in the journal.

        The journal stays open; whoever made it closes it after this.
        """
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                await self._guarded("ship", self.ship)
        await self._guarded("sync", self._sync)

    async def ship(self) -> None:
        """Ship what had ended by now. Raises StorageError."""
        started = self._clock.monotonic()
        waiting = self.pending
        while waiting > 0 and (records := self._journal.peek(self._config.batch_rows)):
            await self._writer.write(records)
            self._journal.acknowledge(len(records))
            waiting -= len(records)
        # Ends that the disk does not take yet are pending too, and not to be had.
        if waiting <= 0:
            self._complete_until = started

    async def replay(self) -> None:
        """Record what dead workers left, as far as the database is there for it. Raises StorageError."""
        while orphan := self._journal.claim():
            try:
                await self._record(orphan)
                if not await self._pass_on(orphan.owner):
                    return
                orphan.delete()
            finally:
                orphan.release()

    async def _pass_on(self, owner: str) -> bool:
        """Tell of a journal that is recorded; whether that could be done."""
        if self._replayed is None:
            return True
        try:
            await self._replayed(owner)
        except StorageError as error:
            # The journal stays, and with it what is to be passed on; the rows are left as they are the next time.
            self._log.warning("audit_waits", error=error.message, retry_after_seconds=REPLAY_SECONDS)
            return False
        return True

    async def _record(self, orphan: Orphan) -> None:
        ended = interrupted = 0
        with closing(orphan.batches(self._config.batch_rows)) as batches:
            for batch in batches:
                await self._writer.write([self._ending(replayed) for replayed in batch])
                ended += sum(replayed.is_ended for replayed in batch)
                interrupted += sum(not replayed.is_ended for replayed in batch)
        self._log.info("journal_replayed", ended=ended, interrupted=interrupted, damaged_lines=orphan.damaged_lines)

    def _ending(self, replayed: Replayed) -> Document:
        if replayed.is_ended:
            return replayed.record
        try:
            return self._interrupted(replayed.record)
        except Exception as error:  # noqa: BLE001 - the writer puts this one aside; the others must not wait for it
            self._log.error("audit_record_not_settled", error=repr(error))
            return {"admitted": replayed.record}

    async def _sync(self) -> None:
        self._journal.recover()
        await asyncio.to_thread(self._journal.sync)

    async def _keep_shipping(self) -> None:
        while True:
            rows = self.pending
            succeeded = await self._guarded("ship", self.ship)
            pause_seconds = BUSY_SHIP_SECONDS if rows >= BUSY_ROWS else SHIP_SECONDS
            await self._clock.sleep(pause_seconds if succeeded else FAILED_PASS_SECONDS)

    async def _repeat(self, name: str, action: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
        while True:
            succeeded = await self._guarded(name, action)
            await self._clock.sleep(pause_seconds if succeeded else max(pause_seconds, FAILED_PASS_SECONDS))

    async def _guarded(self, name: str, action: Callable[[], Awaitable[None]]) -> bool:
        try:
            await action()
        except Exception as error:  # noqa: BLE001 - whatever one pass runs into, rows must go on being shipped
            self._log.error("audit_pass_failed", action=name, error=repr(error))
            return False
        return True
