"""Windows of time as allowances have them: the bucket that is used now, and from when on what was used counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import ceil
from typing import Final, NamedTuple, Self

from llmproxy_plugins.rate_limits import settings

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LENGTHS: Final[Mapping[settings.Window, timedelta]] = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
# A window that slides moves on in so many steps, each of which costs a lease, and so at most four times a second.
_MOST_STEPS: Final = 20
_SHORTEST_STEP: Final = timedelta(milliseconds=250)


class Span(NamedTuple):
    """One window, in the words of an allowance."""

    bucket: datetime
    since: datetime
    until: datetime | None
    step: timedelta | None


@dataclass(frozen=True)
class Window:
    """How long what was used counts, and how exactly.

    Attributes:
        step: How far it slides at a time; None for one of the clock's.
    """

    length: timedelta
    step: timedelta | None = None

    @classmethod
    def sliding(cls, length: timedelta) -> Self:
        """One that slides; what was used counts for up to one step longer than the window."""
        steps = max(1, min(_MOST_STEPS, length // _SHORTEST_STEP))
        # Rounded up, or what was used would cease to count some microseconds too soon.
        return cls(length, timedelta(microseconds=ceil(length / timedelta(microseconds=1) / steps)))

    @cached_property
    def span_seconds(self) -> float:
        """How long what was used counts at most."""
        return (self.length + (self.step or timedelta())).total_seconds()

    @property
    def pace(self) -> timedelta:
        """How long one bucket of it lasts."""
        return self.step or self.length

    def is_in(self, bucket: datetime, moment: datetime) -> bool:
        """Whether a bucket is the one that a moment is in."""
        return bucket <= moment < bucket + self.pace

    def at(self, moment: datetime) -> Span:
        """The window that a moment is in."""
        pace = self.pace
        bucket = EPOCH + (moment - EPOCH) // pace * pace
        if self.step is None:
            return Span(bucket, bucket, bucket + self.length, None)
        return Span(bucket, bucket - -(-self.length // pace) * pace, None, pace)

    def reset_seconds(self, moment: datetime, until: datetime | None = None) -> float:
        """When nothing that is used by now counts any more.

        Args:
            until: When the window that the moment is in ends, where that is known.
        """
        if self.step is not None:
            return self.span_seconds
        return ((until or self.at(moment).bucket + self.length) - moment).total_seconds()


def window_of(limit: settings.Limit, cap: int) -> tuple[int, Window]:
    """How much may be used, and in which window.

    The tokens of a bucket return one by one, each as long after it was taken as the bucket takes to fill.
    """
    length = LENGTHS[limit.window]
    if limit.algorithm == "fixed_window":
        return cap, Window(length)
    if limit.algorithm == "sliding_window":
        return cap, Window.sliding(length)
    burst = max(1, int(cap * limit.burst))
    return burst, Window.sliding(length * burst / cap)
