"""The operator's own prices: one section of the configuration, and what it says of a model on a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from llmproxy.prices import Prices, Rates, free_of_charge, rates_from, unit_rates_from

if TYPE_CHECKING:
    from llmproxy.config import PriceConfig, RatesConfig

_SOURCE: Final = "config"
# For each class of tokens, the keys of a price section to look for, best first.
_LOOK_FOR: Final[Mapping[str, Sequence[str]]] = {
    "uncached_input_tokens": ("input_usd_per_mtok",),
    "cache_read_input_tokens": ("cache_read_usd_per_mtok", "input_usd_per_mtok"),
    "cache_write_5m_input_tokens": ("cache_write_5m_usd_per_mtok", "input_usd_per_mtok"),
    "cache_write_1h_input_tokens": (
        *("cache_write_1h_usd_per_mtok", "cache_write_5m_usd_per_mtok", "input_usd_per_mtok"),
    ),
    "audio_input_tokens": ("audio_input_usd_per_mtok", "input_usd_per_mtok"),
    "cache_read_audio_input_tokens": (
        *("cache_read_audio_usd_per_mtok", "cache_read_usd_per_mtok", "audio_input_usd_per_mtok"),
        "input_usd_per_mtok",
    ),
    "image_input_tokens": ("image_input_usd_per_mtok", "input_usd_per_mtok"),
    "text_output_tokens": ("output_usd_per_mtok",),
    "reasoning_output_tokens": ("reasoning_usd_per_mtok", "output_usd_per_mtok"),
    "audio_output_tokens": ("audio_output_usd_per_mtok", "output_usd_per_mtok"),
    "image_output_tokens": ("image_output_usd_per_mtok", "output_usd_per_mtok"),
}
_LOOK_FOR_UNITS: Final[Mapping[str, Sequence[str]]] = {
    "web_searches": ("web_searches_usd_per_thousand",),
    "images": ("image_usd",),
    "audio_seconds": ("audio_usd_per_hour",),
    "characters": ("characters_usd_per_million",),
}


class Override:
    """One section.

    Attributes:
        prices: What it says itself; None when it multiplies the price data's.
        factor: What it multiplies them with.
    """

    def __init__(self, section: PriceConfig) -> None:
        self._match = section.match
        self._first_day = section.first_day or date.min
        self._last_day = section.until or date.max
        self._service_tier = section.service_tier
        self.factor = Decimal(1) if section.factor is None else section.factor
        self.prices = _own_prices(section) if section.factor is None else None

    def fits(self, name: str, day: date, service_tier: str | None) -> bool:
        """Whether it holds for `provider/model` on a day (UTC), in a service tier."""
        return (
            self._first_day <= day < self._last_day
            and self._service_tier in (None, service_tier)
            and fnmatchcase(name, self._match)
        )


def _own_prices(section: PriceConfig) -> Prices:
    if section.free:
        return free_of_charge(_SOURCE)
    usual = _usd(section)
    steps = sorted((step.above_input_tokens, {**usual, **_usd(step)}) for step in section.long_context)
    return Prices(
        rates=_rates(usual),
        source=_SOURCE,
        steps=tuple((start, _rates(listed)) for start, listed in steps),
        unit_rates=unit_rates_from(_LOOK_FOR_UNITS, usual),
        request_usd=section.request_usd or Decimal(0),
        since=section.first_day,
    )


def _usd(section: RatesConfig) -> Mapping[str, Decimal]:
    return {name: value for name, value in section if isinstance(value, Decimal)}


def _rates(usd_per_mtok: Mapping[str, Decimal]) -> Rates:
    return rates_from(_LOOK_FOR, usd_per_mtok)
