"""Streams that crawl: their beginning is held back until it has shown that it is fast enough."""

from __future__ import annotations

import asyncio
from collections import deque

from llmproxy.api import AnswerStream, Clock, StreamProgress, UpstreamTimeout


class HeldStream:
    """A stream of which some has been read already."""

    def __init__(self, held: deque[bytes], stream: AnswerStream) -> None:
        self._held = held
        self._stream = stream

    async def read(self) -> bytes:
        """What was held back, then the rest. Raises an UpstreamError when cut."""
        return self._held.popleft() if self._held else await self._stream.read()

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()


async def fast_enough(
    stream: AnswerStream, progress: StreamProgress, clock: Clock, *, tokens_per_second: float, window_seconds: float
) -> AnswerStream:
    """The stream, once as many tokens have come as its first seconds must bring; a fast one is held only briefly.

    Raises UpstreamTimeout when they have not come by then, and whatever error the stream ends with.
    """
    ends = clock.monotonic() + window_seconds
    held: deque[bytes] = deque()
    while progress.estimated_tokens < tokens_per_second * window_seconds and not progress.is_complete:
        try:
            async with asyncio.timeout(ends - clock.monotonic()):
                data = await stream.read()
        except TimeoutError as error:
            sentence = f"The provider's stream began with less than {tokens_per_second:g} tokens a second."
            raise UpstreamTimeout(sentence, phase="first_byte") from error
        held.append(data)
        if not data:
            break
    return HeldStream(held, stream)
