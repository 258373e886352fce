"""The client side: one attempt at one provider, its four timers, and the engine that carries it.

Whatever the engine raises is mapped here, so that the rest of the code knows `UpstreamError` only.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp
from aiohttp.connector import AddrInfoType
from yarl import URL

from llmproxy.config import Timeouts
from llmproxy.errors import (
    TimeoutPhase,
    UpstreamBroken,
    UpstreamCut,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from llmproxy.providers import Transport
from llmproxy.services import UpstreamRequest, UpstreamResponse

# aiohttp warns about larger bodies handed over as bytes; from a BytesIO it sends them in pieces.
_LARGE_BODY_BYTES: Final = 1_048_576
_TIMEOUT_SENTENCES: Final[Mapping[TimeoutPhase, str]] = {
    "connect": "The provider could not be connected to within {seconds:g} seconds.",
    "first_byte": "The provider sent nothing for {seconds:g} seconds after the request.",
    "idle": "The provider went silent for {seconds:g} seconds in the middle of its answer.",
    "total": "The answer was not complete after {seconds:g} seconds.",
}


def timed_out(phase: TimeoutPhase, seconds: float | None) -> UpstreamTimeout:
    """The error for a timer that ran out."""
    return UpstreamTimeout(_TIMEOUT_SENTENCES[phase].format(seconds=seconds or 0), phase=phase)


async def send(transport: Transport, request: UpstreamRequest, timeouts: Timeouts) -> TimedResponse:
    """Send a request and return once the response's head is there, with its timers running.

    Raises UpstreamTimeout, UpstreamUnreachable, UpstreamBroken or UpstreamCut.
    """
    timers = _Timers(timeouts)
    try:
        async with asyncio.timeout_at(timers.due_at):
            response = await transport.send(request, timeouts)
    except TimeoutError as error:
        raise timers.error() from error
    return TimedResponse(response, timers)


async def read_all(response: UpstreamResponse, max_bytes: int) -> bytes:
    """The whole body. Raises UpstreamBroken when it is over `max_bytes`."""
    pieces = []
    size = 0
    while piece := await response.read():
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise UpstreamBroken(f"The provider's answer is larger than {max_bytes} bytes.")
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]


class _Timers:
    """When the current wait is overdue, and by which timer: first byte, then idle gaps, within the total."""

    __slots__ = ("_timeouts", "_total_at", "due_at", "phase", "seconds")

    def __init__(self, timeouts: Timeouts) -> None:
        now = asyncio.get_running_loop().time()
        self._timeouts = timeouts
        self._total_at = now + timeouts.total_seconds if timeouts.total_seconds is not None else float("inf")
        self.phase: TimeoutPhase = "first_byte"
        self._wait(now, timeouts.first_byte_seconds)

    def next_gap(self, now: float) -> None:
        """The first byte is there; wait for the next."""
        self.phase = "idle"
        self._wait(now, self._timeouts.idle_seconds)

    def error(self) -> UpstreamTimeout:
        """The error for the wait that is overdue."""
        return timed_out(self.phase, self.seconds)

    def _wait(self, now: float, seconds: float) -> None:
        self.seconds: float | None = seconds
        self.due_at = now + seconds
        if self._total_at < self.due_at:
            self.phase, self.seconds, self.due_at = "total", self._timeouts.total_seconds, self._total_at


class TimedResponse:
    """A response held to its timers: one loop timer for the whole of it, however many reads there are.

    Time during which nobody reads does not count: a slow client is not a silent provider.
    """

    def __init__(self, response: UpstreamResponse, timers: _Timers) -> None:
        self._response = response
        self._timers = timers
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._started = False
        self._arm()

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields, looked up without regard to case."""
        return self._response.headers

    async def read(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises an UpstreamError."""
        if self._started:
            self._timers.next_gap(self._loop.time())
        if not self._armed or self._timers.due_at < self._timer.when():
            self._timer.cancel()
            self._arm()
        self._reading = True
        try:
            piece = await self._response.read()
        finally:
            self._reading = False
        self._started = True
        if not piece:
            self._timer.cancel()
        return piece

    def abort(self, error: UpstreamError) -> None:
        """Make the pending read, and every later one, raise `error`."""
        self._timer.cancel()
        self._response.abort(error)

    def close(self) -> None:
        """Give the response up and stop its timer."""
        self._timer.cancel()
        self._response.close()

    def _check(self) -> None:
        self._armed = False
        if not self._reading:
            return
        if self._loop.time() >= self._timers.due_at:
            self.abort(self._timers.error())
        else:
            # Bytes have come since: look again when the present wait would be overdue.
            self._arm()

    def _arm(self) -> None:
        self._armed = True
        self._timer = self._loop.call_at(self._timers.due_at, self._check)


class HTTPTransport:
    """Core's engine: aiohttp's client with keep-alive connections per origin, TLS verified.

    Args:
        may_reach: Says of an IP address whether it may be connected to. It is asked about the very address that a
            connection is then made to, whatever name or spelling led there. Left out, every address may be.
    """

    def __init__(self, may_reach: Callable[[str], bool] | None = None) -> None:
        self._may_reach = may_reach
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: UpstreamRequest, timeouts: Timeouts) -> UpstreamResponse:
        """Send, and return once the response's head is there. Raises an UpstreamError."""
        body = io.BytesIO(request.body) if len(request.body) > _LARGE_BODY_BYTES else request.body
        try:
            response = await self._client.request(
                request.method,
                URL(request.url, encoded=True),
                headers=request.headers,
                # None, so that a request without a body does not say how long it is.
                data=body or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=timeouts.connect_seconds),
            )
        except _SpoiledConnectionError:
            # It is closed now and nothing was sent on it, so this is no second attempt.
            return await self.send(request, timeouts)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _mapped(error, timeouts) from error
        return _HTTPResponse(response)

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    @property
    def _client(self) -> aiohttp.ClientSession:
        """Made on first use, for it belongs to the event loop that runs then."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    ttl_dns_cache=60,
                    keepalive_timeout=15,
                    # Named on purpose: an installed aiodns would silently take its place.
                    resolver=aiohttp.ThreadedResolver(),
                    socket_factory=_guarded(self._may_reach) if self._may_reach else None,
                ),
                request_class=_Request,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                read_bufsize=65_536,
                max_line_size=65_536,
                max_field_size=65_536,
            )
        return self._session


class UpstreamHTTP:
    """`services.HTTPClient`: whole requests and responses for plugins and providers, over the same engine."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def request(
        self, request: UpstreamRequest, *, timeout_seconds: float = 10, max_body_bytes: int = 1_048_576
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. Raises an UpstreamError."""
        timeouts = Timeouts(
            connect_seconds=timeout_seconds,
            first_byte_seconds=timeout_seconds,
            idle_seconds=timeout_seconds,
            total_seconds=timeout_seconds,
        )
        response = await send(self._transport, request, timeouts)
        try:
            return response.status, response.headers, await read_all(response, max_body_bytes)
        finally:
            response.close()


class _SpoiledConnectionError(Exception):
    """Something has come on an idle connection that nobody asked for."""


class _Request(aiohttp.ClientRequest):
    """aiohttp's request, which never takes what waits on a reused connection for its own answer.

    A load balancer's late 408, or a second response to the last request, would go to whoever asks next.
    """

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Send on a connection on which nothing waits."""
        if conn.protocol is not None and conn.protocol.should_close:
            raise _SpoiledConnectionError
        return await super().send(conn)


class _HTTPResponse:
    """aiohttp's response behind our own interface."""

    __slots__ = ("_content", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamCut("The provider's answer broke off before its end.") from error

    def abort(self, error: UpstreamError) -> None:
        self._content.set_exception(error)
        self._response.close()

    def close(self) -> None:
        self._response.close()


def _guarded(may_reach: Callable[[str], bool]) -> Callable[[AddrInfoType], socket.socket]:
    def open_socket(info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_reach(str(address[0])):
            raise PermissionError(f"{address[0]} must not be connected to.")
        return socket.socket(family, kind, protocol)

    return open_socket


def _mapped(error: Exception, timeouts: Timeouts) -> UpstreamError:
    """aiohttp's and the operating system's exceptions in our own terms."""
    match error:
        case aiohttp.ServerTimeoutError():
            return timed_out("connect", timeouts.connect_seconds)
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLError() | aiohttp.ClientSSLError():
            return UpstreamUnreachable("The provider's TLS certificate could not be verified.")
        case aiohttp.ClientConnectorDNSError():
            return UpstreamUnreachable("The provider's host name could not be resolved.")
        case aiohttp.ClientConnectorError():
            return UpstreamUnreachable("No connection to the provider could be made.")
        case aiohttp.ServerDisconnectedError():
            return UpstreamCut("The provider closed the connection without an answer.")
        case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
            return UpstreamBroken("The provider's answer is not valid HTTP.")
        case aiohttp.InvalidURL() | ValueError():
            return UpstreamUnreachable("The provider's address is not a valid URL.")
        case _:
            return UpstreamCut("The connection to the provider was lost.")
