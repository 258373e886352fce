"""The price data of `genai-prices`: the one module that knows its types.

Importing this takes most of a second and 75 MB, so `PriceBook` does it only when there is something to look up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final

import genai_prices
from genai_prices.data_snapshot import find_provider_by_id, get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from llmproxy.model_facts import ModelFacts
from llmproxy.pricing import Prices, Rates, free_of_charge, rates_from

_SOURCE: Final = f"genai-prices {genai_prices.__version__}"
_REMEMBERED_MODELS: Final = 4096
# For each class of Usage, the data's rates to look for, best first: the library charges the same parents.
_LOOK_FOR: Final = (
    ("input_mtok",),
    ("cache_read_mtok", "input_mtok"),
    ("cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
    ("cache_write_1h_mtok", "cache_write_mtok", "input_mtok"),
    ("input_audio_mtok", "input_mtok"),
    ("output_mtok",),
    ("output_reasoning_mtok", "output_mtok"),
    ("output_audio_mtok", "output_mtok"),
)
# What the data lists for a model: a rate, or one that steps up with the size of the input.
_Listed = Mapping[str, Decimal | TieredPrices]


class PriceData:
    """The models and prices of the installed release."""

    def __init__(self) -> None:
        self._providers = get_snapshot().providers
        # The library remembers what it was asked without a limit, and clients choose what is asked.
        self._find = lru_cache(maxsize=_REMEMBERED_MODELS)(self._find_uncached)
        self._by_id = {(vendor.id, each.id.lower()): each for vendor in self._providers for each in vendor.models}

    def models(self, price_provider: str) -> Sequence[str]:
        """The models listed for a vendor; none when the vendor is not known."""
        provider = find_provider_by_id(self._providers, price_provider)
        return tuple(model.id for model in provider.models) if provider else ()

    def facts(self, model: str, price_provider: str) -> ModelFacts:
        """What else the data knows of a model."""
        found = self._find(model, price_provider)
        if found is None:
            return ModelFacts()
        _, info = found
        return ModelFacts(context_window_tokens=info.context_window, is_deprecated=info.deprecated)

    def prices(self, model: str, price_provider: str, at: datetime, service_tier: str | None) -> Prices | None:
        """What a model costs at a time; None when it is not known, or not priced by the token."""
        found = self._find(model, price_provider)
        if found is None:
            return None
        provider, info = found
        # As in the library: a vendor that resells another's models does not have its service tiers.
        has_tiers = service_tier is not None and any(info is own for own in provider.models)
        return _prices(info, info.get_prices(at, {"service_tier": service_tier or ""} if has_tiers else None))

    def _find_uncached(self, model: str, price_provider: str) -> tuple[Provider, ModelInfo] | None:
        provider = find_provider_by_id(self._providers, price_provider)
        if provider is None:
            return None
        # Most names are an id, which fits its own model alone: that spares a search through all of them.
        info = self._by_id.get((provider.id, model.lower()))
        if info is None or not info.is_match(model):
            info = provider.find_model(model, all_providers=self._providers)
        return (provider, info) if info else None


def _prices(info: ModelInfo, price: ModelPrice) -> Prices | None:
    listed: _Listed = {key: value for key, value in vars(price).items() if value is not None}
    # No rate at all usually means that nobody knows, except where the model's own name says otherwise.
    if not listed and info.id.endswith(":free"):
        return free_of_charge(_SOURCE)
    if "input_mtok" not in listed and "output_mtok" not in listed:
        return None
    starts = {tier.start for value in listed.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    return Prices(
        rates=_rates_at(listed, 0),
        source=_SOURCE,
        steps=tuple((start, _rates_at(listed, start + 1)) for start in sorted(starts)),
        request_usd=_rate_at(listed.get("requests_kcount", Decimal(0)), 0) / 1000,
    )


def _rates_at(listed: _Listed, input_tokens: int) -> Rates:
    return rates_from(_LOOK_FOR, {key: _rate_at(value, input_tokens) for key, value in listed.items()})


def _rate_at(value: Decimal | TieredPrices, input_tokens: int) -> Decimal:
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return reached[-1] if reached else value.base
