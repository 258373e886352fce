"""What is told of each model: in `/v1/models` and by `llmproxy models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from llmproxy.exchange import Target
from llmproxy.offers import Offers
from llmproxy.prices import Prices
from llmproxy.pricing import PriceBook
from llmproxy.providers import Provider
from llmproxy.request import Document
from llmproxy.services import Clock


class Listing:
    """Facts and prices by target. Facts are looked up once for each model, when it is first listed."""

    def __init__(self, providers: Mapping[str, Provider], prices: PriceBook, clock: Clock) -> None:
        self._providers = providers
        self._offers = Offers(prices)
        self._clock = clock

    def prices(self, target: Target, service_tier: str | None = None) -> Prices | None:
        """What a target costs now; None when that is not known."""
        provider = self._providers.get(target.provider)
        return self._offers.prices(provider, target, self._clock.now(), service_tier)

    def service_tiers(self, target: Target) -> Sequence[str]:
        """The service tiers in which the price data has another price for a target now."""
        return self._offers.service_tiers(self._providers[target.provider], target.model, self._clock.now())

    def describe(self, targets: Sequence[Target]) -> Document:
        """Where a name leads, and what holds for all that may serve it; what is not known is not there."""
        # The keys of a provider make targets that differ in nothing that is told here.
        first, *others = [self._of(target) for target in {(each.name, each.region): each for each in targets}.values()]
        common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
        return {"targets": list(dict.fromkeys(target.name for target in targets)), **common}

    def _of(self, target: Target) -> Document:
        region = {"region": target.region} if target.region else {}
        facts = self._offers.facts(self._providers[target.provider], target.model)
        return {**region, **facts.known(), **self._price(target)}

    def _price(self, target: Target) -> Document:
        prices = self.prices(target)
        if prices is None:
            return {}
        told = {
            "input_usd_per_mtok": plain(prices.input_usd_per_mtok),
            "output_usd_per_mtok": plain(prices.output_usd_per_mtok),
        }
        return {**{name: value for name, value in told.items() if value is not None}, "price_source": prices.source}


def plain(amount: Decimal | None) -> str | None:
    """An amount without an exponent or zeros that mean nothing."""
    return None if amount is None else f"{amount.normalize():f}"
