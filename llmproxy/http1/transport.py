"""The client put together: core's engine for requests to providers."""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from typing import Final

from llmproxy.config import Timeouts
from llmproxy.errors import UpstreamCut
from llmproxy.http1.address import address_of
from llmproxy.http1.dial import Dialer
from llmproxy.http1.encodings import decoded
from llmproxy.http1.pool import Pool
from llmproxy.services import UpstreamRequest, UpstreamResponse
from llmproxy.timers import Timers

_MAX_KNOWN_ADDRESSES: Final = 1024


class HTTP1Transport:
    """Sends requests over kept-alive connections; its responses hold themselves to all four timers.

    Args:
        tls: What is trusted; left out, the system's store, or the file that `SSL_CERT_FILE` names.
        max_connections: How many there may be to one origin; further requests wait. None: no limit.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, max_connections: int | None = None) -> None:
        self._pool = Pool(Dialer(tls), max_connections)
        self._address_of = lru_cache(_MAX_KNOWN_ADDRESSES)(address_of)

    async def send(self, request: UpstreamRequest, timeouts: Timeouts) -> UpstreamResponse:
        """Send, and return once the response's head is there. Raises an UpstreamError."""
        address = self._address_of(request.url)
        head = address.head(request)
        timers = Timers(timeouts, asyncio.get_running_loop().time())
        while True:
            connection = await self._pool.take(address.origin, timers)
            try:
                response = await connection.ask(head, request.body, timers, is_bodiless=request.method == "HEAD")
            except UpstreamCut:
                if not connection.may_be_repeated(request.method):
                    raise
            else:
                return decoded(response)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()
