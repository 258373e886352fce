"""Streams that seem to fail, around streams that do not."""

from __future__ import annotations

from typing import Final

from llmproxy.api import AnswerStream, Clock, UpstreamCut

_EVENT_END: Final = b"\n\n"


class CutStream:
    """The first events of a stream, then a cut.

    Args:
        after_events: How many pass; the first read, which holds the content that made it an answer, passes whole.
    """

    def __init__(self, stream: AnswerStream, after_events: int) -> None:
        self._stream = stream
        self._left = after_events
        self._has_begun = False

    async def read(self) -> bytes:
        """The next events. Raises UpstreamCut when there were enough."""
        if self._has_begun and self._left <= 0:
            raise UpstreamCut("A drill broke this stream off.")
        events = await self._stream.read()
        if self._has_begun:
            events = _first(events, self._left)
        self._left -= events.count(_EVENT_END)
        self._has_begun = True
        return events

    def close(self) -> None:
        """Stop the stream inside."""
        self._stream.close()


class SlowStream:
    """A stream that waits before each piece."""

    def __init__(self, stream: AnswerStream, clock: Clock, pause_seconds: float) -> None:
        self._stream = stream
        self._clock = clock
        self._pause_seconds = pause_seconds

    async def read(self) -> bytes:
        """The next piece, late."""
        await self._clock.sleep(self._pause_seconds)
        return await self._stream.read()

    def close(self) -> None:
        """Stop the stream inside."""
        self._stream.close()


def _first(events: bytes, count: int) -> bytes:
    """The first of some whole events."""
    ended = events.split(_EVENT_END)[:count]
    return events[: sum(len(event) + len(_EVENT_END) for event in ended)]
