"""What providers' models cost and can do: from a provider's own names to those of the price data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

from llmproxy.exchange import Target
from llmproxy.model_facts import ModelFacts
from llmproxy.prices import Prices
from llmproxy.pricing import PriceBook
from llmproxy.providers import Provider

_REMEMBERED_MODELS: Final = 4096


class Offers:
    """Prices and facts by target. Facts do not change, and are looked up once for each model."""

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices
        self.facts = lru_cache(maxsize=_REMEMBERED_MODELS)(self._facts)

    def prices(
        self,
        provider: Provider | None,
        target: Target,
        at: datetime,
        service_tier: str | None = None,
        region: str | None = None,
    ) -> Prices | None:
        """What a provider's target costs at a time; None when that is not known, or the provider is no more.

        Args:
            service_tier: How it is served; None is the usual way.
            region: Where an answer says that it was computed; None is where the provider's endpoint is.
        """
        if provider is None:
            return self._prices.prices(target, None, at, service_tier)
        return self._prices.prices(
            target,
            provider.price_provider,
            at,
            service_tier,
            price_model=provider.price_model(target.model),
            region=region or provider.price_region(),
        )

    def service_tiers(self, provider: Provider, model: str, at: datetime) -> Sequence[str]:
        """The service tiers in which the price data has another price for a provider's model."""
        return self._prices.service_tiers(provider.price_model(model), provider.price_provider, at)

    def _facts(self, provider: Provider, model: str) -> ModelFacts:
        """What is known of a provider's model, by the provider itself first."""
        known = self._prices.facts(provider.price_model(model), provider.price_provider)
        return provider.model_facts(model).or_else(known)
