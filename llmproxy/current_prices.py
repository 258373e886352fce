"""Prices for plugins, as the configuration has them that serves at the time."""

from __future__ import annotations

from collections.abc import Callable

from llmproxy.accounting import Accounting
from llmproxy.exchange import Target
from llmproxy.usage import Cost, Usage


class CurrentPrices:
    """What things cost by the configuration that serves.

    Args:
        accounting: Gives that configuration's accounting.
    """

    def __init__(self, accounting: Callable[[], Accounting]) -> None:
        self._accounting = accounting

    def cost(self, target: Target, usage: Usage) -> Cost:
        """What some usage costs at a target; unpriced when no price is known."""
        return self._accounting().cost(target, usage)
