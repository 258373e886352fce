"""What clients are told of their limits, in OpenAI's words: `x-ratelimit-limit-requests: 60`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple, Self

from llmproxy.api import Allowance, Exchange, Headers
from llmproxy_plugins.rate_limits.limits import Rule
from llmproxy_plugins.rate_limits.windows import Window

# The limit, what is left of it, and when all of it is there again.
NAMES: Final[Mapping[str, tuple[str, str, str]]] = {
    unit: (f"x-ratelimit-limit-{unit}", f"x-ratelimit-remaining-{unit}", f"x-ratelimit-reset-{unit}")
    for unit in ("requests", "tokens")
}
_UNITS: Final = {name: unit for unit, names in NAMES.items() for name in names}


class Told(NamedTuple):
    """What clients are told of a limit.

    Attributes:
        unit: In the clients' words, `requests` or `tokens`.
        most: What the configuration says.
        cap: What may be used in the window.
        until: When the window that it is now ends; None where it slides.
    """

    unit: str
    most: str
    cap: Decimal
    window: Window
    until: datetime | None

    @classmethod
    def of(cls, rule: Rule, window: Window, allowance: Allowance) -> Self:
        """A limit in one of its windows."""
        unit = "requests" if rule.unit == "requests" else "tokens"
        return cls(unit, str(rule.most), Decimal(rule.cap), window, allowance.until)


# Limits, and what is left of each; None when that is not known.
Standing = tuple[Sequence[Told], Sequence[Decimal | None]]


def say(exchange: Exchange, standings: Iterable[Standing], now: datetime) -> None:
    """Have the answer's head tell of the tightest limit of each unit, and nothing of the provider's own."""
    tightest: dict[str, tuple[Told, Decimal]] = {}
    for limits, amounts in standings:
        for told, amount in zip(limits, amounts, strict=True):
            left = told.cap if amount is None else amount
            known = tightest.get(told.unit)
            # As fractions, without a division: less of its cap is left.
            if known is None or left * known[0].cap < known[1] * told.cap:
                tightest[told.unit] = told, left
    for unit, (told, left) in tightest.items():
        reset = duration(told.window.reset_seconds(now, told.until))
        remaining = str(int(left)) if left > 0 else "0"
        exchange.response_headers += zip(NAMES[unit], (told.most, remaining, reset), strict=True)
    if exchange.answer is not None:
        exchange.answer.headers = _without(tightest, exchange.answer.headers)
    for attempt in exchange.attempts:
        if attempt.headers:
            attempt.headers = _without(tightest, attempt.headers)


# What slides is always there again after the same time.
@lru_cache(maxsize=1024)
def duration(seconds: float) -> str:
    """A span of time as OpenAI writes it: `20ms`, `12.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = max(round(seconds * 1000), 0)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    longer = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{longer}{rest / 1000:g}s"


def _without(units: Container[str], headers: Headers) -> Headers:
    """A provider's headers without those that the gateway says itself."""
    for name, _ in headers:
        if name in _UNITS:
            return [each for each in headers if _UNITS.get(each[0]) not in units]
    return headers
