"""What clients are told of their limits, in OpenAI's words: `x-ratelimit-limit-requests: 60`."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple, Self

from llmproxy.api import Allowance, Clock, Exchange, Headers
from llmproxy_plugins.rate_limits.limits import Rule
from llmproxy_plugins.rate_limits.windows import Window

# The limit, what is left of it, and when all of it is there again.
NAMES: Final[Mapping[str, tuple[str, str, str]]] = {
    unit: (f"x-ratelimit-limit-{unit}", f"x-ratelimit-remaining-{unit}", f"x-ratelimit-reset-{unit}")
    for unit in ("requests", "tokens")
}
_UNITS: Final = {name: unit for unit, names in NAMES.items() for name in names}


class Told(NamedTuple):
    """What clients are told of a limit: as far as it is always the same, in the words it is told in.

    Attributes:
        unit: In the clients' words, `requests` or `tokens`.
        most: The field with what the configuration says.
        cap: What may be used in the window.
        part: What one of it is of the cap.
        reset: The field with when all of it is there again, which is always the same where the window slides.
        until: When the window that it is now ends; None where it slides.
    """

    unit: str
    most: tuple[str, str]
    cap: Decimal
    part: Decimal
    reset: tuple[str, str] | None
    window: Window
    until: datetime | None

    @classmethod
    def of(cls, rule: Rule, window: Window, allowance: Allowance) -> Self:
        """A limit in one of its windows."""
        unit = "requests" if rule.unit == "requests" else "tokens"
        limit_name, _, reset_name = NAMES[unit]
        reset = None if window.step is None else (reset_name, duration(window.span_seconds))
        cap = Decimal(rule.cap)
        return cls(unit, (limit_name, str(rule.most)), cap, 1 / cap, reset, window, allowance.until)

    def reset_at(self, now: datetime) -> tuple[str, str]:
        """The field with when all of it is there again, where it is not always the same."""
        return NAMES[self.unit][2], duration(self.window.reset_seconds(now, self.until))


# Limits, and what is left of each; None when that is not known.
Standing = tuple[Sequence[Told], Sequence[Decimal | None]]


def say(exchange: Exchange, standings: Iterable[Standing], clock: Clock) -> None:
    """Have the answer's head tell of the tightest limit of each unit, and nothing of the provider's own."""
    tightest: dict[str, tuple[Decimal, Decimal, Told]] = {}
    for limits, amounts in standings:
        for told, amount in zip(limits, amounts, strict=True):
            left = told.cap if amount is None else amount
            share = left * told.part
            known = tightest.get(told.unit)
            if known is None or share < known[0]:
                tightest[told.unit] = share, left, told
    for unit, (_, left, told) in tightest.items():
        remaining = NAMES[unit][1], str(int(left)) if left > 0 else "0"
        exchange.response_headers += (told.most, remaining, told.reset or told.reset_at(clock.now()))
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
