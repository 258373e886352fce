"""Kept bodies go when the days of their workspace are over: whole UTC days of them, row by row where others stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from llmproxy.config import AuditConfig
from llmproxy.services import Database

# A statement has to end in time, however many bodies a day has.
ROWS_AT_ONCE: Final = 5_000

# Days by workspace, of those that have their own; None stands for `audit.bodies_retention_days`.
WorkspaceDays = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class _Terms:
    """How long bodies are kept, on which day."""

    today: date
    default_days: int
    days: Mapping[str, int]

    @property
    def shortest_days(self) -> int:
        return min([self.default_days, *self.days.values()])

    @property
    def longest_days(self) -> int:
        return max([self.default_days, *self.days.values()])

    def expired(self, day: date) -> tuple[list[str], bool]:
        """Some workspaces, and whether it is theirs that go or those of all others."""
        age_days = (self.today - day).days
        if self.default_days < age_days:
            return [name for name, days in self.days.items() if days >= age_days], False
        return [name for name, days in self.days.items() if days < age_days], True


class BodyRetention:
    """Deletes bodies past their retention. Without its request's row no body is kept, as nobody could say whose it is.

    Args:
        configured: The days of each workspace of the configuration; those made through the admin API win.
    """

    def __init__(
        self,
        database: Database,
        queries: Mapping[str, str],
        config: AuditConfig,
        configured: Callable[[], WorkspaceDays],
    ) -> None:
        self._database = database
        self._queries = queries
        self._rows_days = config.retention_days
        self._default_days = min(config.bodies_retention_days, config.retention_days)
        self._configured = configured
        self._done: _Terms | None = None

    async def expire(self, today: date) -> None:
        """Delete what is past its retention. Raises StorageError."""
        terms = _Terms(today, self._default_days, await self._days())
        oldest = today - timedelta(days=terms.longest_days)
        await self._database.fetch(self._queries["drop_partitions"], "request_bodies", oldest)
        # What is left to go changes once a day, or with the settings.
        if terms == self._done:
            return
        for row in await self._database.fetch(self._queries["days_of_bodies"]):
            if (today - row["day"]).days > terms.shortest_days:
                await self._expire_day(row["day"], terms)
        self._done = terms

    async def _days(self) -> Mapping[str, int]:
        stored = await self._database.fetch(self._queries["body_days_of_workspaces"])
        days = {**self._configured(), **{row["id"]: row["bodies_retention_days"] for row in stored}}
        return {name: min(own, self._rows_days) for name, own in days.items() if own is not None}

    async def _expire_day(self, day: date, terms: _Terms) -> None:
        workspaces, is_theirs = terms.expired(day)
        if is_theirs and not workspaces:
            return
        while True:
            row = await self._database.fetch_row(
                self._queries["expire_bodies"], day, workspaces, is_theirs, ROWS_AT_ONCE
            )
            if row is None or row["bodies"] < ROWS_AT_ONCE:
                return
