"""Requests that are ready at the same time take the steps of their way together.

A request alone goes through so much code that it pushes out of the processor's caches what the next one is about to
need. Where all that are ready do the first step, then all the second, a step finds its code there: with many clients
that is a quarter of a request's time. A step apart is a turn of the event loop, so nobody waits where the events of
streams have most of a turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Generator
from typing import Final

# How many events of streams there may be for each time that a request comes to `assemble`, which it does twice.
_MOST_EVENTS: Final = 3
# Of how many times the average is told.
_REMEMBERED: Final = 64


class _Turn:
    """Lets everything run that is ready.

    Attributes:
        waiting: How many requests wait for it now.
        events: How many events of streams have passed since a request came to `assemble`.
        usual_events: How many there are, on an average.
    """

    def __init__(self) -> None:
        self.waiting = self.events = 0
        self.usual_events = 0.0

    def __await__(self) -> Generator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class _AtOnce:
    """Waits for nothing."""

    def __await__(self) -> Generator[None]:
        yield from ()


# A process has one event loop.
_TURN: Final = _Turn()
_AT_ONCE: Final = _AtOnce()


def assemble() -> Awaitable[None]:
    """To be awaited where requests begin, or go on after they have waited: others that are ready come along."""
    turn = _TURN
    turn.usual_events += (turn.events - turn.usual_events) / _REMEMBERED
    turn.events = 0
    return turn if turn.usual_events <= _MOST_EVENTS and _ready() else _AT_ONCE


def in_step() -> Awaitable[None]:
    """To be awaited between two steps: others come as far first, if they are most of what is ready."""
    waiting = _TURN.waiting
    return _TURN if waiting and waiting * 2 >= len(_ready()) else _AT_ONCE


def note_event() -> None:
    """An event of a stream has passed."""
    _TURN.events += 1


def _ready() -> Collection[object]:
    # What is ready only asyncio's own event loop shows; on another one nobody waits.
    ready: Collection[object] = getattr(asyncio.get_running_loop(), "_ready", ())
    return ready
