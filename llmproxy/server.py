"""The side clients talk to: aiohttp's `web.Server`, our own routes, and a client's connection as the walk sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong
from multidict import CIMultiDict

from llmproxy.config import ServerConfig
from llmproxy.dialects.openai_errors import error_body, error_headers
from llmproxy.errors import (
    BadRequest,
    BodyTooLarge,
    ClientDisconnected,
    ClientError,
    LLMProxyError,
    RequestTimeout,
    UnsupportedMediaType,
)
from llmproxy.lockstep import in_step
from llmproxy.request import Headers
from llmproxy.response_head import head_bytes
from llmproxy.sse import COMMENT

_STREAM_HEAD: Final = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)
_WITHOUT_BODY: Final = frozenset({204, 304})
# A quarter of the 64 KiB above which asyncio makes a writer wait.
_SMALL_BYTES: Final = 16_384
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})
_WRONG_ENCODING: Final = "The request body's content encoding is not supported; send gzip or plain JSON."
_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b"
)
# aiohttp waits for so long before it cancels a handler, and again before it lets go of one; 0 would be for ever.
_BEFORE_CANCELLING_SECONDS: Final = 0.01

Handler = Callable[["ClientConnection"], Awaitable[None]]


class ClientConnection:
    """One request of a client, and the response to it: the `Client` of the walk."""

    def __init__(self, request: web.BaseRequest, config: ServerConfig, server: Server) -> None:
        self.request = request
        self.bytes_sent = 0
        self.status = 499
        self.last_write_seconds = asyncio.get_running_loop().time()
        self.response: web.StreamResponse | None = None
        self.must_close = False
        self._config = config
        self._server = server
        self._stream_headers: Headers = ()
        self._is_chunked = False

    @property
    def is_open(self) -> bool:
        """Whether a response's head has gone out."""
        return self.response is not None

    async def read_body(self) -> bytes:
        """The body, decoded if it came compressed, and never more of it than `server.max_body_bytes`."""
        self._check_head()
        if self.request.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if self.request.content.is_eof():
                # It has come with its head, as most do: there is nothing to wait for.
                return self._checked(self.request.content.read_nowait())
            async with asyncio.timeout(self._config.body_seconds):
                return await self._read_body()
        except TimeoutError as error:
            raise RequestTimeout(
                f"The request body did not arrive within {self._config.body_seconds:g} seconds."
            ) from error
        except web.RequestPayloadError as error:
            raise BadRequest("The request body could not be read; its framing or its compression is broken.") from error

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole response, head and body in one write."""
        self._server.streams.discard(self)
        has_length = status not in _WITHOUT_BODY
        head = self._begin(status, headers, f"content-length: {len(body)}\r\n" if has_length else "")
        await in_step()
        await self._written(head + body if has_length and self.request.method != "HEAD" else head)
        self.bytes_sent += len(body)

    async def refuse(self, error: LLMProxyError) -> None:
        """A whole response that says why there is no other."""
        await self.send(error.http_status, error_headers(error), error_body(error, None))

    def expect_stream(self, headers: Headers) -> None:
        """The answer will be a stream: from now on, keep-alive comments go out while nothing else does."""
        self._server.streams.add(self)
        self._stream_headers = headers

    def open_stream(self, headers: Headers) -> None:
        """Have the stream begin with this head, which goes out with the first bytes, if none has gone out yet."""
        self._stream_headers = headers

    async def write(self, data: bytes) -> None:
        """Some bytes of the stream, waiting while the client is slow."""
        self.last_write_seconds = asyncio.get_running_loop().time()
        await self._written(self._stream_head() + self._framed(data))
        self.bytes_sent += len(data)

    def write_at_once(self, data: bytes) -> bool:
        """Some bytes of the stream, if the last ones have gone and these are few; False when they were not written."""
        transport = self.request.transport
        if transport is None or transport.is_closing() or len(data) > _SMALL_BYTES:
            return False
        if self.response is None or transport.get_write_buffer_size():
            return False
        self.last_write_seconds = asyncio.get_running_loop().time()
        transport.write(self._framed(data))
        self.bytes_sent += len(data)
        return True

    async def end_stream(self) -> None:
        """The stream is over."""
        self._server.streams.discard(self)
        await self._written(self._stream_head() + (b"0\r\n\r\n" if self._is_chunked else b""))

    def abort(self) -> None:
        """Break the connection off."""
        self._server.streams.discard(self)
        if self.request.transport is not None:
            self.request.transport.abort()

    async def keep_alive(self) -> None:
        """A comment, so that nobody between us and the client takes silence for death."""
        if not self._transport.get_write_buffer_size():
            await self.write(COMMENT)

    def _check_head(self) -> None:
        headers = self.request.headers
        length = self.request.content_length
        if length is not None and length > self._config.max_body_bytes:
            raise self._too_large()
        if headers.get("content-encoding", "").strip().lower() not in _ENCODINGS:
            raise UnsupportedMediaType(_WRONG_ENCODING)
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedMediaType("The request body must be JSON; set 'content-type: application/json'.")

    async def _written(self, data: bytes) -> None:
        """Wait until it is written, for as long as the client reads at all."""
        writer = self.request.writer
        try:
            if len(data) <= _SMALL_BYTES and not self._transport.get_write_buffer_size():
                # What fits into an empty buffer never waits, so the usual event and answer need no timer.
                return await writer.write(data)
            async with asyncio.timeout(self._config.write_seconds):
                await writer.write(data)
                await writer.drain()
        except ConnectionError as error:
            raise ClientDisconnected("The client hung up before the answer was complete.") from error
        except TimeoutError as error:
            self.abort()
            raise ClientDisconnected("The client stopped reading its answer.") from error

    async def _read_body(self) -> bytes:
        pieces = []
        size = 0
        while piece := await self.request.content.readany():
            size += len(piece)
            if size > self._config.max_body_bytes:
                raise self._too_large()
            pieces.append(piece)
        return b"".join(pieces)

    def _checked(self, body: bytes) -> bytes:
        if len(body) > self._config.max_body_bytes:
            raise self._too_large()
        return body

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self._config.max_body_bytes} bytes.")

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data

    def _stream_head(self) -> bytes:
        """What goes out before the first bytes of a stream; nothing before any others."""
        if self.response is not None:
            return b""
        self._is_chunked = self.request.version >= HttpVersion11
        named = {name for name, _ in _STREAM_HEAD}
        kept = [(name, value) for name, value in self._stream_headers if name not in named]
        framing = "transfer-encoding: chunked\r\n" if self._is_chunked else ""
        return self._begin(200, [*_STREAM_HEAD, *kept], framing, is_endless=not self._is_chunked)

    def _begin(self, status: int, headers: Headers, framing: str, *, is_endless: bool = False) -> bytes:
        """The head of the response, which is then the one that this request has got."""
        request, server = self.request, self._server
        content = request.content
        # What is left of a body that nobody reads stands between this request and the next.
        is_last = self.must_close or server.is_draining or content.exception() is not None or not content.is_eof()
        keeps_alive = request.keep_alive and not is_last and not is_endless
        head = head_bytes(status, headers, framing, version=request.version, keeps_alive=keeps_alive)
        self.response = server.sent_last if not keeps_alive else server.sent
        self.status = status
        return head

    @property
    def _transport(self) -> asyncio.Transport:
        if self.request.transport is None:
            raise ClientDisconnected("The client hung up.")
        return self.request.transport


class Server(web.Server):
    """Accepts connections and hands each request to `handler`; sweeps once a second for what is overdue.

    Attributes:
        streams: The streams that are open, for keep-alive comments.
        sent: What aiohttp is told once a response has gone out, and another request may follow.
        sent_last: The same where none may.
        is_draining: Whether responses should close their connections.
    """

    def __init__(self, handler: Handler, config: ServerConfig) -> None:
        super().__init__(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=config.keep_alive_seconds,
            lingering_time=2.0,
            max_line_size=config.max_header_bytes,
            max_field_size=config.max_header_bytes,
        )
        self.streams: set[ClientConnection] = set()
        self.sent, self.sent_last = _Sent(keeps_alive=True), _Sent(keeps_alive=False)
        self.is_draining = False
        self.live_requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.config = config
        self._handler = handler

    def __call__(self) -> web.RequestHandler:
        """A protocol for a new connection."""
        return _Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

    async def idle(self) -> None:
        """Wait until no request is being served."""
        await self._idle.wait()

    async def cut_off(self, deadline_seconds: float) -> None:
        """Close every connection; requests still being served are cancelled, and get so long to be recorded."""
        await self.shutdown(_BEFORE_CANCELLING_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                await self.idle()

    async def sweep(self) -> None:
        """Close connections whose request head is overdue; send keep-alive comments where they are due."""
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            if isinstance(connection, _Connection) and connection.head_overdue(now, self.config.head_seconds):
                connection.close_slow()
        for stream in [s for s in self.streams if now - s.last_write_seconds >= self.config.heartbeat_seconds]:
            # Whoever has hung up is found by the relay, which owns the exchange.
            with contextlib.suppress(ClientDisconnected):
                await stream.keep_alive()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        client = ClientConnection(request, self.config, self)
        self.live_requests += 1
        self._idle.clear()
        try:
            await self._serve(client)
        except ClientDisconnected:
            client.abort()
        finally:
            self.streams.discard(client)
            self.live_requests -= 1
            if not self.live_requests:
                self._idle.set()
        return client.response or web.Response(status=500)

    async def _serve(self, client: ClientConnection) -> None:
        try:
            self._check_head(client)
            await self._handler(client)
        except ClientDisconnected:
            raise
        except LLMProxyError as error:
            await client.refuse(error)

    def _check_head(self, client: ClientConnection) -> None:
        """What the parser lets pass: fields too large in sum, and framing that others may read in another way."""
        request = client.request
        is_large = sum(map(len, chain.from_iterable(request.raw_headers))) > self.config.max_header_bytes
        is_plain = request.headers.get("transfer-encoding", "chunked").lower() == "chunked"
        client.must_close = is_large or not is_plain
        if is_large:
            raise _malformed(LineTooLong(b"", self.config.max_header_bytes))
        if not is_plain:
            raise BadRequest("The transfer encoding is not supported; send 'chunked' alone.")


class _Connection(web.RequestHandler):
    """aiohttp's protocol, which also notices a request head that never ends, and speaks JSON about bad requests."""

    __slots__ = ("_head_since",)

    def __init__(self, manager: Server, *, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:  # aiohttp's own
        super().__init__(manager, loop=loop, **kwargs)
        self._head_since: float | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        before = self._request_count
        super().data_received(data)
        if self._request_count > before:
            self._head_since = None
            self._end_broken_body()
        elif self._head_since is None and self._is_idle:
            self._head_since = self._loop.time()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - as aiohttp calls it
        """Go on where reading was held up; aiohttp asks twice for each request, and hardly ever was it."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def head_overdue(self, now: float, head_seconds: float) -> bool:
        """Whether a request head was begun and has not ended in time."""
        return self._head_since is not None and now - self._head_since > head_seconds

    def close_slow(self) -> None:
        """Say 408 and hang up."""
        self._head_since = None
        body = error_body(RequestTimeout("The request's head did not arrive in time."), None)
        if self.transport is not None:
            self.transport.write(_TOO_SLOW % (len(body), body))
            self.transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A malformed request, answered in the shape that every other error has."""
        if request.writer.output_size > 0:
            raise ConnectionError("A response has been started already.")
        if status >= 500:
            self.log_exception("A request failed.", exc_info=exc)
        error = _malformed(exc) if status < 500 else LLMProxyError("The gateway failed on this request.")
        response = _WholeResponse(error.http_status, error_headers(error), error_body(error, None))
        response.force_close()
        return response

    @property
    def _is_idle(self) -> bool:
        """Whether aiohttp waits for a request: what comes then belongs to the head of the next."""
        return self._waiter is not None and not self._waiter.done()

    def _end_broken_body(self) -> None:
        """End the wait for a body whose framing has just turned out broken: aiohttp queues the error behind it."""
        request = self._current_request
        if request is not None and not isinstance(self._messages[-1][0], RawRequestMessage):
            request.content.set_exception(web.RequestPayloadError())
            request.content.feed_eof()


def _malformed(error: BaseException | None) -> ClientError:
    match error:
        case LineTooLong():
            return ClientError("The request's head is too large.", status=431)
        case ContentEncodingError():
            return UnsupportedMediaType(_WRONG_ENCODING)
        case _:
            return ClientError("The request is not valid HTTP/1.1.")


class _WholeResponse(web.Response):
    """A response without the headers that aiohttp would add about itself."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(status=status, body=body, headers=CIMultiDict(headers))
        self.headers["server"] = "llmproxy"


class _Sent(web.StreamResponse):
    """What aiohttp is told of a response that has gone out already."""

    def __init__(self, *, keeps_alive: bool) -> None:
        super().__init__()
        self._keeps_alive = keeps_alive

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on the connection."""
        return self._keeps_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to prepare."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""
