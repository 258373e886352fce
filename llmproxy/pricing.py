"""Usage to cost: what each class of tokens costs for a model, from the configuration or from the price data.

Prices are resolved once per model to one rate for each class, so that a cost is a handful of multiplications. A
class without a rate of its own costs what its parent does: cached and audio input as input, one-hour cache writes as
five-minute ones, reasoning and audio output as output. Tokens that no rate covers make the cost unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from llmproxy.exchange import TOKEN_CLASSES, Cost, Target, Usage
from llmproxy.model_facts import ModelFacts

if TYPE_CHECKING:
    from llmproxy.config import PriceConfig
    from llmproxy.price_data import PriceData

# The `price_provider` of a kind that charges nothing, such as the demo provider.
FREE: Final = "free"

# US dollars per token for each class of Usage, in the order of `TOKEN_CLASSES`; None where no rate is known.
Rates = tuple[Decimal | None, ...]

_INPUT_CLASSES: Final = 5
_tokens_of: Callable[[Usage], tuple[int, ...]] = attrgetter(*TOKEN_CLASSES)

# For each class, the keys of a price section to look for, best first.
_LOOK_FOR: Final = (
    ("input_usd_per_mtok",),
    ("cache_read_usd_per_mtok", "input_usd_per_mtok"),
    ("cache_write_5m_usd_per_mtok", "input_usd_per_mtok"),
    ("cache_write_1h_usd_per_mtok", "cache_write_5m_usd_per_mtok", "input_usd_per_mtok"),
    ("audio_input_usd_per_mtok", "input_usd_per_mtok"),
    ("output_usd_per_mtok",),
    ("reasoning_usd_per_mtok", "output_usd_per_mtok"),
    ("audio_output_usd_per_mtok", "output_usd_per_mtok"),
)
_MILLION: Final = Decimal(1_000_000)
_ZERO: Final = Decimal(0)
_REMEMBERED_PRICES: Final = 4096


@dataclass(frozen=True, slots=True)
class Prices:
    """What one model costs at one time.

    Attributes:
        rates: US dollars per token, by class.
        source: Where they come from, for `Cost.price_source`.
        steps: Long-context rates in order: above the first of a pair in input tokens, all tokens cost the second.
        request_usd: What each request costs on top.
    """

    rates: Rates
    source: str
    steps: tuple[tuple[int, Rates], ...] = ()
    request_usd: Decimal = _ZERO

    def amount_usd(self, usage: Usage) -> Decimal | None:
        """What `usage` costs; None when it has tokens that no rate covers."""
        amount = self.request_usd
        rates = self._rates_for(usage.input_tokens) if self.steps else self.rates
        for tokens, rate in zip(_tokens_of(usage), rates, strict=True):
            if tokens:
                if rate is None:
                    return None
                amount += rate * tokens
        return amount

    def ceiling_usd(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """The most that so many tokens can cost, whatever class they turn out to be; None when it is unknown."""
        vectors = [self.rates, *(rates for start, rates in self.steps if input_tokens > start)]
        sent = _most(input_tokens, [rate for rates in vectors for rate in rates[:_INPUT_CLASSES]])
        received = _most(output_tokens, [rate for rates in vectors for rate in rates[_INPUT_CLASSES:]])
        return None if sent is None or received is None else self.request_usd + sent + received

    @property
    def input_usd_per_mtok(self) -> Decimal | None:
        """What a million tokens of ordinary input cost, as long as the input is not a long one."""
        return _per_million(self.rates[0])

    @property
    def output_usd_per_mtok(self) -> Decimal | None:
        """What a million tokens of text cost, as long as the input is not a long one."""
        return _per_million(self.rates[_INPUT_CLASSES])

    def _rates_for(self, input_tokens: int) -> Rates:
        reached = [rates for start, rates in self.steps if input_tokens > start]
        return reached[-1] if reached else self.rates


class PriceBook:
    """Prices of every model: the operator's own first, then the price data.

    The price data is loaded when it is first asked for, which takes about a second: call `known_models` at start
    rather than meet it in a request.

    Args:
        overrides: Price sections; the first whose `match` fits `provider/model` replaces all other prices of it.
    """

    def __init__(self, overrides: Sequence[PriceConfig]) -> None:
        self._overrides = tuple((override.match, _own_prices(override)) for override in overrides)
        self._resolve = lru_cache(maxsize=_REMEMBERED_PRICES)(self._resolve_uncached)

    def prices(
        self,
        target: Target,
        price_provider: str | None,
        at: datetime,
        service_tier: str | None = None,
        *,
        price_model: str | None = None,
    ) -> Prices | None:
        """What `target` costs at a time (to the minute) and in a service tier; None when that is not known.

        Args:
            price_model: What the price data calls the model; left out, what the target calls it.
        """
        minute = at.replace(second=0, microsecond=0)
        return self._resolve(target.name, price_model or target.model, price_provider, minute, service_tier)

    @staticmethod
    def cost(usage: Usage, prices: Prices | None) -> Cost:
        """What `usage` costs; its amount is None when there is no price for all of it."""
        if prices is None:
            return Cost(None, usage.provenance)
        return Cost(prices.amount_usd(usage), usage.provenance, prices.source)

    def known_models(self, price_provider: str | None) -> Sequence[str]:
        """The models the price data lists for a vendor; none for a vendor it does not know."""
        return () if price_provider in (None, FREE) else self._data.models(price_provider)

    def facts(self, model: str, price_provider: str | None) -> ModelFacts:
        """What the price data knows of a vendor's model beside its price."""
        return ModelFacts() if price_provider in (None, FREE) else self._data.facts(model, price_provider)

    @cached_property
    def _data(self) -> PriceData:
        from llmproxy.price_data import PriceData  # noqa: PLC0415 - slow to import, and not everybody needs it

        return PriceData()

    def _resolve_uncached(
        self, name: str, model: str, price_provider: str | None, at: datetime, service_tier: str | None
    ) -> Prices | None:
        for pattern, prices in self._overrides:
            if fnmatchcase(name, pattern):
                return prices
        if price_provider is None:
            return None
        if price_provider == FREE:
            return free_of_charge(FREE)
        return self._data.prices(model, price_provider, at, service_tier)


def free_of_charge(source: str) -> Prices:
    """Prices that are known to be nothing."""
    return Prices((_ZERO,) * len(TOKEN_CLASSES), source)


def rates_from(look_for: Sequence[Sequence[str]], usd_per_mtok: Mapping[str, Decimal]) -> Rates:
    """One rate for each class: the first of its names that is listed, from dollars per million tokens."""
    found = (next((usd_per_mtok[name] for name in names if name in usd_per_mtok), None) for names in look_for)
    return tuple(None if rate is None else rate / _MILLION for rate in found)


def _per_million(rate: Decimal | None) -> Decimal | None:
    return None if rate is None else rate * _MILLION


def _own_prices(section: PriceConfig) -> Prices:
    if section.free:
        return free_of_charge("config")
    return Prices(
        rates_from(_LOOK_FOR, {name: value for name, value in section if isinstance(value, Decimal)}), "config"
    )


def _most(tokens: int, rates: Sequence[Decimal | None]) -> Decimal | None:
    """Tokens at the highest of some rates; None when there are tokens and a rate is not known."""
    known = [rate for rate in rates if rate is not None]
    if not tokens:
        return _ZERO
    return max(known) * tokens if len(known) == len(rates) else None
