"""Clients that hang up in the middle of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.load import OK, Client, Seen, run
from benchmarks.traffic import Order, unchunked_so_far

_EVENT: Final = b"data:"


@dataclass(frozen=True, slots=True)
class Hangups:
    """Some streams at once, each given up by its client: one at once, the next after an event, and so on.

    Attributes:
        events: What each stream would have had.
        most: The most events that a client reads.
        key: What those present that read nothing: whether a proxy has even read their requests, nobody knows.
    """

    count: int
    events: int
    gap_ms: int
    most: int
    key: str

    async def run(self, port: int, numbers: Iterator[int]) -> Seen:
        """Open all, and wait until all have been given up. Raises WrongAnswerError."""
        seen = Seen()
        clients = [self._client(seen, next(numbers), each % (self.most + 1)) for each in range(self.count)]
        return await run(clients, port, seen)

    def _client(self, seen: Seen, number: int, events: int) -> _Quitter:
        order = Order(number, self.events, self.gap_ms)
        return _Quitter(seen, order if events else replace(order, key=self.key), events)


class _Quitter(Client):
    """Reads a stream up to so many events."""

    def __init__(self, seen: Seen, order: Order, events: int) -> None:
        super().__init__(seen)
        self._order = order
        self._events = events
        self._received = b""

    def start(self) -> None:
        self._send(self._order)
        if not self._events:
            self._quit()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self.finished.done() and self._received.count(_EVENT) >= self._events:
            self._check()

    def _check(self) -> None:
        head, _, body = self._received.partition(b"\r\n\r\n")
        if not head.startswith(OK) or not self._order.stream().startswith(unchunked_so_far(body)):
            return self._fail(f"The stream differs: {self._received[:500]!r}")
        self._seen.requests += 1
        return self._quit()

    def _quit(self) -> None:
        self._finish()
        self.close()
