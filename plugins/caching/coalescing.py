"""Following a leader, on this worker as on others, or leading."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Final

from llmproxy.api import Answer, Clock, Exchange, Exchanges, Tasks
from llmproxy_plugins.caching.calls import Call
from llmproxy_plugins.caching.entries import Entry, shows_usage
from llmproxy_plugins.caching.flights import MAX_FAILURES, Flight, Flights
from llmproxy_plugins.caching.rescue import rest_of_stream
from llmproxy_plugins.caching.stores import Store
from llmproxy_plugins.caching.tape import ListeningStream

# Between two looks at what another worker makes.
_POLL_SECONDS: Final = 0.05
# Well within the life of a claim.
_RENEWAL_SECONDS: Final = 2.0


class Coalescing:
    """Has requests that are the same share one call.

    On one worker, followers of a stream get its events as they come. Other workers take turns through claims in a
    store that all share, and have the answer once it is whole.
    """

    def __init__(self, store: Store, exchanges: Exchanges, clock: Clock, tasks: Tasks) -> None:
        self.flights: Final = Flights()
        self._exchanges = exchanges
        self._store = store
        self._clock = clock
        self._tasks = tasks

    async def join(self, exchange: Exchange, call: Call, key: str) -> Answer | None:
        """The answer of whoever leads; None when this exchange is to ask for itself, and perhaps to lead."""
        failures = 0
        try:
            async with asyncio.timeout(self._patience_seconds(exchange)):
                while failures < MAX_FAILURES:
                    flight = self.flights.find(key)
                    if flight is None:
                        return await self._lead(exchange, call, key)
                    if answer := await self._follow(exchange, flight):
                        return answer
                    if not flight.is_over:
                        return None
                    failures += flight.has_failed
        except TimeoutError:
            # Core has the words for it.
            return None
        return None

    def end(self, call: Call, *, has_failed: bool) -> None:
        """An exchange that led does so no more; whoever still waits has to find another way."""
        flight, key = call.flight, call.stored_key
        if flight is None or key is None:
            return
        call.flight = None
        self.flights.forget(key, flight)
        flight.lose(has_failed=has_failed)
        if self._store.is_shared:
            self._tasks.start("cache claim", self._store.release(key, flight.leader_id))

    def _patience_seconds(self, exchange: Exchange) -> float | None:
        until = min(exchange.deadline_monotonic, exchange.expires_monotonic)
        return None if until == math.inf else max(until - self._clock.monotonic(), 0)

    async def _follow(self, exchange: Exchange, flight: Flight) -> Answer | None:
        """The leader's answer; None when there is none, or none that this exchange could take."""
        if flight.tape is not None and not flight.tape.is_whole:
            return None
        usage = shows_usage(exchange)
        takes_stream = exchange.request.is_stream
        await flight.settled(takes_stream=takes_stream, shows_usage=usage)
        if flight.entry is not None:
            return _coalesced(exchange, flight.entry, f"request {flight.leader_id}")
        if flight.is_lost or flight.tape is None:
            return None
        exchange.decide("caching", "coalesced", f"shares the stream of request {flight.leader_id}")
        return Answer(200, stream=ListeningStream(flight.tape, partial(self._rest, exchange)), cache="coalesced")

    async def _rest(self, exchange: Exchange, heard: bytes) -> bytes:
        return await rest_of_stream(self._exchanges, exchange, heard, self._patience_seconds(exchange))

    async def _lead(self, exchange: Exchange, call: Call, key: str) -> Answer | None:
        """None once this worker may make the call; the answer, when another makes it."""
        call.flight = flight = self.flights.lead(key, exchange.id)
        if not self._store.is_shared:
            return None
        entry = await self._of_another_worker(key, exchange.id)
        if entry is None:
            self._tasks.start("cache claim", self._hold(key, flight))
            return None
        flight.land(entry)
        self.end(call, has_failed=False)
        return _coalesced(exchange, entry, "another worker")

    async def _of_another_worker(self, key: str, holder: str) -> Entry | None:
        """What another worker has made; None once this one has the claim, and nothing is there."""
        if await self._store.claim(key, holder):
            return None
        while True:
            await self._clock.sleep(_POLL_SECONDS)
            has_claim = await self._store.claim(key, holder)
            # After the claim: whoever gave it up has stored its answer before.
            entry = await self._stored(key)
            if entry is not None or has_claim:
                return entry

    async def _hold(self, key: str, flight: Flight) -> None:
        """Renew the claim for as long as the flight is found under its key."""
        while True:
            await self._clock.sleep(_RENEWAL_SECONDS)
            if self.flights.find(key) is not flight:
                return
            await self._store.claim(key, flight.leader_id)

    async def _stored(self, key: str) -> Entry | None:
        data = await self._store.get(key)
        return Entry.decoded(data) if data else None


def _coalesced(exchange: Exchange, entry: Entry, whose: str) -> Answer:
    exchange.decide("caching", "coalesced", f"{entry.saving}, by sharing the answer to {whose}")
    return entry.answer(exchange, None)
