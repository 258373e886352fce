"""Exchanges in the gateway's own name: a plugin's request, carried through the same walk as every client's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llmproxy.endpoints import PATHS
from llmproxy.errors import LLMProxyError
from llmproxy.exchange import Answer, Exchange
from llmproxy.ids import new_id
from llmproxy.pipeline import Pipeline
from llmproxy.request import Document, Headers, Operation
from llmproxy.services import Clock

_INHERITED: Final = ("x-llmproxy-region",)


class OwnExchanges:
    """Makes exchanges for plugins, with whichever configuration serves at the time.

    Args:
        pipeline: Gives the walk of the configuration that serves.
    """

    def __init__(self, pipeline: Callable[[], Pipeline], clock: Clock) -> None:
        self._pipeline = pipeline
        self._clock = clock

    async def send(self, parent: Exchange, operation: Operation, document: Document, *, origin: str) -> Answer:
        """The whole answer to a request asked for by whoever asked for `parent`.

        Raises the LLMProxyError it ended with.
        """
        exchange = self._made(parent, operation, origin)
        client = _Collector()
        await self._pipeline().handle_own(exchange, document, client)
        if exchange.error is not None:
            raise exchange.error
        return Answer(client.status, client.headers, b"".join(client.pieces))

    def _made(self, parent: Exchange, operation: Operation, origin: str) -> Exchange:
        now = self._clock.now()
        exchange = Exchange(
            id=new_id(now),
            admitted_at=now,
            started_monotonic=self._clock.monotonic(),
            operation=operation,
            path=PATHS[operation],
            # None of the client's were meant for another request than its own, but where it may go holds for all.
            headers={name: parent.headers[name] for name in _INHERITED if name in parent.headers},
            origin=origin,
            parent_id=parent.id,
        )
        exchange.principal, exchange.attribution = parent.principal, parent.attribution
        return exchange


class _Collector:
    """A client that keeps what it is sent: the walk's other side when nobody is connected."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.bytes_sent = 0
        self.headers: Headers = ()
        self.status = 0
        self.is_open = False

    async def read_body(self) -> bytes:
        raise LLMProxyError("An exchange of the gateway's own has no body to read.")

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.headers = status, headers
        await self.write(body)

    def expect_stream(self, headers: Headers) -> None:
        self.headers = headers

    def open_stream(self, headers: Headers) -> None:
        self.status, self.headers, self.is_open = 200, headers, True

    async def write(self, data: bytes) -> None:
        self.write_at_once(data)

    def write_at_once(self, data: bytes) -> bool:
        self.pieces.append(data)
        self.bytes_sent += len(data)
        return True

    async def end_stream(self) -> None:
        pass

    def abort(self) -> None:
        pass
