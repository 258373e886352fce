"""What is told of each model: in `/v1/models` and by `llmproxy models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Final

from llmproxy.exchange import Document, Target
from llmproxy.model_facts import FactsTable, load_facts
from llmproxy.pricing import PriceBook
from llmproxy.providers import Provider
from llmproxy.services import Clock

_REMEMBERED_MODELS: Final = 4096


class Listing:
    """Facts and prices by target. Facts are looked up once for each model, when it is first listed."""

    def __init__(self, providers: Mapping[str, Provider], prices: PriceBook, clock: Clock) -> None:
        self._providers = providers
        self._prices = prices
        self._clock = clock
        self._facts = lru_cache(maxsize=_REMEMBERED_MODELS)(self._facts_uncached)

    def describe(self, targets: Sequence[Target]) -> Document:
        """Where a name leads, and what holds for all that may serve it; what is not known is not there."""
        first, *others = [self._of(target) for target in targets]
        common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
        return {"targets": [target.name for target in targets], **common}

    def _of(self, target: Target) -> Document:
        region = {"region": target.region} if target.region else {}
        return {**region, **self._facts(target.provider, target.model), **self._price(target)}

    def _facts_uncached(self, name: str, model: str) -> Document:
        provider = self._providers[name]
        vendor, vendor_model = provider.price_provider, provider.price_model(model)
        own = provider.model_facts(model).or_else(self._table.facts(vendor_model, vendor))
        return own.or_else(self._prices.facts(vendor_model, vendor)).known()

    def _price(self, target: Target) -> Document:
        provider = self._providers[target.provider]
        now, price_model = self._clock.now(), provider.price_model(target.model)
        prices = self._prices.prices(target, provider.price_provider, now, price_model=price_model)
        if prices is None:
            return {}
        told = {
            "input_usd_per_mtok": _plain(prices.input_usd_per_mtok),
            "output_usd_per_mtok": _plain(prices.output_usd_per_mtok),
        }
        return {**{name: value for name, value in told.items() if value is not None}, "price_source": prices.source}

    @cached_property
    def _table(self) -> FactsTable:
        return load_facts()


def _plain(amount: Decimal | None) -> str | None:
    """An amount without an exponent or zeros that mean nothing."""
    return None if amount is None else f"{amount.normalize():f}"
