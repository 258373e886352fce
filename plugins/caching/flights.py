"""Requests that share one call: the first of several that are the same leads, the others follow.

A leader may end in any way. It may land, and all have its answer; it may fail or lose its client, and those who have
nothing of its answer yet elect another. Nobody waits for a leader longer than for an answer of their own.
"""

from __future__ import annotations

import asyncio
from typing import Final

from llmproxy_plugins.caching.entries import Entry
from llmproxy_plugins.caching.tape import Tape

# A request that failed for this many leaders is made by each follower alone: one by one they would wait too long.
MAX_FAILURES: Final = 2


class Flight:
    """One request on its way, and what has become of it.

    Attributes:
        leader_id: The exchange that makes the call.
        entry: The whole answer, once it is there.
        tape: The stream that passes, once one does.
        shows_usage: Whether that stream carries the event with the usage.
        is_lost: Whether nothing will come of it.
        has_failed: Whether it was lost because the call failed, and not because its client had gone.
    """

    def __init__(self, leader_id: str) -> None:
        self.leader_id: Final = leader_id
        self.entry: Entry | None = None
        self.tape: Tape | None = None
        self.shows_usage = False
        self.is_lost = False
        self.has_failed = False
        self._news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether it has landed or is lost."""
        return self.entry is not None or self.is_lost

    def streams(self, tape: Tape, *, shows_usage: bool) -> None:
        """Its answer comes as a stream, which others may listen to."""
        self.tape, self.shows_usage = tape, shows_usage
        self._tell()

    def land(self, entry: Entry) -> None:
        """Its answer is there."""
        self.entry = entry
        self._tell()

    def lose(self, *, has_failed: bool) -> None:
        """Nothing will come of it for those who wait. When it is over, that changes nothing."""
        if not self.is_over:
            self.is_lost, self.has_failed = True, has_failed
            self._tell()

    async def settled(self, *, takes_stream: bool, shows_usage: bool) -> None:
        """Wait until it is over, or has a stream for somebody who would take it as it is."""
        while not self.is_over and not (takes_stream and self.has_stream_for(shows_usage=shows_usage)):
            await self._news.wait()

    def has_stream_for(self, *, shows_usage: bool) -> bool:
        """Whether a stream passes that can be listened to from its beginning, and is what the listener asked for."""
        return self.tape is not None and self.tape.is_whole and self.shows_usage == shows_usage

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Flights:
    """The flights of one worker, by the key of what they will bring."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: str) -> Flight | None:
        """Who to follow, if anybody leads."""
        return self._flights.get(key)

    def lead(self, key: str, leader_id: str) -> Flight:
        """A new flight that others find from now on."""
        flight = self._flights[key] = Flight(leader_id)
        return flight

    def forget(self, key: str, flight: Flight) -> None:
        """Nobody finds it any more; those who have found it keep it."""
        if self._flights.get(key) is flight:
            del self._flights[key]
