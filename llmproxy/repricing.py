"""Repricing: what recorded requests should have cost by the prices known now, and adjustments to the ledger for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Final

from llmproxy.audit_log import ADJUSTED
from llmproxy.audit_notary import ActionLog
from llmproxy.ledger import Adjustment, Pricer, Repriced, day_bounds, difference, exact_sum, pages, reprice, requests
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Connection, Database, Row
from llmproxy.usage import USAGE_CLASSES

_COLUMNS: Final = (
    *("request_id", "occurred_at", "entry", "kind", "provider_name", "response_model", *USAGE_CLASSES),
    *("usage_provenance", "service_tier", "service_region", "amount_usd", "price_source"),
)
_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class ModelDifference:
    """What repricing made of one model.

    Attributes:
        entries: How many entries were looked at, and have a price now.
        unpriced_entries: How many have none, and stay as they are.
        adjustments: How many rows were added, or would be.
    """

    entries: int = 0
    unpriced_entries: int = 0
    adjustments: int = 0
    recorded_usd: Decimal = _ZERO
    repriced_usd: Decimal = _ZERO

    def add(self, repriced: Repriced) -> None:
        """Count what was found of one request."""
        if repriced.repriced_usd is None:
            self.unpriced_entries += repriced.entries
            return
        self.entries += repriced.entries
        self.adjustments += repriced.adjustment is not None
        self.recorded_usd = exact_sum([self.recorded_usd, repriced.recorded_usd or _ZERO])
        self.repriced_usd = exact_sum([self.repriced_usd, repriced.repriced_usd])

    @property
    def difference_usd(self) -> Decimal:
        """How much more it costs now; negative for less."""
        return difference(self.repriced_usd, self.recorded_usd)


@dataclass(slots=True)
class RepricingReport:
    """What repricing made of a span.

    Attributes:
        recounted: How many times a budget has to be counted anew.
    """

    models: dict[str, ModelDifference] = field(default_factory=dict)
    recounted: int = 0

    def add(self, repriced: Repriced) -> None:
        """Count what was found of one request."""
        self.models.setdefault(repriced.model, ModelDifference()).add(repriced)

    @property
    def total(self) -> ModelDifference:
        """All models together."""
        found = self.models.values()
        return ModelDifference(
            entries=sum(each.entries for each in found),
            unpriced_entries=sum(each.unpriced_entries for each in found),
            adjustments=sum(each.adjustments for each in found),
            recorded_usd=exact_sum(each.recorded_usd for each in found),
            repriced_usd=exact_sum(each.repriced_usd for each in found),
        )

    def document(self) -> Document:
        """The report as JSON has it, the largest difference first."""
        by_size = sorted(self.models.items(), key=lambda item: (-abs(item[1].difference_usd), item[0]))
        return {"data": [{"model": name, **_row(each)} for name, each in by_size], "total": _row(self.total)}


def _row(each: ModelDifference) -> Document:
    return {
        "entries": each.entries,
        "unpriced_entries": each.unpriced_entries,
        "recorded_usd": f"{each.recorded_usd:f}",
        "repriced_usd": f"{each.repriced_usd:f}",
        "difference_usd": f"{each.difference_usd:f}",
        "adjustments": each.adjustments,
    }


class Repricing:
    """Compares the ledger with prices, a day at a time, and adds what differs.

    Args:
        price: The prices that hold.
        is_wanted: Whether `provider/model` is to be repriced.
        actions: Hears of each day that was adjusted.
    """

    def __init__(
        self,
        database: Database,
        queries: Queries,
        price: Pricer,
        is_wanted: Callable[[str], bool],
        actions: ActionLog,
    ) -> None:
        self._database = database
        self._queries = queries
        self._price = price
        self._is_wanted = is_wanted
        self._actions = actions
        columns = ", ".join((*_COLUMNS, queries["started_at"]))
        self._page: Final = queries["ledger_page"].format(columns=columns)

    async def run(self, since: datetime, until: datetime, *, dry_run: bool = False) -> RepricingReport:
        """Reprice what occurred in a span; each day is adjusted as a whole or not at all. Raises StorageError.

        A day that is repriced again gets nothing more, so that a run that broke off can be started anew.
        """
        report = RepricingReport()
        for row in await self._database.fetch(self._queries["ledger_days"], since, until):
            first, before = day_bounds(row["day"], since, until)
            if first < before:
                await self._reprice_day(row["day"], first, before, report, dry_run=dry_run)
        return report

    async def _reprice_day(
        self, day: date, first: datetime, before: datetime, report: RepricingReport, *, dry_run: bool
    ) -> None:
        adjustments = 0
        async with self._database.transaction() as connection:
            if not dry_run:
                # One at a time: what another has adjusted is read only once it is committed.
                await connection.fetch(self._queries["lock_adjusting"])
            async for page in pages(connection, self._page, first, before):
                found = self._repriced(page, report)
                adjustments += len(found)
                if found and not dry_run:
                    await self._insert(connection, first, before, found)
            if adjustments and not dry_run:
                report.recounted += await self._tell(connection, day, first, before)

    def _repriced(self, page: Sequence[Row], report: RepricingReport) -> Sequence[Adjustment]:
        found = []
        for entries in requests(page):
            for repriced in reprice(entries, self._price, self._is_wanted):
                report.add(repriced)
                if repriced.adjustment is not None:
                    found.append(repriced.adjustment)
        return found

    async def _insert(
        self, connection: Connection, first: datetime, before: datetime, found: Sequence[Adjustment]
    ) -> None:
        columns = (list(column) for column in zip(*found, strict=True))
        await connection.execute(self._queries["insert_adjustments"], first, before, *columns)

    async def _tell(self, connection: Connection, day: date, first: datetime, before: datetime) -> int:
        """Have budgets counted anew, and note in the signed log all adjustments that the day has by now."""
        # Last, as what settles requests has to wait from here on; in its order, so that neither waits for the other.
        counted = await connection.fetch_row(self._queries["recount_quotas"], first, before)
        held = await connection.fetch_row(self._queries["adjustments_of_day"], *day_bounds(day, None, None))
        facts = {**held, "amount_usd": f"{held['amount_usd']:f}"} if held else {}
        await self._actions.record(connection, ADJUSTED, day.isoformat(), **facts)
        return int(counted["llmproxy_recount_quotas"]) if counted else 0
