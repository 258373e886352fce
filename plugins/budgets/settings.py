"""The configuration of the budgets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, Field, model_validator

from llmproxy.api import ScopedSection, Seconds, Section

Window = Literal["minute", "hour", "day", "week", "month", "lifetime"]
Mode = Literal["hard", "soft", "throttle"]
Unit = Literal["usd", "tokens", "requests"]
Amount = Annotated[Decimal, Field(gt=0)]
Share = Annotated[Decimal, Field(gt=0)]
UNITS: tuple[Unit, ...] = ("usd", "tokens", "requests")


class Raise(Section):
    """A higher cap for a time."""

    to: Amount = Field(description="The cap meanwhile, in the limit's own unit.")
    since: AwareDatetime | None = Field(default=None, description="When it begins; left out, it has begun.")
    until: AwareDatetime = Field(description="When the usual cap holds again.")


class Limit(ScopedSection):
    """One budget, or one for each subject that a pattern fits."""

    usd: Amount | None = Field(default=None, description="The cap, in US dollars.")
    tokens: Amount | None = Field(default=None, description="The cap, in tokens in and out.")
    requests: Amount | None = Field(default=None, description="The cap, in answers that providers gave.")
    window: Window = Field(default="month", description="Over which time.")
    rolling: bool = Field(default=False, description="The last so much time, instead of the calendar's.")
    mode: Mode = Field(
        default="hard", description="Past the cap: `hard` refuses, `soft` only tells, `throttle` delays."
    )
    alert_at: tuple[Share, ...] = Field(
        default=(), description="Shares of the cap at which operators are told, such as 0.8."
    )
    raises: tuple[Raise, ...] = Field(default=(), description="Higher caps for a time.")

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if len(self.caps) != 1:
            raise ValueError("needs exactly one of usd, tokens and requests")
        if self.rolling and self.window == "lifetime":
            raise ValueError("a lifetime does not roll")
        return self

    @cached_property
    def caps(self) -> Mapping[Unit, Decimal]:
        """The cap by its unit."""
        return {unit: cap for unit in UNITS if (cap := getattr(self, unit)) is not None}

    @cached_property
    def unit(self) -> Unit:
        """What it counts."""
        return next(iter(self.caps))

    @cached_property
    def base_cap(self) -> Decimal:
        """The cap as long as it is not raised."""
        return self.caps[self.unit]

    def cap_at(self, at: datetime) -> Decimal:
        """The cap at a time."""
        raised = [each.to for each in self.raises if (each.since is None or each.since <= at) and at < each.until]
        return max((*raised, self.base_cap))


class BudgetsConfig(Section):
    """Budgets, and what holds for all of them."""

    limits: tuple[Limit, ...] = Field(
        default=(), description="The budgets; of those alike in all but match and cap, the first that fits counts."
    )
    time_zone: str = Field(default="UTC", description="Where days, weeks and months begin, as in `Europe/Oslo`.")
    fail: Literal["open", "closed"] = Field(
        default="closed", description="Without a database, once leases are used up: `closed` refuses."
    )
    unpriced: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="Models without a price under a budget in dollars; allowed, they count as nothing.",
    )
    assumed_output_tokens: int = Field(
        default=4096, ge=1, description="Reserved where neither the request nor the model has a limit."
    )
    cut_streams: bool = Field(
        default=False, description="End a stream that grows past what was reserved, instead of charging more."
    )
    throttle_from: Decimal = Field(
        default=Decimal("0.8"), ge=0, lt=1, description="Share of the cap from which throttled requests wait."
    )
    throttle_seconds: Seconds = Field(default=10, description="How long they wait once the cap is reached.")
    webhook: str | None = Field(
        default=None, pattern=r"^https?://", description="Where alerts are posted to, as JSON; left out, only logged."
    )

    @model_validator(mode="after")
    def _has_a_time_zone(self) -> Self:
        zone(self.time_zone)
        return self


def zone(name: str) -> tzinfo:
    """A time zone by its name. Raises ValueError when there is none."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (LookupError, OSError, ValueError) as error:
        raise ValueError(f"no time zone is called '{name}'") from error
