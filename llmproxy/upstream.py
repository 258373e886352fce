"""The client side: one attempt at one provider, its four timers, and the engine that carries it.

Whatever the engine raises is mapped here, so that the rest of the code knows `UpstreamError` only.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
from aiohttp.connector import AddrInfoType
from yarl import URL

from llmproxy.config import Timeouts
from llmproxy.errors import (
    UpstreamBroken,
    UpstreamCut,
    UpstreamError,
    UpstreamUnreachable,
)
from llmproxy.http1.transport import HTTP1Transport
from llmproxy.providers import Transport
from llmproxy.services import UpstreamRequest, UpstreamResponse
from llmproxy.timers import Timers, timed_out

# aiohttp warns about larger bodies handed over as bytes; from a BytesIO it sends them in pieces.
_LARGE_BODY_BYTES: Final = 1_048_576


def send(transport: Transport, request: UpstreamRequest, timeouts: Timeouts) -> Awaitable[UpstreamResponse]:
    """Send a request and return once the response's head is there, with its timers running.

    Raises UpstreamTimeout, UpstreamUnreachable, UpstreamBroken or UpstreamCut.
    """
    if isinstance(transport, (ProviderTransport, HTTP1Transport)):
        # Its responses keep the time themselves.
        return transport.send(request, timeouts)
    return _timed(transport, request, timeouts)


async def _timed(transport: Transport, request: UpstreamRequest, timeouts: Timeouts) -> TimedResponse:
    timers = Timers(timeouts, asyncio.get_running_loop().time())
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


class TimedResponse:
    """A response held to its timers: one loop timer for the whole of it, however many reads there are.

    Time during which nobody reads does not count: a slow client is not a silent provider.
    """

    def __init__(self, response: UpstreamResponse, timers: Timers) -> None:
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


class ProviderTransport:
    """Core's engine: the lean client, and aiohttp's where a proxy of the environment stands in between.

    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` mean what they mean elsewhere, and are read once. This machine's own
    addresses are never asked for through a proxy.
    """

    def __init__(self) -> None:
        self._direct = HTTP1Transport()
        self._proxies = getproxies_environment()
        self._proxied = HTTPTransport(proxies=self._proxies)

    def send(self, request: UpstreamRequest, timeouts: Timeouts) -> Awaitable[UpstreamResponse]:
        """Send, and return once the response's head is there, with its timers running. Raises an UpstreamError."""
        if self._proxies and self._needs_proxy(request.url):
            return _timed(self._proxied, request, timeouts)
        return self._direct.send(request, timeouts)

    async def close(self) -> None:
        """Close every connection."""
        await self._direct.close()
        await self._proxied.close()

    def _needs_proxy(self, url: str) -> bool:
        scheme, _, rest = url.partition("://")
        host = urlsplit(f"//{rest}").hostname or ""
        if scheme not in self._proxies or host == "localhost" or host.startswith(("127.", "::1")):
            return False
        return not proxy_bypass(host)


class HTTPTransport:
    """aiohttp's client with keep-alive connections per origin, TLS verified.

    Args:
        may_reach: Says of an IP address whether it may be connected to. It is asked about the very address that a
            connection is then made to, whatever name or spelling led there. Left out, every address may be.
        proxies: URLs of proxies to go through, by the scheme of the address that is asked for.
    """

    def __init__(
        self, may_reach: Callable[[str], bool] | None = None, *, proxies: Mapping[str, str] | None = None
    ) -> None:
        self._may_reach = may_reach
        self._proxies = proxies or {}
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: UpstreamRequest, timeouts: Timeouts) -> UpstreamResponse:
        """Send, and return once the response's head is there. Raises an UpstreamError."""
        body = io.BytesIO(request.body) if len(request.body) > _LARGE_BODY_BYTES else request.body
        try:
            url = URL(request.url, encoded=True)
            response = await self._client.request(
                request.method,
                url,
                headers=request.headers,
                # None, so that a request without a body does not say how long it is.
                data=body or None,
                allow_redirects=False,
                proxy=self._proxies.get(url.scheme),
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
