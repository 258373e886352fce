"""Images that a request names by address, fetched for vendors that take bytes only.

Whoever sends a request chooses the address, so it must lead nowhere that only the gateway can reach: the transport
handed in refuses every address that is not public, at the very moment of connecting, on each step of a redirect.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from functools import partial
from typing import Final

from yarl import URL

from llmproxy.concurrency import map_together
from llmproxy.config import Timeouts
from llmproxy.dialects.media import sniffed
from llmproxy.errors import BadRequest, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from llmproxy.providers import Transport
from llmproxy.services import UpstreamRequest, UpstreamResponse
from llmproxy.upstream import send

MAX_IMAGES: Final = 32
MAX_REDIRECTS: Final = 3
# As much as a client may send itself by default.
MAX_TOTAL_BYTES: Final = 33_554_432
_AT_ONCE: Final = 4
_SECONDS: Final = 20.0
_TIMEOUTS: Final = Timeouts(connect_seconds=5, first_byte_seconds=10, idle_seconds=10, total_seconds=_SECONDS)
_HEADERS: Final = (("accept", "image/*"), ("accept-encoding", "identity"), ("user-agent", "llmproxy"))
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class RemoteImages:
    """Fetches images.

    Args:
        transport: Reaches public addresses and no others.
        max_total_bytes: How large the images of one request may be together.
    """

    def __init__(self, transport: Transport, *, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._transport = transport
        self._max_total_bytes = max_total_bytes

    async def fetch(self, addresses: Mapping[str, str], most_seconds: float | None) -> Mapping[str, str]:
        """Each address's image as a data URL, of the type that its bytes show.

        Args:
            addresses: With where each stands in the request, for errors.
            most_seconds: When less time than usual is left.

        Raises BadRequest naming the first image that cannot be had.
        """
        if len(addresses) > MAX_IMAGES:
            sentence = f"A request may name {MAX_IMAGES} images by address at most; send the others as data URLs."
            raise BadRequest(sentence, code="invalid_image_url", param="messages")
        seconds = _SECONDS if most_seconds is None else min(_SECONDS, most_seconds)
        fetch = partial(self._fetch, room=_Room(self._max_total_bytes), seconds=seconds)
        images = await map_together(fetch, addresses.items(), at_once=_AT_ONCE)
        return dict(zip(addresses, images, strict=True))

    async def _fetch(self, named: tuple[str, str], room: _Room, seconds: float) -> str:
        address, path = named
        try:
            async with asyncio.timeout(seconds):
                return _data_url(await self._follow(address, room))
        except _Unfetched as error:
            reason = str(error)
        except (TimeoutError, UpstreamTimeout):
            reason = "its server took too long"
        except UpstreamUnreachable:
            # Nothing more: who asks must not learn what there is behind the gateway.
            reason = "there is no server at a public address"
        except UpstreamError:
            reason = "its server broke off the answer"
        sentence = f"The image at '{path}' could not be fetched: {reason}. Send it as a data URL instead."
        raise BadRequest(sentence, code="invalid_image_url", param=path)

    async def _follow(self, address: str, room: _Room) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            response = await send(self._transport, UpstreamRequest("GET", _checked(address), _HEADERS, b""), _TIMEOUTS)
            try:
                if response.status not in _REDIRECTS:
                    return await _body(response, room)
                address = _target(address, response)
            finally:
                response.close()
        raise _Unfetched(f"its address leads on more than {MAX_REDIRECTS} times")


class _Unfetched(Exception):
    """Why an image cannot be had, as the end of a sentence."""


class _Room:
    """What is left of the bytes that the images of one request may have together."""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes

    def take(self, size_bytes: int) -> None:
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise _Unfetched("the images of this request are too large together")


def _checked(address: str) -> str:
    try:
        url = URL(address)
    except ValueError:
        raise _Unfetched("its address is no URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise _Unfetched("only http and https addresses are fetched")
    return str(url.with_fragment(None))


def _target(address: str, response: UpstreamResponse) -> str:
    location = response.headers.get("location")
    if location is None:
        raise _Unfetched("its server leads on to nowhere")
    try:
        return str(URL(address).join(URL(location)))
    except ValueError:
        raise _Unfetched("its server leads on to no URL") from None


async def _body(response: UpstreamResponse, room: _Room) -> bytes:
    if response.status != 200:
        raise _Unfetched(f"its server answered with status {response.status}")
    pieces = []
    while piece := await response.read():
        room.take(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


def _data_url(data: bytes) -> str:
    media_type = sniffed(data)
    if media_type is None or not media_type.startswith("image/"):
        raise _Unfetched("what is there is no image of a known format")
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
