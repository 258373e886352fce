"""A stream that others may listen to while it passes: recorded as far back as there is room, and no further."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from llmproxy.api import AnswerStream, UpstreamCut

_CUT: Final = "The answer that this request shared was cut off before its end."
_TOO_FAR_BEHIND: Final = "The client fell too far behind the answer that its request shared."


class Tape:
    """What has passed of one stream.

    Args:
        max_bytes: What is kept. Whoever falls behind that loses the stream, instead of holding it all in memory.

    Attributes:
        has_ended: Whether the stream came to its honest end.
    """

    def __init__(self, max_bytes: int) -> None:
        self.has_ended = False
        self._max_bytes = max_bytes
        self._pieces: deque[bytes] = deque()
        self._dropped = 0
        self._size_bytes = 0
        self._is_cut = False
        self._news = asyncio.Event()

    @property
    def is_whole(self) -> bool:
        """Whether nothing was dropped, so that the beginning is still there."""
        return not self._dropped

    @property
    def recorded(self) -> bytes:
        """All that is kept."""
        return b"".join(self._pieces)

    def add(self, piece: bytes) -> None:
        """Some more has passed."""
        self._pieces.append(piece)
        self._size_bytes += len(piece)
        while self._size_bytes > self._max_bytes:
            self._size_bytes -= len(self._pieces.popleft())
            self._dropped += 1
        self._tell()

    def end(self) -> None:
        """That was all of it."""
        self.has_ended = True
        self._tell()

    def cut(self) -> None:
        """Nothing more comes, and it was not all. After the end it changes nothing."""
        self._is_cut = True
        self._tell()

    async def read(self, position: int) -> tuple[bytes, int]:
        """All that has passed since a position, and the next position; b"" at the end. Raises UpstreamCut."""
        while True:
            if position < self._dropped:
                raise UpstreamCut(_TOO_FAR_BEHIND)
            if pieces := list(self._pieces)[position - self._dropped :]:
                return b"".join(pieces), position + len(pieces)
            if self.has_ended:
                return b"", position
            if self._is_cut:
                raise UpstreamCut(_CUT)
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class RecordedStream:
    """A provider's stream on its way to the client, recorded as it is read. Nothing in it is decoded.

    Args:
        begin: Called with the tape before the first piece is on it: from then on, nothing can take the answer back.
    """

    def __init__(self, stream: AnswerStream, tape: Tape, begin: Callable[[Tape], None]) -> None:
        self._stream = stream
        self._tape = tape
        self._begin: Callable[[Tape], None] | None = begin

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises an UpstreamError when it was cut."""
        piece = await self._stream.read()
        if self._begin is not None:
            self._begin(self._tape)
            self._begin = None
        if piece:
            self._tape.add(piece)
        else:
            self._tape.end()
        return piece

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()


class ListeningStream:
    """A tape on its way to another client, at that client's own pace.

    Args:
        rest: Gives what follows on what was heard when the tape is cut, or raises UpstreamCut.
    """

    def __init__(self, tape: Tape, rest: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._tape = tape
        self._rest = rest
        self._position = 0
        self._has_rest = False

    async def read(self) -> bytes:
        """All that has passed since the last call; b"" at the end. Raises UpstreamCut when there is no more."""
        if self._has_rest:
            return b""
        try:
            piece, self._position = await self._tape.read(self._position)
        except UpstreamCut:
            if not self._tape.is_whole:
                raise
            self._has_rest = True
            # All of the tape was heard, or reading it would have given more.
            return await self._rest(self._tape.recorded)
        return piece

    def close(self) -> None:
        """Whoever made the stream goes on without this listener."""
