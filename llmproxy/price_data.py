"""The price data of `genai-prices`: the one module that knows its types.

Importing this takes most of a second and 75 MB, so `PriceBook` does it only when there is something to look up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final

import genai_prices
from genai_prices.data_snapshot import find_provider_by_id, get_snapshot
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    TieredPrices,
)

from llmproxy.model_facts import ModelFacts
from llmproxy.prices import Prices, Rates, free_of_charge, rates_from, unit_rates_from

_SOURCE: Final = f"genai-prices {genai_prices.__version__}"
_REMEMBERED_MODELS: Final = 4096
# For each class of tokens, the data's rates to look for, best first: the library charges the same parents.
_LOOK_FOR: Final[Mapping[str, Sequence[str]]] = {
    "uncached_input_tokens": ("input_mtok",),
    "cache_read_input_tokens": ("cache_read_mtok", "input_mtok"),
    "cache_write_5m_input_tokens": ("cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
    "cache_write_1h_input_tokens": ("cache_write_1h_mtok", "cache_write_mtok", "input_mtok"),
    "audio_input_tokens": ("input_audio_mtok", "input_mtok"),
    "cache_read_audio_input_tokens": ("cache_audio_read_mtok", "cache_read_mtok", "input_audio_mtok", "input_mtok"),
    "image_input_tokens": ("input_image_mtok", "input_mtok"),
    "text_output_tokens": ("output_mtok",),
    "reasoning_output_tokens": ("output_reasoning_mtok", "output_mtok"),
    "audio_output_tokens": ("output_audio_mtok", "output_mtok"),
    "image_output_tokens": ("output_image_mtok", "output_mtok"),
}
_LOOK_FOR_UNITS: Final[Mapping[str, Sequence[str]]] = {
    "web_searches": ("web_searches_kcount",),
    "images": (),
    "audio_seconds": ("input_audio_hours", "audio_hours"),
    "characters": ("input_mchars",),
}
_AUDIO_CLASSES: Final = ("audio_input_tokens", "cache_read_audio_input_tokens", "audio_output_tokens")
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
        """What a model costs at a time and in a service tier; None when that is not known, or by what is not counted.

        A tier that the data does not list costs the usual price, which is then not exact.
        """
        found = self._find(model, price_provider)
        if found is None:
            return None
        provider, info = found
        usual = _prices(info, info.get_prices(at), _since(info, at))
        if service_tier is None or usual is None:
            return usual
        variants = [each for each in _own_variants(provider, info) if _is_of(each, service_tier, at)]
        if not variants:
            return replace(usual, source=f"{usual.source}, not of {service_tier}", is_exact=False)
        served = _prices(info, info.get_prices(at, variants[0].when), _start(variants[0].constraint))
        return replace(served, source=f"{served.source}, {service_tier}") if served else None

    def service_tiers(self, model: str, price_provider: str, at: datetime) -> Sequence[str]:
        """The service tiers in which a model has a price of its own."""
        found = self._find(model, price_provider)
        variants = [each for each in _own_variants(*found) if vars(each.prices)] if found else []
        return tuple(dict.fromkeys(tier for each in variants for tier in each.when.values() if _is_of(each, tier, at)))

    def _find_uncached(self, model: str, price_provider: str) -> tuple[Provider, ModelInfo] | None:
        provider = find_provider_by_id(self._providers, price_provider)
        if provider is None:
            return None
        # Most names are an id, which fits its own model alone: that spares a search through all of them.
        info = self._by_id.get((provider.id, model.lower()))
        if info is None or not info.is_match(model):
            info = provider.find_model(model, all_providers=self._providers)
        return (provider, info) if info else None


def _own_variants(provider: Provider, info: ModelInfo) -> Iterator[PriceVariant]:
    """As in the library: a vendor that resells another's models does not have its service tiers."""
    if any(info is own for own in provider.models):
        yield from info.price_variants or ()


def _is_of(variant: PriceVariant, service_tier: str, at: datetime) -> bool:
    """Whether a variant is what a service tier costs: the data's word for the same differs from vendor to vendor."""
    if variant.constraint is not None and not variant.constraint.active(at):
        return False
    return any(variant.when == {word: service_tier} for word in ("service_tier", "processing", "speed"))


def _since(info: ModelInfo, at: datetime) -> date | None:
    """The day from which the usual price holds; None where it is none that begins on a day."""
    if isinstance(info.prices, ModelPrice):
        return None
    return next((_start(each.constraint) for each in reversed(info.prices) if _is_active(each, at)), None)


def _is_active(price: ConditionalPrice, at: datetime) -> bool:
    return price.constraint is None or price.constraint.active(at)


def _start(constraint: object) -> date | None:
    return constraint.start_date if isinstance(constraint, StartDateConstraint) else None


def _prices(info: ModelInfo, price: ModelPrice, since: date | None) -> Prices | None:
    listed: _Listed = {key: value for key, value in vars(price).items() if value is not None}
    # No rate at all usually means that nobody knows, except where the model's own name says otherwise.
    if not listed and info.id.endswith(":free"):
        return free_of_charge(_SOURCE)
    starts = {tier.start for value in listed.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    usual = {key: _rate_at(value, 0) for key, value in listed.items()}
    look_for = _look_for(info, listed)
    prices = Prices(
        rates=_rates_at(look_for, listed, 0),
        source=_SOURCE,
        steps=tuple((start, _rates_at(look_for, listed, start + 1)) for start in sorted(starts)),
        unit_rates=unit_rates_from(_LOOK_FOR_UNITS, usual),
        request_usd=usual.get("requests_kcount", Decimal(0)) / 1000,
        since=since,
    )
    return prices if prices.covers_anything else None


def _look_for(info: ModelInfo, listed: _Listed) -> Mapping[str, Sequence[str]]:
    """Where to look for rates. The audio of a model made for it costs more than text: not listed is unknown."""
    if "audio" not in info.id or "input_audio_mtok" in listed:
        return _LOOK_FOR
    return {**_LOOK_FOR, **dict.fromkeys(_AUDIO_CLASSES, ())}


def _rates_at(look_for: Mapping[str, Sequence[str]], listed: _Listed, input_tokens: int) -> Rates:
    return rates_from(look_for, {key: _rate_at(value, input_tokens) for key, value in listed.items()})


def _rate_at(value: Decimal | TieredPrices, input_tokens: int) -> Decimal:
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return reached[-1] if reached else value.base
