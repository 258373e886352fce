"""Who is held back, as all workers agree: one row for each, and word of it to the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llmproxy.api import Follower, Services, StorageError

CHANNEL: Final = "runaway_trips"
_TRIP: Final = """
INSERT INTO runaway_trips (subject, reason, until) VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (subject) DO UPDATE SET reason = EXCLUDED.reason, tripped_at = now(), until = EXCLUDED.until
WHERE runaway_trips.until < clock_timestamp()
RETURNING subject
"""
_RESET: Final = "DELETE FROM runaway_trips WHERE subject = $1 RETURNING subject"
_CLEAN: Final = "DELETE FROM runaway_trips WHERE until < clock_timestamp()"
# Seconds from now, for the workers' clocks may differ.
_READ: Final = """
SELECT subject, reason, extract(epoch FROM until - clock_timestamp())::float8 AS left_seconds
FROM runaway_trips WHERE until > clock_timestamp()
"""
_TELL: Final = "SELECT pg_notify($1, '')"


@dataclass(frozen=True, slots=True)
class Trip:
    """Somebody is held back until then, by the monotonic clock."""

    subject: str
    reason: str
    until: float


class Trips:
    """Those that this worker knows of.

    Args:
        on_reset: Told of each subject that is not held back any more.
    """

    def __init__(self, services: Services, on_reset: Callable[[str], None]) -> None:
        self._services = services
        self._on_reset = on_reset
        self._trips: dict[str, Trip] = {}
        self._unwritten: set[str] = set()
        self._follower = Follower(services, CHANNEL, self._read, failure="runaway_trips_not_read")

    async def start(self) -> None:
        """Read those there are, and again whenever that changes."""
        await self._follower.start()

    def stop(self) -> None:
        """Read no more."""
        self._follower.stop()

    def active(self, subjects: Sequence[str]) -> Trip | None:
        """The one that holds any of them back; None when nothing does."""
        if not self._trips:
            return None
        found = (trip for subject in subjects if (trip := self._trips.get(subject)) is not None)
        return next((trip for trip in found if self._is_active(trip)), None)

    def every(self) -> Sequence[Trip]:
        """All that are active."""
        return [trip for trip in list(self._trips.values()) if self._is_active(trip)]

    async def trip(self, subject: str, reason: str, seconds: float) -> bool:
        """Hold somebody back, here at once and elsewhere soon; says whether this worker was the first to do so."""
        self._trips[subject] = Trip(subject, reason, self._services.clock.monotonic() + seconds)
        self._unwritten.add(subject)
        try:
            await self._services.database.execute(_CLEAN)
            row = await self._services.database.fetch_row(_TRIP, subject, reason, seconds)
            await self._services.database.execute(_TELL, CHANNEL)
        except StorageError as error:
            self._services.log.warning("runaway_not_shared", subject=subject, error=error.message)
            return True
        self._unwritten.discard(subject)
        return row is not None

    async def reset(self, subject: str) -> bool:
        """Let somebody go on, everywhere; says whether they were held back. Raises StorageError."""
        row = await self._services.database.fetch_row(_RESET, subject)
        was_held = row is not None or subject in self._unwritten
        self._unwritten.discard(subject)
        await self._services.database.execute(_TELL, CHANNEL)
        await self._follower.read()
        return was_held

    async def _read(self) -> None:
        """Take over what all agree on."""
        rows = await self._services.database.fetch(_READ)
        now = self._services.clock.monotonic()
        found = {row["subject"]: Trip(row["subject"], row["reason"], now + row["left_seconds"]) for row in rows}
        kept = {subject: trip for subject, trip in self._trips.items() if subject in self._unwritten}
        gone = self._trips.keys() - found.keys() - kept.keys()
        self._trips = {**found, **kept}
        for subject in gone:
            self._on_reset(subject)

    def _is_active(self, trip: Trip) -> bool:
        if self._services.clock.monotonic() < trip.until:
            return True
        del self._trips[trip.subject]
        self._unwritten.discard(trip.subject)
        self._on_reset(trip.subject)
        return False
