"""A response whose body is still to be read, held to its timers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from llmproxy.errors import UpstreamError
from llmproxy.timers import Timers


class Carrier(Protocol):
    """What a response comes on."""

    def watch(self, due_at: float) -> None:
        """See to it that the response's timers are looked at by then."""

    def resume(self, response: Response) -> None:
        """All that had come was read: receive more."""

    def give_up(self, response: Response) -> None:
        """Nobody wants the rest."""


class Response:
    """A provider's response, filled by its connection while somebody reads it.

    Time during which nobody reads does not count: a slow client is not a silent provider.

    Attributes:
        status: HTTP status; 0 until the head is there.
        headers: Header fields, looked up without regard to case.
        buffered_bytes: What has come and was not read yet.
        is_over: Whether nothing more will come, one way or the other.
    """

    __slots__ = (
        "_buffered", "_carrier", "_error", "_has_begun", "_loop", "_sink", "_sink_error", "_waiter",
        "buffered_bytes", "headers", "is_over", "status", "timers",
    )  # fmt: skip

    def __init__(self, carrier: Carrier, timers: Timers) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.timers = timers
        self.buffered_bytes = 0
        self.is_over = False
        self._carrier = carrier
        self._loop = asyncio.get_running_loop()
        self._buffered: list[bytes] = []
        self._has_begun = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._sink_error: Exception | None = None

    async def head(self) -> None:
        """Wait for status and headers. Raises an UpstreamError."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self.wait()

    async def read(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises an UpstreamError."""
        while not self._buffered:
            if self._error is not None:
                raise self._error
            if self.is_over:
                return b""
            if self._has_begun:
                self.timers.next_gap(self._loop.time())
            await self.wait()
        self._has_begun = True
        return self._take()

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Give what comes to `sink` at once, until it says False, something has to be read, or nothing more comes.

        A piece is given as it is received, without a turn of the event loop and a task in between. What `sink` raises
        is raised here.
        """
        if self._buffered or self._error is not None or self.is_over:
            return
        self.timers.next_gap(self._loop.time())
        self._sink = sink
        try:
            await self.wait()
        finally:
            self._sink = None
        if self._sink_error is not None:
            raise self._sink_error

    def abort(self, error: UpstreamError) -> None:
        """Make the pending read, and every later one, raise `error`."""
        self._buffered.clear()
        self._error = error
        self.is_over = True
        self.close()
        self.wake()

    def close(self) -> None:
        """Give the response up; an unread rest closes the connection, so that the provider stops working."""
        self._carrier.give_up(self)

    async def wait(self) -> None:
        """Return when something has changed; the response fails when its timers run out first."""
        self._carrier.watch(self.timers.due_at)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # What the connection calls

    @property
    def has_come(self) -> bool:
        """Whether its head is there, or never will be."""
        return bool(self.status) or self.is_over

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, and nothing has come."""
        return self._waiter is not None and not self._waiter.done()

    def wake(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def add(self, piece: bytes) -> bool:
        """Some of the body is there: whether there is anything to wake up for."""
        if self._sink is not None:
            return self._pour(self._sink, piece)
        self._buffered.append(piece)
        self.buffered_bytes += len(piece)
        return True

    def complete(self) -> None:
        """All of the body is there."""
        self.is_over = True

    def fail(self, error: UpstreamError) -> None:
        """Nothing more comes; what has come before can still be read."""
        self._error = error
        self.is_over = True
        self.wake()

    def _pour(self, sink: Callable[[bytes], bool], piece: bytes) -> bool:
        self.timers.next_gap(self._loop.time())
        try:
            if sink(piece):
                return False
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self._sink_error = error
        self._sink = None
        return True

    def _take(self) -> bytes:
        buffered = self._buffered
        data = buffered[0] if len(buffered) == 1 else b"".join(buffered)
        buffered.clear()
        self.buffered_bytes = 0
        self._carrier.resume(self)
        return data
