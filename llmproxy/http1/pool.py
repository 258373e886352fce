"""The connections that are open: used again as long as they can be, and limited for each origin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from llmproxy.errors import UpstreamCut
from llmproxy.http1.address import Origin
from llmproxy.http1.connection import Connection
from llmproxy.timers import Timers

# Shorter than providers and their load balancers keep idle connections; most do for a minute or more.
IDLE_SECONDS: Final = 15.0
_SWEEP_SECONDS: Final = 5.0

Dial = Callable[[Origin, Callable[[], Connection], Timers], Awaitable[Connection]]


class Pool:
    """Connections by origin.

    Args:
        dial: Opens a connection, held to its timers. Raises an UpstreamError.
        max_connections: How many there may be to one origin; further requests wait for their turn. None: no limit.
    """

    def __init__(self, dial: Dial, max_connections: int | None) -> None:
        self._dial = dial
        self._max_connections = max_connections
        self._places: dict[Origin, _Place] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def take(self, origin: Origin, timers: Timers) -> Connection:
        """A connection that is nobody else's until a response on it is complete. Raises an UpstreamError."""
        place = self._places.get(origin)
        if place is None:
            place = self._places[origin] = _Place(self._max_connections)
        if place.turns is not None:
            await _await_turn(place.turns, timers)
        return place.reuse() or await self._open(origin, place, timers)

    async def close(self) -> None:
        """Close every connection, and return when they are."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for place in self._places.values():
            for connection in place.connections:
                connection.close()
        while any(place.connections for place in self._places.values()):  # noqa: ASYNC110 - it is a turn or two
            await asyncio.sleep(0)

    async def _open(self, origin: Origin, place: _Place, timers: Timers) -> Connection:
        try:
            connection = await self._dial(origin, lambda: Connection(place), timers)
            if connection.is_closed:
                raise UpstreamCut("The provider closed the connection without an answer.")
        except BaseException:
            place.end_turn()
            raise
        place.connections.add(connection)
        if self._sweeper is None:
            self._sweep()
        return connection

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for place in self._places.values():
            place.close_idle(before=loop.time() - IDLE_SECONDS)
        is_needed = any(place.connections for place in self._places.values())
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep) if is_needed else None


class _Place:
    """The connections to one origin.

    Attributes:
        connections: All that are open.
        turns: Limits how many are in use at a time; None when nothing does.
    """

    __slots__ = ("_idle", "connections", "turns")

    def __init__(self, max_connections: int | None) -> None:
        self.connections: set[Connection] = set()
        self.turns = asyncio.Semaphore(max_connections) if max_connections is not None else None
        # In the order in which they became idle.
        self._idle: list[Connection] = []

    def reuse(self) -> Connection | None:
        """An idle connection, the one used last: it is the least likely to have been closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    def close_idle(self, before: float) -> None:
        """Close what nobody has used since then."""
        old = [connection for connection in self._idle if connection.idle_since < before]
        del self._idle[: len(old)]
        for connection in old:
            connection.close()

    def end_turn(self) -> None:
        """A connection is no longer in use: whoever waits may have one."""
        if self.turns is not None:
            self.turns.release()

    # What the connection calls

    def on_idle(self, connection: Connection) -> None:
        """It can be used again."""
        self._idle.append(connection)
        self.end_turn()

    def on_lost(self, connection: Connection) -> None:
        """It is closed, and was not in use."""
        self.connections.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)


async def _await_turn(turns: asyncio.Semaphore, timers: Timers) -> None:
    if not turns.locked():
        # Nothing to wait for, and so no timer.
        await turns.acquire()
        return
    timers.connecting()
    try:
        async with asyncio.timeout_at(timers.due_at):
            await turns.acquire()
    except TimeoutError as error:
        raise timers.error() from error
    timers.first_byte()
