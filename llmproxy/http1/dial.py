"""How a connection is opened: names resolved once in a while, addresses of both families tried, TLS verified."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from aiohappyeyeballs import AddrInfoType, start_connection

from llmproxy.errors import UpstreamUnreachable
from llmproxy.http1.address import Origin
from llmproxy.http1.connection import Connection
from llmproxy.timers import Timers

_NAMES_SECONDS: Final = 60.0
# Where nobody is there a name is resolved anew, for it may have moved; but not for each request of an outage.
_DOUBT_SECONDS: Final = 1.0
# RFC 8305, section 8.
_NEXT_ADDRESS_SECONDS: Final = 0.25


class Dialer:
    """Opens connections.

    Args:
        tls: What is trusted; left out, the system's store, or the file that `SSL_CERT_FILE` names.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._reading_store = asyncio.Lock()
        self._names: dict[Origin, _Name] = {}

    async def __call__(self, origin: Origin, make: Callable[[], Connection], timers: Timers) -> Connection:
        """A connection. Raises UpstreamTimeout or UpstreamUnreachable."""
        timers.connecting()
        limit = asyncio.timeout_at(timers.due_at)
        try:
            async with limit:
                connection = await self._connect(origin, make)
        except (OSError, ValueError) as error:
            # The operating system has time limits of its own, and they raise the same.
            if limit.expired():
                raise timers.error() from error
            if (name := self._names.get(origin)) is not None:
                name.doubt()
            raise _mapped(error) from error
        timers.first_byte()
        return connection

    async def _connect(self, origin: Origin, make: Callable[[], Connection]) -> Connection:
        tls, server = (await self._trusted(), origin.host.rstrip(".")) if origin.is_tls else (None, None)
        name = self._names.setdefault(origin, _Name(origin))
        wire = await start_connection(await name.addresses(), happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(make, sock=wire, ssl=tls, server_hostname=server)
        except BaseException:
            # The loop may not have taken it over yet.
            wire.close()
            raise
        return connection

    async def _trusted(self) -> ssl.SSLContext:
        """Read on first use and beside the event loop: the system's store takes tens of milliseconds."""
        async with self._reading_store:
            if self._tls is None:
                self._tls = await asyncio.to_thread(_system_trust)
        return self._tls


class _Name:
    """The addresses of a host, resolved again when they are old; those who ask meanwhile wait for the same answer."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._resolving = asyncio.Lock()
        self._addresses: Sequence[AddrInfoType] = ()
        self._old_at = 0.0
        self._doubted_at = float("-inf")

    def doubt(self) -> None:
        """Hear that nobody was there: perhaps it has moved."""
        now = asyncio.get_running_loop().time()
        if now - self._doubted_at >= _DOUBT_SECONDS:
            self._doubted_at = self._old_at = now

    async def addresses(self) -> Sequence[AddrInfoType]:
        """Where to connect, beginning with another one each time. Raises socket.gaierror, or UnicodeError."""
        loop = asyncio.get_running_loop()
        async with self._resolving:
            if not self._addresses or loop.time() >= self._old_at:
                host, port, _ = self._origin
                self._addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                self._old_at = loop.time() + _NAMES_SECONDS
            first, *rest = self._addresses
            self._addresses = (*rest, first)
        return (first, *rest)


def _system_trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _mapped(error: Exception) -> UpstreamUnreachable:
    match error:
        case ssl.SSLError():
            return UpstreamUnreachable("The provider's TLS certificate could not be verified.")
        case socket.gaierror() | UnicodeError():
            return UpstreamUnreachable("The provider's host name could not be resolved.")
        case _:
            return UpstreamUnreachable("No connection to the provider could be made.")
