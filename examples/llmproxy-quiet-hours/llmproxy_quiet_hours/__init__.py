"""Refuse requests outside office hours."""

from __future__ import annotations

import math
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Self
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from llmproxy.api import Exchange, Refused, Section, Services, hookimpl


class QuietHoursConfig(Section):
    """When the office is open: every day alike, past midnight if it closes earlier than it opens."""

    opens: time = Field(default=time(9), description="When requests begin to be served.")
    closes: time = Field(default=time(17), description="When they cease to be.")
    time_zone: str = Field(default="UTC", description="Where the office is, as in `Europe/Oslo`.")

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if self.opens == self.closes:
            raise ValueError("opens and closes must differ")
        if self.opens.tzinfo or self.closes.tzinfo:
            raise ValueError("opens and closes take no offset; set time_zone")
        zone(self.time_zone)
        return self


class QuietHours:
    """The plugin: one check before anything else is done with a request."""

    name = "quiet_hours"
    Config = QuietHoursConfig

    def __init__(self, config: QuietHoursConfig, services: Services) -> None:
        self.config = config
        self.clock = services.clock
        self.zone = zone(config.time_zone)

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """Refuse while the office is closed, and say for how long it will be."""
        local = self.clock.now().astimezone(self.zone)
        if is_open(self.config, local.time()):
            return
        exchange.decide(self.name, "refused", f"it is {local:%H:%M}")
        raise Refused(
            f"The office is closed; it opens at {self.config.opens:%H:%M} ({self.config.time_zone}).",
            code="quiet_hours",
            retry_after_seconds=seconds_until(self.config.opens, local),
        )


def is_open(config: QuietHoursConfig, at: time) -> bool:
    """Whether the office is open at a time of day."""
    if config.opens < config.closes:
        return config.opens <= at < config.closes
    return not config.closes <= at < config.opens


def seconds_until(opens: time, local: datetime) -> int:
    """How long it is from `local` to the next opening, in whole seconds."""
    opening = datetime.combine(local, opens, local.tzinfo)
    if opening <= local:
        opening += timedelta(days=1)
    # Counted in UTC, so that a night in which the clocks change is as long as it is.
    return math.ceil((opening.astimezone(UTC) - local.astimezone(UTC)).total_seconds())


def zone(name: str) -> tzinfo:
    """A time zone by its name. Raises ValueError when there is none."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (LookupError, OSError, ValueError) as error:
        raise ValueError(f"no time zone is called '{name}'") from error
