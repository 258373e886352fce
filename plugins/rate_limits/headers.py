"""What clients are told of their limits, in OpenAI's words: `x-ratelimit-limit-requests: 60`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from llmproxy.api import Exchange, Headers

NAMES: Final = frozenset(
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
)


class Standing(NamedTuple):
    """How a limit stands.

    Attributes:
        unit: `requests` or `tokens`, which is all there is in OpenAI's words.
    """

    unit: str
    limit: int
    cap: int
    remaining: Decimal
    reset_seconds: float


def say(exchange: Exchange, standings: Sequence[Standing]) -> None:
    """Have the answer's head tell of the tightest limit of each unit."""
    tightest: dict[str, Standing] = {}
    for standing in standings:
        known = tightest.get(standing.unit)
        if known is None or standing.remaining / standing.cap < known.remaining / known.cap:
            tightest[standing.unit] = standing
    head = [field for standing in tightest.values() for field in _fields(standing)]
    said = {name for name, _ in head}
    exchange.response_headers = [*(each for each in exchange.response_headers if each[0] not in said), *head]


def without_ours(exchange: Exchange, headers: Headers) -> Headers:
    """A provider's headers without those that the gateway says itself."""
    said = NAMES.intersection(name for name, _ in exchange.response_headers)
    return tuple(each for each in headers if each[0] not in said) if said else headers


def duration(seconds: float) -> str:
    """A span of time as OpenAI writes it: `20ms`, `12.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = max(round(seconds * 1000), 0)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    longer = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{longer}{rest / 1000:g}s"


def _fields(standing: Standing) -> Headers:
    remaining = max(int(standing.remaining), 0)
    return (
        (f"x-ratelimit-limit-{standing.unit}", str(standing.limit)),
        (f"x-ratelimit-remaining-{standing.unit}", str(remaining)),
        (f"x-ratelimit-reset-{standing.unit}", duration(standing.reset_seconds)),
    )
