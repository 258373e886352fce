"""Sums over whole days of the ledger, so that a question about a year need not read every row of it.

They are made from rows of days that are over, and the database itself takes a day's away when a row is added to it, in
the same transaction. So they are right or not there, and whoever finds none reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from llmproxy.errors import StorageError
from llmproxy.services import Clock, Database, Log

MAINTENANCE_SECONDS: Final = 3600
# Rows come late when a worker or the database was away; most have come when a day has been over for so long.
OPEN_SECONDS: Final = 6 * 3600


class LedgerSums:
    """Makes the sums of days that have none."""

    def __init__(self, database: Database, queries: Mapping[str, str], clock: Clock, log: Log) -> None:
        self._database = database
        self._queries = queries
        self._clock = clock
        self._log = log
        parts = {"figures": queries["figures"], "charged": queries["charged"], "model": queries["spend_by_model"]}
        self._sum_up_day = queries["sum_up_day"].format(**parts)

    async def run(self) -> None:
        """Sum up for ever, once an hour."""
        while True:
            await self.sum_up()
            await self._clock.sleep(MAINTENANCE_SECONDS)

    async def sum_up(self) -> None:
        """Sum up every day that has long been over, and has no sums; a failure is logged, and costs time only."""
        before = (self._clock.now() - timedelta(seconds=OPEN_SECONDS)).date()
        with self._reporting():
            for row in await self._database.fetch(self._queries["unsummed_days"], before):
                await self._try_to_sum_up(row["day"])

    async def _try_to_sum_up(self, day: date) -> None:
        start = datetime.combine(day, time(), UTC)
        partition = f"ledger_entries_{day:%Y%m%d}"
        with self._reporting():
            async with self._database.transaction() as connection:
                alone = await connection.fetch_row(self._queries["try_to_sum_up"])
                if not (alone and alone["is_alone"]):
                    return
                await connection.execute(self._queries["hold_ledger_day"].format(partition=partition))
                if await connection.fetch_row(self._queries["summed_day"], day) is None:
                    await connection.execute(self._sum_up_day, start, start + timedelta(days=1))

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self._log.warning("ledger_not_summed_up", error=error.message, cause=repr(error.__cause__))
