"""What the section `fallback` may hold, and what of it holds for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from llmproxy.api import Failure, Pattern, Seconds, Section

# Asking again, or elsewhere, cannot help: the request itself is wrong, or its answer is there already.
NEVER: Final = frozenset({Failure.INVALID_REQUEST, Failure.SUPERSEDED})


def _worth_another_attempt(failures: tuple[Failure, ...]) -> tuple[Failure, ...]:
    if never := sorted(NEVER.intersection(failures)):
        raise ValueError(f"another attempt cannot help after {' or '.join(never)}")
    return failures


Failures = Annotated[tuple[Failure, ...], AfterValidator(_worth_another_attempt)]


class HedgeRules(Section):
    """When a slow attempt gets company, and how much of that there may be."""

    after: Literal["p50", "p75", "p90", "p95", "p99"] = Field(
        default="p95", description="How slow, against the target's own latest times to first content."
    )
    min_seconds: Seconds = Field(default=0.5, description="Nothing is hedged sooner than this.")
    max_extra_share: float = Field(
        default=0.05, gt=0, le=1, description="Extra requests, as a share of all that could be hedged; per worker."
    )
    max_extra_usd_per_day: float | None = Field(
        default=None, gt=0, description="What attempts that lost may cost in a UTC day; per worker. null: no limit."
    )

    @property
    def quantile(self) -> float:
        """`after` as a number between 0 and 1."""
        return int(self.after[1:]) / 100


class Rules(Section):
    """What may differ from model to model."""

    first_byte_seconds: Seconds | None = Field(
        default=60,
        description="How long a stream may take to its first content while there is another target; null: no limit.",
    )
    answer_seconds: Seconds | None = Field(
        default=150,
        description="How long a whole answer may take while there is another target; null: no limit.",
    )
    min_tokens_per_second: float | None = Field(
        default=None, gt=0, description="Streams that begin slower than this are given to another target; null: none."
    )
    slow_stream_window_seconds: Seconds = Field(
        default=5, description="How long the beginning of a stream may be held back to measure that."
    )
    stream_failure: Literal["error", "continue"] = Field(
        default="error",
        description="What follows when a stream is cut: an error event, or the rest from another attempt.",
    )
    hedge: HedgeRules | None = Field(default=None, description="Ask twice when the first is slow; null: never.")


class HealthRules(Section):
    """When a target is left alone, and for how long."""

    consecutive_failures: int = Field(default=3, ge=1, description="So many in a row, and the target cools down.")
    error_rate: float = Field(default=0.5, gt=0, le=1, description="So large a share of failures, and it does as well.")
    min_requests: int = Field(default=20, ge=1, description="The least attempts in the window for `error_rate`.")
    window_seconds: Seconds = Field(default=60, description="How far back `error_rate` looks.")
    cool_down_seconds: Seconds = Field(default=15, description="How long the first lasts; each repeat doubles it.")
    max_cool_down_seconds: Seconds = Field(default=300, description="The longest, also when a vendor asks for more.")

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if self.max_cool_down_seconds < self.cool_down_seconds:
            raise ValueError("max_cool_down_seconds must not be less than cool_down_seconds")
        return self


class FallbackConfig(Rules):
    """Retries, fallbacks, hedges and continuations: one budget of attempts, one deadline."""

    attempts: int = Field(
        default=3, ge=1, le=20, description="Most attempts for one request, whatever they are made for."
    )
    deadline_seconds: Seconds = Field(
        default=300, description="When there must be an answer, or the beginning of a stream, after all attempts."
    )
    retry_on: Failures = Field(
        default=(
            *(Failure.CONNECT, Failure.TIMEOUT, Failure.OVERLOADED),
            *(Failure.RATE_LIMIT, Failure.BROKEN, Failure.CUT),
        ),
        description="Failures after which the same target may be tried again, if there is no other.",
    )
    fallback_on: Failures = Field(
        default=tuple(failure for failure in Failure if failure not in NEVER),
        description="Failures after which another target is tried.",
    )
    backoff_seconds: Seconds = Field(
        default=0.5, description="The most to wait before the first retry at a target; each further one doubles it."
    )
    max_backoff_seconds: Seconds = Field(default=8, description="The most to wait before any retry.")
    health: HealthRules = Field(default=HealthRules(), description="When a target is left alone for a while.")
    models: Mapping[Pattern, Rules] = Field(
        default_factory=dict, description="Other rules for models asked for by names that match; the first counts."
    )

    def rules(self, model: str) -> Rules:
        """What holds for a model, by the name that was asked for."""
        if not self.models:
            return self
        return next((rules for pattern, rules in self._merged if fnmatchcase(model, pattern)), self)

    @cached_property
    def _merged(self) -> Sequence[tuple[str, Rules]]:
        """The rules of each pattern, with what it leaves open as it is for all."""
        general = Rules.model_validate({name: getattr(self, name) for name in Rules.model_fields})
        return [
            (pattern, general.model_copy(update={name: getattr(own, name) for name in own.model_fields_set}))
            for pattern, own in self.models.items()
        ]

    @property
    def has_hedges(self) -> bool:
        """Whether any model is hedged."""
        return any(rules.hedge is not None for rules in (self, *self.models.values()))

    @property
    def has_continuations(self) -> bool:
        """Whether streams of any model go on after they were cut."""
        return any(rules.stream_failure == "continue" for rules in (self, *self.models.values()))
