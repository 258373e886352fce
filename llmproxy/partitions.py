"""Day partitions: there before a row needs them, gone when their days are no longer kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import date, timedelta
from typing import Final

from llmproxy.audit_log import Kind
from llmproxy.audit_notary import Notary
from llmproxy.body_retention import BodyRetention, WorkspaceDays
from llmproxy.config import AuditConfig
from llmproxy.errors import StorageError
from llmproxy.services import Clock, Database, Log

DAYS_BACK: Final = 1
DAYS_AHEAD: Final = 7
MAINTENANCE_SECONDS: Final = 3600


class Partitions:
    """The partitions of the tables that are split by UTC day.

    What the ledger holds is never dropped here: budgets and invoices outlive the audit.

    Args:
        notary: Is told before rows go that the audit chain stands for.
        body_days: How long the workspaces of the configuration want their bodies kept.
    """

    def __init__(
        self,
        database: Database,
        queries: Mapping[str, str],
        config: AuditConfig,
        clock: Clock,
        log: Log,
        *,
        notary: Notary | None = None,
        body_days: Callable[[], WorkspaceDays] = dict,
    ) -> None:
        self._database = database
        self._create = queries["create_partitions"]
        self._drop = queries["drop_partitions"]
        self._has_older = queries["has_older_partitions"]
        self._retention_days = config.retention_days
        self._notary = notary
        self._bodies = BodyRetention(database, queries, config, body_days)
        self._clock = clock
        self._log = log
        self._present: set[date] = set()

    async def run(self) -> None:
        """Maintain for ever, once an hour."""
        while True:
            await self.try_to_maintain()
            await self._clock.sleep(MAINTENANCE_SECONDS)

    async def try_to_maintain(self) -> None:
        """Maintain; a failure is logged, for what a batch needs is made when it comes."""
        await self._logged(self.maintain())

    async def try_to_prepare(self) -> None:
        """Prepare; a failure is logged likewise."""
        await self._logged(self.prepare())

    async def _logged(self, work: Awaitable[None]) -> None:
        try:
            await work
        except StorageError as error:
            self._log.warning("partitions_not_maintained", error=error.message, cause=repr(error.__cause__))

    async def maintain(self) -> None:
        """Make what is needed soon, drop what is past its retention. Raises StorageError."""
        await self.prepare()
        today = self._clock.now().date()
        before = today - timedelta(days=self._retention_days)
        await self._announce_drop(before)
        for table in ("requests", "attempts"):
            await self._database.fetch(self._drop, table, before)
        await self._bodies.expire(today)

    async def prepare(self) -> None:
        """Make yesterday's to next week's partitions. Raises StorageError."""
        today = self._clock.now().date()
        first, last = today - timedelta(days=DAYS_BACK), today + timedelta(days=DAYS_AHEAD)
        await self._database.fetch(self._create, first, last)
        # Only these are remembered: an older one may be dropped at any time, also by another process.
        self._present = {first + timedelta(days=n) for n in range(DAYS_BACK + DAYS_AHEAD + 1)}

    async def _announce_drop(self, before: date) -> None:
        """Say in the signed log that rows are about to go, or else their absence would be taken for tampering."""
        if self._notary is None or await self._database.fetch_row(self._has_older, before) is None:
            return
        async with self._database.transaction() as connection:
            await self._notary.append(connection, Kind.RETENTION, before=before.isoformat())

    async def ensure(self, days: Iterable[date]) -> None:
        """Make the partitions of the UTC days of a batch, if they may be missing. Raises StorageError."""
        for day in sorted(set(days) - self._present):
            await self._database.fetch(self._create, day, day)
