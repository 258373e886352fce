"""When a limit that is reached has room again."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

from llmproxy.api import Allowance, Services, StorageError
from llmproxy_plugins.rate_limits.windows import Window

# What is known of a limit is believed for so long: who is refused asks again and again.
BELIEVED_SECONDS: Final = 1.0
_REMEMBERED: Final = 10_000
_LEAST_SECONDS: Final = 0.001
_ZERO: Final = Decimal(0)


class Reopening:
    """Finds out when there will be room, which is asked only once there is none."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._used: dict[str, tuple[float, list[tuple[datetime, Decimal]]]] = {}

    async def seconds(self, allowance: Allowance, window: Window, amount: Decimal) -> float:
        """How long until so much fits in; without a database, until nothing that is used by now counts any more."""
        now = self._services.clock.now()
        if allowance.until is not None:
            return max((allowance.until - now).total_seconds(), _LEAST_SECONDS)
        try:
            used = await self._used_of(allowance)
        except StorageError:
            return window.reset_seconds(now)
        excess = sum((settled for _, settled in used), _ZERO) + amount - (allowance.cap or _ZERO)
        length = allowance.bucket - allowance.since + (allowance.step or window.length)
        for bucket, settled in used:
            excess -= settled
            if excess <= 0:
                return max((bucket + length - now).total_seconds(), _LEAST_SECONDS)
        return window.reset_seconds(now)

    async def _used_of(self, allowance: Allowance) -> list[tuple[datetime, Decimal]]:
        """What counts, the oldest first. Raises StorageError."""
        monotonic = self._services.clock.monotonic()
        known = self._used.get(allowance.name)
        if known is None or monotonic - known[0] > BELIEVED_SECONDS:
            found = await self._services.quotas.settled([allowance.name])
            if len(self._used) > _REMEMBERED:
                self._used.clear()
            known = self._used[allowance.name] = (
                monotonic,
                sorted((bucket, settled) for (_, bucket), settled in found.items()),
            )
        return [each for each in known[1] if each[0] >= allowance.since]
