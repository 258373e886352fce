"""One connection to a provider: requests go out on it one after the other, and their responses come back."""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol, cast

from llmproxy.errors import UpstreamBroken, UpstreamCut
from llmproxy.http1.reader import MalformedResponseError, ResponseReader
from llmproxy.http1.response import Response
from llmproxy.timers import Timers

# A response that nobody reads is received up to this, and then no further.
_MAX_BUFFERED_BYTES: Final = 262_144
# A larger body goes out in pieces of this size, so that what waits to be sent is one of them and not a copy of all.
_PIECE_BYTES: Final = 262_144
# RFC 9110, section 9.2.2.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class Keeper(Protocol):
    """Who keeps connections while nobody uses them. Of each use, `on_idle` or `end_turn` tells the end."""

    def on_idle(self, connection: Connection) -> None:
        """A response is complete, and the connection can be used again."""

    def end_turn(self) -> None:
        """A response is over, and its connection with it."""

    def on_lost(self, connection: Connection) -> None:
        """The connection is closed."""


class Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        idle_since: The event loop's time when the last response was complete.
        is_closed: Whether it is over.
    """

    _transport: asyncio.Transport

    def __init__(self, keeper: Keeper) -> None:
        self.idle_since = 0.0
        self.is_closed = False
        self._loop = asyncio.get_running_loop()
        self._keeper = keeper
        self._reader = ResponseReader()
        self._response: Response | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._requests = 0
        self._is_sent = True
        self._was_found_closed = False
        self._is_writing_paused = False
        self._is_reading_paused = False

    # Requests

    def is_usable(self) -> bool:
        """Whether a request can be sent: it is open, and nothing waits on it, be it the news of its end."""
        return not self._transport.is_closing() and not self._news.poll(0)

    async def ask(self, head: bytes, body: bytes, timers: Timers, *, is_bodiless: bool = False) -> Response:
        """Send a request, and return once the response's head is there. Raises an UpstreamError."""
        response = self._response = Response(self, timers)
        self._requests += 1
        self._reader.begin(is_bodiless=is_bodiless)
        try:
            is_large = len(body) > _PIECE_BYTES
            self._transport.write(head if is_large else head + body)
            self._was_found_closed = self._transport.is_closing()
            if is_large:
                await self._send_pieces(response, memoryview(body))
            await response.head()
        except BaseException:
            response.close()
            raise
        return response

    def may_be_repeated(self, method: str) -> bool:
        """Whether a request that got no answer on this connection may be sent once more, on another one.

        A provider closes an idle connection at any moment, also just as it is used again. Nothing was processed if
        the connection was found closed at the very write; then any request is repeated. If it ended after the write
        without a byte in answer, the provider may as well have begun: a second generation would be billed as well.
        Only methods without such effects are repeated then (RFC 9110, section 9.2.2; Go's and nginx's clients draw
        the same line), and a POST fails as a cut, for the failover loop to decide with the operator's rules.
        """
        if self._requests < 2 or self._reader.has_begun:
            return False
        return self._was_found_closed or method in _IDEMPOTENT

    def close(self) -> None:
        """Close at once: an idle connection has nothing left to send, and of a busy one nobody wants the rest."""
        self._transport.abort()

    async def _send_pieces(self, response: Response, body: memoryview) -> None:
        self._is_sent = False
        for start in range(0, len(body), _PIECE_BYTES):
            self._transport.write(body[start : start + _PIECE_BYTES])
            while self._is_writing_paused and not response.has_come:
                await response.wait()
            if response.has_come:
                # Answered before it was read, as a 413 is, or lost: the rest is not wanted.
                return
        self._is_sent = True

    # What the response calls

    def watch(self, due_at: float) -> None:
        """See to it that the response's timers are looked at by then.

        The one timer of a connection is left as it is when it comes early enough: it then looks and waits on.
        """
        if self._timer is not None:
            if self._timer.when() <= due_at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_at, self._check)

    def resume(self, response: Response) -> None:
        """All that had come was read: receive more."""
        if self._is_reading_paused and response is self._response:
            self._is_reading_paused = False
            self._transport.resume_reading()

    def give_up(self, response: Response) -> None:
        """Close, unless the response is complete and the connection is somebody else's."""
        if response is self._response:
            self._let_go()
            self.close()

    def _let_go(self) -> None:
        self._response = None
        self._keeper.end_turn()

    def _check(self) -> None:
        self._timer = None
        response = self._response
        if response is None or not response.is_awaited:
            return
        if self._loop.time() < response.timers.due_at:
            self.watch(response.timers.due_at)
        else:
            response.abort(response.timers.error())

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        # uvloop's transports have the methods without the base class.
        self._transport = cast("asyncio.Transport", transport)
        # Asks the kernel, which knows what the event loop has not come to yet.
        self._news = select.poll()
        self._news.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        response = self._response
        if response is None:
            # Nobody asked for it, and it must not answer what is asked next: a late 408, a second response.
            return self.close()
        try:
            self._reader.feed(data)
        except MalformedResponseError as error:
            return self._break(response, error)
        return self._pass_on(response)

    def eof_received(self) -> bool:
        """The provider has ended its side; so do we."""
        self._end(None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is closed."""
        self.is_closed = True
        self._end(error)
        if self._timer is not None:
            self._timer.cancel()
        self._keeper.on_lost(self)

    def pause_writing(self) -> None:
        """The provider takes the request more slowly than it is sent."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_writing_paused = False
        if self._response is not None:
            self._response.wake()

    # Responses

    def _pass_on(self, response: Response) -> None:
        reader = self._reader
        if not response.status and reader.head is not None:
            response.status, response.headers = reader.head
        if reader.pieces and not response.add(reader.take()) and not reader.is_complete:
            return
        if reader.is_complete:
            self._complete(response)
        elif response.buffered_bytes > _MAX_BUFFERED_BYTES and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()
        response.wake()

    def _complete(self, response: Response) -> None:
        response.complete()
        if not (self._reader.keeps_alive and self._is_sent):
            return self.give_up(response)
        self.resume(response)
        self._response = None
        self.idle_since = self._loop.time()
        return self._keeper.on_idle(self)

    def _break(self, response: Response, error: MalformedResponseError) -> None:
        broken = UpstreamBroken("The provider's answer is not valid HTTP.")
        broken.__cause__ = error
        if self._reader.pieces:
            response.add(self._reader.take())
        response.fail(broken)
        self.give_up(response)

    def _end(self, error: Exception | None) -> None:
        response = self._response
        if response is None:
            return None
        self._let_go()
        if error is None and self._reader.finish():
            response.complete()
            return response.wake()
        if response.status:
            sentence = "The provider's answer broke off before its end."
        elif error is None:
            sentence = "The provider closed the connection without an answer."
        else:
            sentence = "The connection to the provider was lost."
        cut = UpstreamCut(sentence)
        cut.__cause__ = error
        return response.fail(cut)
