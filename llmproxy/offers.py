"""What providers' models cost and can do: from a provider's own names to those of the price data."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple

from llmproxy.exchange import Target
from llmproxy.model_facts import ModelFacts
from llmproxy.prices import Prices
from llmproxy.pricing import PriceBook
from llmproxy.providers import Provider

_REMEMBERED_MODELS: Final = 4096
_MINUTE: Final = timedelta(minutes=1)


class _Latest(NamedTuple):
    """What was last found, and when it holds."""

    since: datetime
    until: datetime
    prices: Prices | None


class Possible(NamedTuple):
    """What may be charged, in whichever of some ways an answer is served.

    Attributes:
        prices: Those that differ.
        is_known: Whether there is a price for each of the ways.
    """

    since: datetime
    until: datetime
    prices: Sequence[Prices]
    is_known: bool


class Offers:
    """Prices and facts by target. Facts do not change, and are looked up once for each model."""

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices
        self._latest: dict[tuple[str | None, ...], _Latest] = {}
        self._possible: dict[tuple[object, ...], Possible] = {}
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
        # The price book goes by the minute: within one, the questions to it and to the provider are spared.
        asked = (target.provider, target.model, target.credential, service_tier, region)
        known = self._latest.get(asked)
        if known is not None and known.since <= at < known.until:
            return known.prices
        if len(self._latest) >= _REMEMBERED_MODELS:
            self._latest.clear()
        minute = at.replace(second=0, microsecond=0)
        prices = self._found(provider, target, at, service_tier, region)
        self._latest[asked] = _Latest(minute, minute + _MINUTE, prices)
        return prices

    def possible(self, provider: Provider, target: Target, at: datetime, tiers: Sequence[str | None]) -> Possible:
        """What a provider's target costs at a time, the usual price first, in whichever region it is served.

        Args:
            tiers: The service tiers that the answer may come in.
        """
        asked = (target.provider, target.model, target.credential, tiers)
        known = self._possible.get(asked)
        if known is not None and known.since <= at < known.until:
            return known
        if len(self._possible) >= _REMEMBERED_MODELS:
            self._possible.clear()
        ways = product(tiers, (None, *provider.priced_regions))
        found = [self.prices(provider, target, at, tier, region) for tier, region in ways]
        # Where a tier has no price of its own, the usual one stands in for it: what comes to the same is asked once.
        distinct = {each.terms: each for each in reversed(found) if each is not None}
        prices = tuple(reversed(distinct.values()))
        minute = at.replace(second=0, microsecond=0)
        known = self._possible[asked] = Possible(minute, minute + _MINUTE, prices, None not in found)
        return known

    def _found(
        self, provider: Provider, target: Target, at: datetime, service_tier: str | None, region: str | None
    ) -> Prices | None:
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
