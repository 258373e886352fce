"""What one model costs: a rate for each class of usage, and the sums made of them.

A class without a rate of its own costs what its parent does: cached and audio input as input, one-hour cache writes as
five-minute ones, reasoning and audio output as output. What no rate covers makes the cost unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from operator import itemgetter
from typing import Final

from llmproxy.usage import TOKEN_CLASSES, UNIT_CLASSES, USAGE_CLASSES, Usage

# US dollars for each class, in the order of `TOKEN_CLASSES` (per token) or `UNIT_CLASSES` (per `UNIT_SIZES`); None
# where no rate is known.
Rates = tuple[Decimal | None, ...]

# How many of each unit its rate is for: searches are sold by the thousand, audio by the hour, characters by the
# million. Divided only in the sum, since an hourly rate has no exact rate per second.
UNIT_SIZES: Final[Mapping[str, int]] = {"web_searches": 1000, "images": 1, "audio_seconds": 3600, "characters": 10**6}
NO_UNITS: Final[Rates] = (None,) * len(UNIT_CLASSES)

_PER: Final = tuple(UNIT_SIZES[name] for name in UNIT_CLASSES)
_INPUT: Final = tuple(index for index, name in enumerate(TOKEN_CLASSES) if name.endswith("_input_tokens"))
_OUTPUT: Final = tuple(index for index, name in enumerate(TOKEN_CLASSES) if name.endswith("_output_tokens"))
_tokens_of: Callable[[Usage], tuple[int, ...]] = itemgetter(slice(len(TOKEN_CLASSES)))
_units_of: Callable[[Usage], tuple[int, ...]] = itemgetter(slice(len(TOKEN_CLASSES), len(USAGE_CLASSES)))
_MILLION: Final = Decimal(1_000_000)
_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Prices:
    """What one model costs at one time, served in one way.

    Attributes:
        rates: US dollars per token, by class.
        source: Where they come from, for `Cost.price_source`.
        steps: Long-context rates in order: above the first of a pair in input tokens, all tokens cost the second.
        unit_rates: US dollars for what is not counted in tokens.
        request_usd: What each request costs on top.
        since: The day from which these prices hold; None when that is not known, or they always did.
        is_exact: False where the service tier has no price of its own, and the usual one stands in for it.
    """

    rates: Rates
    source: str
    steps: tuple[tuple[int, Rates], ...] = ()
    unit_rates: Rates = NO_UNITS
    request_usd: Decimal = _ZERO
    since: date | None = None
    is_exact: bool = True
    # The dearest rates for input and for output, by the input above which they can be reached.
    _dearest: tuple[tuple[int, Decimal | None, Decimal | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        reached: list[Decimal | None] = []
        written: list[Decimal | None] = []
        dearest = []
        for start, rates in ((0, self.rates), *self.steps):
            reached += [rates[index] for index in _INPUT]
            written += [rates[index] for index in _OUTPUT]
            dearest.append((start, _highest(reached), _highest(written)))
        object.__setattr__(self, "_dearest", tuple(reversed(dearest)))

    def amount_usd(self, usage: Usage) -> Decimal | None:
        """What `usage` costs; None when it has something in it that no rate covers, or nothing at all."""
        amount = self.request_usd
        rates = self._rates_for(usage.input_tokens) if self.steps else self.rates
        for tokens, rate in zip(_tokens_of(usage), rates, strict=True):
            if tokens:
                if rate is None:
                    return None
                amount += rate * tokens
        units = _units_of(usage)
        if any(units):
            pieces = self._pieces_usd(units)
            return None if pieces is None else amount + pieces
        if amount == self.request_usd and is_empty(usage) and not self.is_free:
            return None
        return amount

    def ceiling_usd(
        self, input_tokens: int, output_tokens: int, units: Mapping[str, int] | None = None
    ) -> Decimal | None:
        """The most that so much can cost, whatever class the tokens turn out to be in; None when it is unknown.

        Args:
            units: How many of each of `UNIT_CLASSES`; what is left out is not there.
        """
        _, input_usd, output_usd = self._dearest[0] if not self.steps else self._dearest_at(input_tokens)
        if (input_tokens and input_usd is None) or (output_tokens and output_usd is None):
            return None
        pieces = self._pieces_usd(tuple(units.get(name, 0) for name in UNIT_CLASSES)) if units else _ZERO
        if pieces is None:
            return None
        tokens = (input_usd or _ZERO) * input_tokens + (output_usd or _ZERO) * output_tokens
        return self.request_usd + tokens + pieces

    def scaled(self, factor: Decimal, source: str) -> Prices:
        """These prices with every rate for tokens multiplied, as regional premiums are reckoned."""
        return replace(
            self,
            rates=_scaled(self.rates, factor),
            steps=tuple((start, _scaled(rates, factor)) for start, rates in self.steps),
            source=source,
        )

    def discounted(self, factor: Decimal, source: str) -> Prices:
        """These prices with everything multiplied, as discounts are."""
        by_tokens = self.scaled(factor, source)
        return replace(by_tokens, unit_rates=_scaled(self.unit_rates, factor), request_usd=self.request_usd * factor)

    @property
    def terms(self) -> tuple[object, ...]:
        """What decides what anything costs; the same for prices that differ in nothing but where they come from."""
        return self.rates, self.steps, self.unit_rates, self.request_usd

    @property
    def is_free(self) -> bool:
        """Whether it is known that tokens cost nothing."""
        return not self.request_usd and not self.steps and all(rate == 0 for rate in self.rates)

    @property
    def covers_anything(self) -> bool:
        """Whether there is a rate at all."""
        return any(rate is not None for rate in (*self.rates, *self.unit_rates))

    @property
    def input_usd_per_mtok(self) -> Decimal | None:
        """What a million tokens of ordinary input cost, as long as the input is not a long one."""
        return _per_million(self.rates[_INPUT[0]])

    @property
    def output_usd_per_mtok(self) -> Decimal | None:
        """What a million tokens of text cost, as long as the input is not a long one."""
        return _per_million(self.rates[_OUTPUT[0]])

    def _dearest_at(self, input_tokens: int) -> tuple[int, Decimal | None, Decimal | None]:
        return next(each for each in self._dearest if input_tokens > each[0] or each[0] == 0)

    def _rates_for(self, input_tokens: int) -> Rates:
        reached = [rates for start, rates in self.steps if input_tokens > start]
        return reached[-1] if reached else self.rates

    def _pieces_usd(self, units: tuple[int, ...]) -> Decimal | None:
        amount = _ZERO
        for count, rate, per in zip(units, self.unit_rates, _PER, strict=True):
            if count:
                if rate is None:
                    return None
                amount += rate * count / per
        return amount


def is_empty(usage: Usage) -> bool:
    """Whether nothing at all was counted."""
    return not any(_tokens_of(usage)) and not any(_units_of(usage))


def free_of_charge(source: str) -> Prices:
    """Prices that are known to be nothing."""
    return Prices((_ZERO,) * len(TOKEN_CLASSES), source, unit_rates=(_ZERO,) * len(UNIT_CLASSES))


def rates_from(look_for: Mapping[str, Sequence[str]], usd_per_mtok: Mapping[str, Decimal]) -> Rates:
    """One rate for each class of tokens: the first of its names that is listed, from dollars per million tokens."""
    found = (_first(look_for[name], usd_per_mtok) for name in TOKEN_CLASSES)
    return tuple(None if rate is None else rate / _MILLION for rate in found)


def unit_rates_from(look_for: Mapping[str, Sequence[str]], usd: Mapping[str, Decimal]) -> Rates:
    """One rate for each unit: the first of its names that is listed, in dollars for `UNIT_SIZES` of them."""
    return tuple(_first(look_for[name], usd) for name in UNIT_CLASSES)


def _first(names: Sequence[str], listed: Mapping[str, Decimal]) -> Decimal | None:
    return next((listed[name] for name in names if name in listed), None)


def _scaled(rates: Rates, factor: Decimal) -> Rates:
    return tuple(None if rate is None else rate * factor for rate in rates)


def _per_million(rate: Decimal | None) -> Decimal | None:
    return None if rate is None else rate * _MILLION


def _highest(rates: Sequence[Decimal | None]) -> Decimal | None:
    """The highest of some rates; None when one of them is not known, which may be a higher one."""
    known = [rate for rate in rates if rate is not None]
    return max(known) if len(known) == len(rates) else None
