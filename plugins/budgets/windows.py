"""Windows of time: which one a moment is in, when it began and when the next one begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Final, NamedTuple

from llmproxy_plugins.budgets.settings import Window

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# A month that rolls is thirty days.
LENGTHS: Final[Mapping[Window, timedelta]] = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "month": timedelta(days=30),
}
# A rolling window moves on in this many steps; what was used counts up to one step longer than the window.
STEPS: Final = 60


class Span(NamedTuple):
    """One window.

    Attributes:
        bucket: What is used now counts from here.
        since: What was used from here on counts against the cap.
        until: When the next window begins; None for never.
        step: How far a rolling window moves at a time; None for one of the calendar.
    """

    bucket: datetime
    since: datetime
    until: datetime | None
    step: timedelta | None = None


class Windows:
    """Windows of one kind, of which the latest is remembered."""

    def __init__(self, window: Window, zone: tzinfo, *, is_rolling: bool) -> None:
        self._span: Callable[[datetime], Span]
        if window == "lifetime":
            self._latest = Span(EPOCH, EPOCH, None)
            self._ends_at = datetime.max.replace(tzinfo=UTC)
        else:
            self._latest, self._ends_at = Span(EPOCH, EPOCH, None), EPOCH
        self._window: Final = window
        self._zone: Final = zone
        self._is_rolling: Final = is_rolling

    def at(self, moment: datetime) -> Span:
        """The window that a moment is in."""
        if self._latest.bucket <= moment < self._ends_at:
            return self._latest
        span = rolling(self._window, moment) if self._is_rolling else calendar(self._window, moment, self._zone)
        self._latest, self._ends_at = span, span.until or span.bucket + (span.step or timedelta())
        return span


def rolling(window: Window, moment: datetime) -> Span:
    """The window that ends at a moment, as far as its steps go."""
    step = LENGTHS[window] / STEPS
    bucket = EPOCH + (moment - EPOCH) // step * step
    return Span(bucket, bucket - STEPS * step, None, step)


def calendar(window: Window, moment: datetime, zone: tzinfo) -> Span:
    """The calendar's window that a moment is in, where days, weeks and months begin at midnight in the zone."""
    if window in ("minute", "hour"):
        start = EPOCH + (moment - EPOCH) // LENGTHS[window] * LENGTHS[window]
        return Span(start, start, start + LENGTHS[window])
    today = moment.astimezone(zone).date()
    first = today - timedelta(days=today.weekday()) if window == "week" else today
    if window == "month":
        first = today.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
    else:
        following = first + LENGTHS[window]
    start, end = (datetime.combine(day, time(), zone).astimezone(UTC) for day in (first, following))
    return Span(start, start, end)
