"""The load: clients that check every answer as its order says, and note when it came."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Protocol, cast

from benchmarks.traffic import Order, unchunked

# Far beyond anything that is measured: a proxy that never answers must not hang the run.
DEADLINE_SECONDS: Final = 60
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
OK: Final = b"HTTP/1.1 200 "


class WrongAnswerError(Exception):
    """An answer was not the one that the upstream gave."""


@dataclass(slots=True)
class Seen:
    """What the clients saw. Durations are in seconds.

    Attributes:
        seconds: From the first request to the end of the last answer.
        units: Answers, or events of streams.
        waits: From each request to the end of its whole answer, or to the first event of its stream.
        stretches: How long each paced stream took, against how long it should have taken.
    """

    seconds: float = 0.0
    requests: int = 0
    units: int = 0
    waits: list[float] = field(default_factory=list)
    stretches: list[float] = field(default_factory=list)


class Load(Protocol):
    """Something to do to a subject."""

    async def run(self, port: int, numbers: Iterator[int]) -> Seen:
        """Do it. Raises WrongAnswerError."""


@dataclass(frozen=True, slots=True)
class WholeAnswers:
    """Some clients, each with a connection of its own and the next request as soon as the last is answered.

    Attributes:
        order: Makes the order of a number.
        field: What the head of every answer has to have in it.
    """

    clients: int
    seconds: float
    order: Callable[[int], Order] = Order
    field: bytes = b""

    async def run(self, port: int, numbers: Iterator[int]) -> Seen:
        """Ask until the time is over. Raises WrongAnswerError."""
        seen, until = Seen(), perf_counter() + self.seconds
        orders = map(self.order, numbers)
        return await run([_Asker(seen, orders, until, self.field) for _ in range(self.clients)], port, seen)


@dataclass(frozen=True, slots=True)
class Streams:
    """Some streams at once.

    Attributes:
        when_live: Called once, when every stream has had its first event.
        order: Makes the order of a number, the events and the gap.
    """

    count: int
    events: int
    gap_ms: int = 0
    when_live: Callable[[], None] | None = None
    order: Callable[[int, int, int], Order] = Order

    async def run(self, port: int, numbers: Iterator[int]) -> Seen:
        """Read every stream to its end. Raises WrongAnswerError."""
        seen = Seen()
        listeners = [
            _Listener(seen, self.order(next(numbers), self.events, self.gap_ms), self._is_live)
            for _ in range(self.count)
        ]
        return await run(listeners, port, seen)

    def _is_live(self, seen: Seen) -> None:
        if self.when_live and len(seen.waits) == self.count:
            self.when_live()


class Client(asyncio.Protocol):
    """One connection."""

    _transport: asyncio.Transport

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        # uvloop's transports have the methods without the base class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """It has been closed, by either side."""
        self._fail("The connection was closed before the answer was complete.")

    def start(self) -> None:
        """Send the first request."""
        raise NotImplementedError

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def _send(self, order: Order) -> None:
        self._order = order
        self._sent_at = perf_counter()
        self._transport.write(order.request())

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)

    def _fail(self, reason: str) -> None:
        if not self.finished.done():
            self.finished.set_exception(WrongAnswerError(reason))


class _Asker(Client):
    """Asks for whole answers, one after the other."""

    def __init__(self, seen: Seen, orders: Iterator[Order], until: float, field: bytes) -> None:
        super().__init__(seen)
        self._orders = orders
        self._until = until
        self._field = field
        self._received = b""

    def start(self) -> None:
        self._send(next(self._orders))

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head_size = received.find(b"\r\n\r\n") + 4
        if head_size < 4:
            return None
        length = _LENGTH.search(received, 0, head_size)
        if length is None or not received.startswith(OK) or received.find(self._field, 0, head_size) < 0:
            return self._fail(f"Not an answer: {received[:500]!r}")
        if len(received) >= head_size + int(length[1]):
            self._received = b""
            self._answered(received[head_size:])
        return None

    def _answered(self, body: bytes) -> None:
        now = perf_counter()
        if not self._order.is_answer(body):
            return self._fail(f"The answer differs: {body[:500]!r}")
        self._seen.requests += 1
        self._seen.units += 1
        self._seen.waits.append(now - self._sent_at)
        return self.start() if now < self._until else self._finish()


class _Listener(Client):
    """Reads one stream."""

    def __init__(self, seen: Seen, order: Order, is_live: Callable[[Seen], None]) -> None:
        super().__init__(seen)
        self._order = order
        self._is_live = is_live
        self._pieces: list[bytes] = []
        self._last = b""
        self._first_at: float | None = None

    def start(self) -> None:
        self._send(self._order)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._last = self._last[-4:] + data
        if self._first_at is None and b"data:" in data:
            self._first_at = perf_counter()
            self._seen.waits.append(self._first_at - self._sent_at)
            self._is_live(self._seen)
        if self._last.endswith(b"0\r\n\r\n"):
            self._ended()

    def _ended(self) -> None:
        now, order = perf_counter(), self._order
        head, _, body = b"".join(self._pieces).partition(b"\r\n\r\n")
        if not head.startswith(OK) or self._first_at is None or not order.is_stream(unchunked(body)):
            return self._fail(f"The stream differs: {head!r} {body[-500:]!r}")
        self._seen.requests += 1
        self._seen.units += order.events
        if order.gap_ms:
            self._seen.stretches.append((now - self._first_at) / ((order.events - 1) * order.gap_ms / 1000))
        return self._finish()


async def run(clients: Sequence[Client], port: int, seen: Seen) -> Seen:
    """Connect everybody, start everybody, and wait for everybody. Raises WrongAnswerError."""
    connected: list[Client] = []
    try:
        for client in clients:
            await _connect(client, port)
            connected.append(client)
        started = perf_counter()
        for client in clients:
            client.start()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.gather(*(client.finished for client in clients))
        seen.seconds = perf_counter() - started
    finally:
        for client in connected:
            client.close()
    return seen


async def _connect(client: Client, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
