"""An upstream that answers, or misbehaves, exactly as a test's script says, down to the byte."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Final, Self

from llmproxy.testing.connections import close, reset, wait_until
from llmproxy.testing.http1 import Head, MalformedMessageError, MessageReader
from llmproxy.testing.messages import Ending, Message, RecordedRequest, Reply, Script
from llmproxy.testing.replies import fail

HOST: Final = "127.0.0.1"

_REQUEST_LINE: Final = re.compile(r"([A-Z]+) ([!-~]+) HTTP/1\.1")

# A client error, so that nobody tries again: the test has asked for more than it scripted.
SCRIPT_EXHAUSTED: Final = fail(400, code="script_exhausted", message="The scripted upstream has no reply left.")


@dataclass(slots=True)
class ServedExchange:
    """One request and how far its reply got.

    Attributes:
        events_sent: Pieces of the body sent: events of a stream; a body that is no stream counts as one.
        bytes_accepted: Bytes the kernel took, head and framing included, in whole writes.
        is_sent: Whether all events there were to send have gone out.
        is_ended: Whether it is over, one way or the other.
        is_cancelled: Whether the client hung up before that, be it while the upstream kept silent.
    """

    request: RecordedRequest
    events_sent: int = 0
    bytes_accepted: int = 0
    is_sent: bool = False
    is_ended: bool = False
    is_cancelled: bool = False


class ScriptedUpstream:
    """Serves `replies` in the order in which requests arrive, then `default` for ever; used as `async with`.

    Keeps connections alive and serves any number at once. A client that ends its side before the reply was sent
    has hung up. What a function in the script raises, such as a failed assertion, is raised at the end.

    Attributes:
        replies: What is still to be served; may be added to.
        default: What is served when `replies` is empty.
        exchanges: Every request received whole, with how far its reply got.
        malformed: What was wrong with each request that was not HTTP/1.1; it was answered with 400.
        connections_opened: How many connections there have been.
        port: The port on the loopback address.
    """

    def __init__(self, replies: Iterable[Script] = (), *, default: Script = SCRIPT_EXHAUSTED) -> None:
        self.replies = deque(replies)
        self.default = default
        self.exchanges: list[ServedExchange] = []
        self.malformed: list[str] = []
        self.connections_opened = 0
        self.port = 0
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._script_errors: list[Exception] = []
        self._is_closing = False

    def __repr__(self) -> str:
        return (
            f"<ScriptedUpstream, {len(self.exchanges)} requests, {len(self.cancelled)} cancelled, "
            f"{self.open_connections} of {self.connections_opened} connections open>"
        )

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closing = True
        self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()
        await asyncio.gather(*self._connections)
        await self._server.wait_closed()
        if self._script_errors and error is None:
            raise ExceptionGroup("The upstream's script raised.", self._script_errors)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"{self.origin}/v1"

    @property
    def requests(self) -> Sequence[RecordedRequest]:
        """The requests, in the order in which they arrived."""
        return [exchange.request for exchange in self.exchanges]

    @property
    def cancelled(self) -> Sequence[ServedExchange]:
        """The exchanges whose client hung up before the reply had been sent."""
        return [exchange for exchange in self.exchanges if exchange.is_cancelled]

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    async def wait_for(self, predicate: Callable[[], bool], seconds: float = 5) -> None:
        """Return as soon as `predicate()` holds. Raises TimeoutError when it does not within `seconds`."""
        try:
            await wait_until(predicate, seconds)
        except TimeoutError as error:
            raise TimeoutError(f"Waited {seconds} seconds in vain: {self!r}.") from error

    async def _serve(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections_opened += 1
        self._connections[task] = writer
        # No buffer of our own, so that what was written is what the kernel accepted.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._converse(MessageReader(stream), writer, self.connections_opened)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # A client may leave whenever it likes.
        except MalformedMessageError as error:
            self.malformed.append(str(error))
            await _refuse(writer)
        except Exception as error:  # noqa: BLE001 a script is a test's own code and may raise anything
            self._script_errors.append(error)
        finally:
            await close(writer)
            del self._connections[task]

    async def _converse(self, reader: MessageReader, writer: asyncio.StreamWriter, connection: int) -> None:
        while head := await reader.read_head():
            method, target = _request_line(head)
            body = await reader.read_body(head)
            number = len(self.exchanges) + 1
            request = RecordedRequest(number, connection, method, target, head.fields, head.raw, body)
            exchange = ServedExchange(request)
            self.exchanges.append(exchange)
            message = self._next_reply(request).message(request)
            await self._answer(exchange, message, reader, writer)
            if exchange.is_cancelled or message.ending is not Ending.COMPLETE or _wants_close(request):
                return

    def _next_reply(self, request: RecordedRequest) -> Reply:
        script = self.replies.popleft() if self.replies else self.default
        return script if isinstance(script, Reply) else script(request)

    async def _answer(
        self, exchange: ServedExchange, message: Message, reader: MessageReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send the reply for as long as the client is there."""
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(_send(exchange, message, writer))
            leaving = tasks.create_task(_hang_up(reader))
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            sending.cancel()
            leaving.cancel()
        exchange.is_cancelled = not exchange.is_sent and not self._is_closing
        exchange.is_ended = True


async def _send(exchange: ServedExchange, message: Message, writer: asyncio.StreamWriter) -> None:
    """Send the reply to its scripted end, or until the connection breaks."""
    with suppress(ConnectionError):
        await asyncio.sleep(message.head_delay_seconds)
        await _write(exchange, message, writer, message.head())
        pieces = iter(message.pieces)
        for piece in islice(pieces, message.sent_pieces):
            await _wait_for_turn(message)
            await _write(exchange, message, writer, message.frame(piece))
            exchange.events_sent += 1
        exchange.is_sent = message.ending is not Ending.SILENCE
        await _write(exchange, message, writer, message.tail(next(pieces, b"")))
        await _end(message.ending, writer)


async def _wait_for_turn(message: Message) -> None:
    if message.permits is not None:
        await message.permits.acquire()
    if message.piece_delay_seconds:
        await asyncio.sleep(message.piece_delay_seconds)


async def _write(exchange: ServedExchange, message: Message, writer: asyncio.StreamWriter, data: bytes) -> None:
    step = message.slice_bytes or max(len(data), 1)
    for start in range(0, len(data), step):
        part = data[start : start + step]
        writer.write(part)
        await writer.drain()
        exchange.bytes_accepted += len(part)
        # Even when the kernel takes all at once, whoever shares the loop gets to read in between.
        await asyncio.sleep(0)


async def _end(ending: Ending, writer: asyncio.StreamWriter) -> None:
    if ending is Ending.SILENCE:
        await asyncio.get_running_loop().create_future()
    if ending is Ending.RESET:
        reset(writer)


async def _hang_up(reader: MessageReader) -> None:
    """Return when the client is gone."""
    with suppress(ConnectionError):
        await reader.wait_for_end()


async def _refuse(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()


def _request_line(head: Head) -> tuple[str, str]:
    match = _REQUEST_LINE.fullmatch(head.start_line)
    if match is None:
        raise MalformedMessageError(f"{head.start_line!r} is not a request line.")
    if len(head.fields.get_all("host")) != 1:
        raise MalformedMessageError("A request has exactly one Host.")
    return match[1], match[2]


def _wants_close(request: RecordedRequest) -> bool:
    return request.headers.get("connection", "").lower() == "close"
