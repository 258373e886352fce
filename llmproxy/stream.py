"""Streamed answers: held until the first content, relayed as whole events, and honest about how they end.

Two lanes. Nobody listens: bytes pass as they came, and what the record needs is found without decoding them.
Somebody listens (`on_stream_chunk`): each event is decoded, offered, and re-encoded only if it was changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, runtime_checkable

import orjson

from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.dialects.upstream_events import MAX_EVENT_BYTES, cut_short, is_whole, object_or_none
from llmproxy.errors import UpstreamBroken, UpstreamError
from llmproxy.exchange import AnswerStream, Chunk, Exchange
from llmproxy.lockstep import note_event
from llmproxy.providers import StreamDecoder
from llmproxy.request import Headers
from llmproxy.services import UpstreamResponse
from llmproxy.sse import DONE, SSEDecoder, encode_event, event_data, whole_events

Listener = Callable[[Exchange, Chunk], Sequence[Chunk]]
# Takes some bytes, and says whether more may follow at once.
Sink = Callable[[bytes], bool]

# What may be held back before the first content: enough for any start-up events, little enough for any memory.
_MAX_HELD_BYTES: Final = 1_048_576
# How long the client's end of the stream may wait for the provider's, once `[DONE]` has come.
_END_SECONDS: Final = 1.0


class Client(Protocol):
    """The client's side of one exchange, as the walk sees it."""

    bytes_sent: int
    status: int

    @property
    def is_open(self) -> bool:
        """Whether a response head has gone out, so that an error can only be an event in the stream."""

    async def read_body(self) -> bytes:
        """The request body. Raises BodyTooLarge, RequestTimeout, BadRequest or UnsupportedMediaType."""

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole response. Raises ClientDisconnected."""

    def expect_stream(self, headers: Headers) -> None:
        """The answer will be a stream, so silence may be filled with keep-alive comments, the first after this head."""

    def open_stream(self, headers: Headers) -> None:
        """Have the stream begin with this head, which goes out with the first bytes."""

    async def write(self, data: bytes) -> None:
        """Some bytes of the stream, waiting while the client is slow. Raises ClientDisconnected."""

    def write_at_once(self, data: bytes) -> bool:
        """Some bytes of the stream, if they can be written without waiting; False when they were not."""

    async def end_stream(self) -> None:
        """The stream is over. Raises ClientDisconnected."""

    def abort(self) -> None:
        """Break the connection off: there is nothing true left to say on it."""


@runtime_checkable
class Pouring(Protocol):
    """What can give pieces on as they are received."""

    async def pour(self, sink: Sink) -> None:
        """Give each piece to `sink` as it is received, until it says False, or there is something to read."""


class BodyCapture:
    """The first bytes of a body, for the audit; how many more there were is only counted."""

    __slots__ = ("_pieces", "_room", "size_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._room = max_bytes
        self._pieces: list[bytes] = []
        self.size_bytes = 0

    def add(self, data: bytes) -> None:
        """Keep what there is room for."""
        self.size_bytes += len(data)
        if self._room > 0:
            self._pieces.append(data[: self._room])
            self._room -= len(self._pieces[-1])

    @property
    def kept(self) -> bytes:
        """What was kept."""
        return b"".join(self._pieces)

    @property
    def is_truncated(self) -> bool:
        """Whether there was more."""
        return self.size_bytes > sum(map(len, self._pieces))


class UpstreamEvents:
    """A provider's stream as whole OpenAI events.

    `facts` knows usage, finish reasons and errors of what has passed so far.
    """

    def __init__(self, response: UpstreamResponse, decoder: StreamDecoder | None, facts: StreamFacts) -> None:
        self.facts = facts
        self._response = response
        self._pouring = response if isinstance(response, Pouring) else None
        self._decoder = decoder
        self._carry = b""
        self._held: list[bytes] = []
        self._failure: UpstreamError | None = None
        self._ended = False

    async def commit(self) -> None:
        """Read up to the first content and hold it back: until then another target may still answer.

        Raises the UpstreamError that came instead of content.
        """
        held_bytes = 0
        while held_bytes <= _MAX_HELD_BYTES:
            events = await self._next()
            if events:
                self._held.append(events)
                held_bytes += len(events)
            if self.facts.has_content:
                return
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise UpstreamBroken("The provider's stream ended without an answer.")

    async def read(self) -> bytes:
        """The next whole events; b"" at an honest end. Raises an UpstreamError when the stream was cut."""
        while not self._held and not self._ended:
            if self._failure is not None:
                raise self._failure
            if events := await self._next():
                return events
        held, self._held = b"".join(self._held), []
        return held

    async def pour(self, sink: Sink) -> None:
        """Give events to `sink` as they are received, until something is to be read: what it did not take, or an end.

        An event that passes so costs no turn of the event loop, and wakes no task.
        """
        if self._pouring is not None and self._goes_on():
            await self._pouring.pour(partial(self._give, sink))

    def _give(self, sink: Sink, data: bytes) -> bool:
        before = self.facts.event_count
        if events := self._fed(self._split(data)):
            note_event()
            # Where several come together there is more to do than time for it: reads gather more before each write.
            if self.facts.event_count - before > 1 or not sink(events):
                self._held.append(events)
        return self._goes_on()

    def _goes_on(self) -> bool:
        """Whether there may be more events, and none that are to be read."""
        return not (self._held or self.facts.saw_done or self._failure)

    def close(self) -> None:
        """Stop reading; the provider is told by the closed connection."""
        self._response.close()

    async def _next(self) -> bytes:
        data = await self._piece()
        events = self._split(data) if data else self._last()
        relayed = self._fed(events)
        if not data and self._failure is None:
            relayed += self._honest_end()
        return relayed

    def _fed(self, events: bytes) -> bytes:
        relayed = self.facts.feed(events) if events else b""
        if self.facts.error is not None:
            self._failure = self.facts.error
        return relayed

    async def _piece(self) -> bytes:
        """The next bytes; b"" at the end, and when all that could still come is the end."""
        if self.facts.saw_done:
            await self._await_end()
            return b""
        try:
            return await self._response.read()
        except UpstreamError:
            if not self.facts.is_complete:
                raise
            return b""

    async def _await_end(self) -> None:
        # The end of the body comes right behind [DONE]; once it is read the connection can be used again.
        with suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await self._response.read()

    def _split(self, data: bytes) -> bytes:
        if self._decoder is not None:
            return self._decoded(self._decoder.feed(data))
        events, self._carry = whole_events(self._carry, data)
        if len(self._carry) > MAX_EVENT_BYTES:
            raise UpstreamBroken(f"The provider sent an event of more than {MAX_EVENT_BYTES} bytes.")
        return events

    def _last(self) -> bytes:
        if self._decoder is not None:
            return self._decoded(self._decoder.finish())
        carry, self._carry = self._carry, b""
        # A last event without its blank line still counts when it is whole, and half of one is a cut.
        return carry + b"\n\n" if carry.strip() and is_whole(carry) else b""

    def _decoded(self, events: Iterable[bytes]) -> bytes:
        """What a decoder gives; when it fails half-way, what it gave before is still the client's."""
        whole = []
        try:
            for event in events:
                whole.append(event)  # noqa: PERF402 - a comprehension would lose what came before the failure
        except UpstreamError as error:
            self._failure = error
        return b"".join(whole)

    def _honest_end(self) -> bytes:
        if not self.facts.is_complete:
            raise cut_short()
        self._ended = True
        return b"" if self.facts.saw_done else DONE


class ChunkLane:
    """Events offered one by one to those who listen."""

    def __init__(self, exchange: Exchange, listener: Listener) -> None:
        self._exchange = exchange
        self._listener = listener
        self._decoder = SSEDecoder(MAX_EVENT_BYTES)
        self._done = b""

    def feed(self, events: bytes) -> bytes:
        """What the listeners made of some whole events."""
        return b"".join([self._offer(raw) for raw in self._decoder.feed(events)])

    def finish(self) -> bytes:
        """What the listeners held back, and the end mark after it."""
        return self._heard(Chunk(last=True)) + self._done

    def _offer(self, raw: bytes) -> bytes:
        data = event_data(raw)
        if data is not None and data.startswith(b"[DONE]"):
            self._done = raw
            return b""
        return self._heard(Chunk(raw, object_or_none(data) if data else None))

    def _heard(self, chunk: Chunk) -> bytes:
        return b"".join([encode_chunk(each) for each in self._listener(self._exchange, chunk)])


async def relay(
    exchange: Exchange, stream: AnswerStream, client: Client, listener: Listener | None, capture: BodyCapture | None
) -> None:
    """Pass a stream on to the client, at the client's pace.

    Raises an UpstreamError when the stream was cut, ClientDisconnected when nobody reads it.
    """
    lane = ChunkLane(exchange, listener) if listener is not None else None
    is_plain = lane is None and capture is None
    while events := await stream.read():
        note_event()
        await _pass_on(lane.feed(events) if lane else events, client, capture)
        if is_plain and isinstance(stream, UpstreamEvents):
            await stream.pour(client.write_at_once)
    if lane:
        await _pass_on(lane.finish(), client, capture)
    await client.end_stream()


async def _pass_on(data: bytes, client: Client, capture: BodyCapture | None) -> None:
    if not data:
        return
    if capture is not None:
        capture.add(data)
    await client.write(data)


def encode_chunk(chunk: Chunk) -> bytes:
    """A chunk's bytes: those it came with, or its document encoded when a plugin made it."""
    if chunk.raw or chunk.document is None:
        return chunk.raw
    return encode_event(orjson.dumps(chunk.document))
