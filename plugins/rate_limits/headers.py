"""What clients are told of their limits, in OpenAI's words: `x-ratelimit-limit-requests: 60`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple

from llmproxy.api import Exchange, Headers
from llmproxy_plugins.rate_limits.windows import Window

# The limit, what is left of it, and when all of it is there again.
NAMES: Final[Mapping[str, tuple[str, str, str]]] = {
    unit: (f"x-ratelimit-limit-{unit}", f"x-ratelimit-remaining-{unit}", f"x-ratelimit-reset-{unit}")
    for unit in ("requests", "tokens")
}
_UNITS: Final = {name: unit for unit, names in NAMES.items() for name in names}


class Standing(NamedTuple):
    """How a limit stands.

    Attributes:
        most: What the configuration says.
        cap: What may be used in the window.
        remaining: How much of that is left.
        until: When the window that it is now ends; None where it slides.
    """

    most: int
    cap: int
    remaining: Decimal
    window: Window
    until: datetime | None


def say(exchange: Exchange, tightest: Mapping[str, Standing], now: datetime) -> None:
    """Have the answer's head tell of these limits, by `requests` and `tokens`, and of none of the provider's."""
    for unit, (most, _, remaining, window, until) in tightest.items():
        left = str(int(remaining)) if remaining > 0 else "0"
        reset = duration(window.reset_seconds(now, until))
        exchange.response_headers += zip(NAMES[unit], (str(most), left, reset), strict=True)
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
