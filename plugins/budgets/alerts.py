"""What is told of budgets that fill up: once for each threshold, by whichever worker is the first to see it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from llmproxy.api import Services, StorageError, post_alert
from llmproxy_plugins.budgets.limits import Applied

CHECK_SECONDS: Final = 5.0
_REMEMBER: Final = """
INSERT INTO budgets_alerts (allowance, bucket, threshold, cap, settled) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING RETURNING threshold
"""
_ZERO: Final = Decimal(0)


class Watch:
    """Looks every few seconds at what is settled of the budgets that requests have met, and that somebody watches."""

    def __init__(self, services: Services, webhook: str | None) -> None:
        self._services = services
        self._webhook = webhook
        self._met: dict[tuple[str, datetime], Applied] = {}
        self._settled: Mapping[tuple[str, datetime], Decimal] = {}
        self._told: set[tuple[str, datetime, Decimal]] = set()

    def meet(self, applied: Applied) -> None:
        """Note that a request was held to a budget that is watched."""
        self._met[applied.allowance.name, applied.allowance.bucket] = applied

    def used_share(self, applied: Applied) -> Decimal:
        """How much of a budget was used when it was last looked at; 1 is all."""
        return self._settled.get((applied.allowance.name, applied.allowance.bucket), _ZERO) / applied.cap

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self._services.clock.sleep(CHECK_SECONDS)
            try:
                await self.look()
            except StorageError as error:
                self._services.log.warning("budgets_not_checked", error=error.message)

    async def look(self) -> None:
        """Look once, and tell what is new. Raises StorageError."""
        met, self._met = self._met, {}
        if not met:
            return
        found = await self._services.quotas.settled(sorted({name for name, _ in met}))
        self._settled = {**self._settled, **found} if len(self._settled) < 10_000 else found
        for key, applied in met.items():
            used = found.get(key, _ZERO)
            for threshold in applied.budget.limit.alert_at:
                if used >= threshold * applied.cap and (*key, threshold) not in self._told:
                    await self._tell(applied, threshold, used)

    async def _tell(self, applied: Applied, threshold: Decimal, used: Decimal) -> None:
        name, bucket = applied.allowance.name, applied.allowance.bucket
        first = await self._services.database.fetch_row(_REMEMBER, name, bucket, threshold, applied.cap, used)
        self._told.add((name, bucket, threshold))
        if first is None:
            return
        # What a webhook takes is JSON of any shape.
        alert: dict[str, Any] = {
            "allowance": name,
            "subject": applied.budget.subject,
            "threshold": f"{threshold:f}",
            "cap": f"{applied.cap:f}",
            "used": f"{used.normalize():f}",
            "unit": applied.budget.limit.unit,
            "window": applied.budget.limit.window,
            "since": bucket.isoformat(),
        }
        self._services.log.warning("budget_alert", **alert)
        if self._webhook is not None:
            posting = post_alert(self._services, "budget_alert_not_delivered", self._webhook, alert)
            self._services.tasks.start("budget alert", posting)
