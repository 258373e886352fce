"""The time a test says it is, for a gateway whose own work goes on in real time."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Final

from llmproxy.services import SystemClock

# A Thursday, for tests that only say what time of day it is.
DAY: Final = date(2026, 1, 1)


class WallClock(SystemClock):
    """A wall clock that a test sets; until then it shows the real time. Waiting really waits.

    A clock that stood still altogether, as `Clock` does, would hold up the gateway's own work.
    """

    def __init__(self, now: str | datetime | None = None) -> None:
        self._set_to = None if now is None else moment(now)

    def now(self) -> datetime:
        """What the clock was set to, or the real time."""
        return self._set_to or super().now()

    def set(self, now: str | datetime) -> None:
        """Make it `now`, as `moment` reads it; time stands still there."""
        self._set_to = moment(now)


def moment(text: str | datetime) -> datetime:
    """A time of day (`02:00`), on a Thursday, or a whole date and time (`2026-03-29T02:00+01:00`); UTC if unsaid.

    Raises ValueError.
    """
    if isinstance(text, str):
        text = datetime.fromisoformat(text) if "-" in text else datetime.combine(DAY, time.fromisoformat(text))
    return text if text.tzinfo else text.replace(tzinfo=UTC)
