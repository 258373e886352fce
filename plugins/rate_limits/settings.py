"""The configuration of the rate limits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from llmproxy.api import ScopedSection, Section

Window = Literal["second", "minute", "hour", "day"]
Algorithm = Literal["sliding_window", "fixed_window", "token_bucket"]
Unit = Literal["requests", "tokens", "input_tokens", "output_tokens", "concurrent", "concurrent_streams"]
UNITS: Final[tuple[Unit, ...]] = (
    *("requests", "tokens", "input_tokens", "output_tokens"),
    *("concurrent", "concurrent_streams"),
)


class Limit(ScopedSection):
    """One limit, or one for each subject that a pattern fits."""

    requests: PositiveInt | None = Field(default=None, description="Requests in a window.")
    tokens: PositiveInt | None = Field(default=None, description="Tokens in and out in a window.")
    input_tokens: PositiveInt | None = Field(default=None, description="Tokens in, in a window.")
    output_tokens: PositiveInt | None = Field(default=None, description="Tokens out, in a window.")
    concurrent: PositiveInt | None = Field(default=None, description="Requests at the same time.")
    concurrent_streams: PositiveInt | None = Field(default=None, description="Streamed requests at the same time.")
    window: Window = Field(default="minute", description="Over which time; of no matter for what is concurrent.")
    algorithm: Algorithm = Field(
        default="sliding_window", description="The last so much time, the clock's own, or a bucket that refills."
    )
    burst: float = Field(
        default=0.1, gt=0, le=1, description="The share of the limit that a `token_bucket` lets through at once."
    )

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if not self.caps:
            raise ValueError(f"needs at least one of {', '.join(UNITS)}")
        return self

    @cached_property
    def caps(self) -> Mapping[Unit, int]:
        """What is limited, to how much."""
        return {unit: cap for unit in UNITS if (cap := getattr(self, unit)) is not None}


class RateLimitsConfig(Section):
    """Rate limits, and what holds for all of them."""

    limits: tuple[Limit, ...] = Field(
        default=(), description="The limits; of those alike in all but match and number, the first that fits counts."
    )
    fail: Literal["open", "closed"] = Field(
        default="open", description="Without a database, once leases are used up: `closed` refuses."
    )
    assumed_output_tokens: int = Field(
        default=1024, ge=1, description="What an answer counts as, at most, until its tokens are known."
    )
