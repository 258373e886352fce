"""Which prices hold: the operator's own first, then the price data with what a region adds to it.

Prices are resolved once per model, minute and way of serving to one rate for each class, so that a cost is a handful
of multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from llmproxy.exchange import Target
from llmproxy.model_facts import FactsTable, ModelFacts, load_facts
from llmproxy.premiums import NONE, load_premiums
from llmproxy.price_overrides import Override
from llmproxy.prices import Prices, free_of_charge
from llmproxy.usage import Cost, Usage

if TYPE_CHECKING:
    from llmproxy.config import PriceConfig
    from llmproxy.premiums import Premiums
    from llmproxy.price_data import PriceData

# The `price_provider` of a kind that charges nothing, such as the demo provider.
FREE: Final = "free"

_REMEMBERED_PRICES: Final = 4096


class _Asked(NamedTuple):
    """All that a price depends on."""

    name: str
    model: str
    price_provider: str | None
    at: datetime
    service_tier: str | None
    region: str | None


class PriceBook:
    """Prices of every model: the operator's own first, then the price data.

    The price data is loaded when it is first asked for, which takes about a second: call `known_models` at start
    rather than meet it in a request.

    Args:
        overrides: Price sections; the first that fits a model, a day and a service tier decides.
    """

    def __init__(self, overrides: Sequence[PriceConfig]) -> None:
        self._overrides = tuple(Override(section) for section in overrides)
        self._resolve = lru_cache(maxsize=_REMEMBERED_PRICES)(self._resolve_uncached)

    def prices(
        self,
        target: Target,
        price_provider: str | None,
        at: datetime,
        service_tier: str | None = None,
        *,
        price_model: str | None = None,
        region: str | None = None,
    ) -> Prices | None:
        """What `target` costs at a time (to the minute) and in a service tier; None when that is not known.

        Args:
            price_model: What the price data calls the model; left out, what the target calls it.
            region: Where it is served, when that is not the usual price's region.
        """
        minute = at.replace(second=0, microsecond=0)
        model = price_model or target.model
        return self._resolve(_Asked(target.name, model, price_provider, minute, service_tier, region))

    @staticmethod
    def cost(usage: Usage, prices: Prices | None) -> Cost:
        """What `usage` costs; its amount is None when there is no price for all of it."""
        if prices is None:
            return Cost(None, usage.provenance)
        amount = prices.amount_usd(usage)
        is_guess = not prices.is_exact and usage.provenance == "measured"
        provenance = "estimated" if is_guess else usage.provenance
        return Cost(amount, provenance, None if amount is None else prices.source)

    def service_tiers(self, model: str, price_provider: str | None, at: datetime) -> Sequence[str]:
        """The service tiers in which the price data has another price for a vendor's model."""
        return () if price_provider in (None, FREE) else self._data.service_tiers(model, price_provider, at)

    def known_models(self, price_provider: str | None) -> Sequence[str]:
        """The models the price data lists for a vendor; none for a vendor it does not know."""
        return () if price_provider in (None, FREE) else self._data.models(price_provider)

    def facts(self, model: str, price_provider: str | None) -> ModelFacts:
        """What is known of a vendor's model beside its price: by our own table first, then by the price data."""
        own = self._table.facts(model, price_provider)
        return own if price_provider in (None, FREE) else own.or_else(self._data.facts(model, price_provider))

    @cached_property
    def _data(self) -> PriceData:
        from llmproxy.price_data import PriceData  # noqa: PLC0415 - slow to import, and not everybody needs it

        return PriceData()

    @cached_property
    def _table(self) -> FactsTable:
        return load_facts()

    @cached_property
    def _premiums(self) -> Premiums:
        return load_premiums()

    def _resolve_uncached(self, asked: _Asked) -> Prices | None:
        day = asked.at.date()
        fitting = (each for each in self._overrides if each.fits(asked.name, day, asked.service_tier))
        override = next(fitting, None)
        if override is not None and override.prices is not None:
            return override.prices
        prices = self._listed(asked)
        return prices if override is None else self._multiplied(prices, override.factor)

    def _listed(self, asked: _Asked) -> Prices | None:
        if asked.price_provider is None:
            return None
        if asked.price_provider == FREE:
            return free_of_charge(FREE)
        prices = self._data.prices(asked.model, asked.price_provider, asked.at, asked.service_tier)
        if prices is None:
            return None
        factor = self._premiums.factor(asked.price_provider, asked.model, asked.region)
        return prices if factor == NONE else prices.scaled(factor, f"{prices.source}, {asked.region} x{factor}")

    @staticmethod
    def _multiplied(prices: Prices | None, factor: Decimal) -> Prices | None:
        return None if prices is None else prices.discounted(factor, f"{prices.source}, config x{factor}")
