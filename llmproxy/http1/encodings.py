"""Bodies that come compressed although nobody asked for it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from llmproxy.errors import UpstreamBroken, UpstreamCut, UpstreamError
from llmproxy.http1.response import Response
from llmproxy.services import UpstreamResponse

# What one read gives at most, so that a few bytes that unfold to gigabytes can be given up on the way.
_PIECE_BYTES: Final = 262_144
_GZIP: Final = 16 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS


def decoded(response: Response) -> UpstreamResponse:
    """The response with its body as it was before it was compressed. Raises UpstreamBroken when nobody can tell."""
    coding = response.headers.get("content-encoding", "identity").lower()
    if coding in {"identity", ""}:
        return response
    if coding not in {"gzip", "x-gzip", "deflate"}:
        response.close()
        raise UpstreamBroken("The provider's answer is compressed in a way that nobody asked for.")
    return _Decompressed(response, is_gzip=coding != "deflate")


class _Decompressed:
    """A response whose body comes compressed."""

    def __init__(self, response: Response, *, is_gzip: bool) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._is_gzip = is_gzip
        self._decoder: zlib._Decompress | None = None
        self._waiting = b""

    async def read(self) -> bytes:
        """The next piece of the decoded body; b"" at its end. Raises an UpstreamError."""
        while True:
            data = self._waiting or await self._response.read()
            if not data:
                self._finish()
                return b""
            if piece := self._decode(data):
                return piece

    def abort(self, error: UpstreamError) -> None:
        """Make the pending read, and every later one, raise `error`."""
        self._waiting = b""
        self._response.abort(error)

    def close(self) -> None:
        """Give the response up."""
        self._response.close()

    def _decode(self, data: bytes) -> bytes:
        if self._decoder is None:
            self._decoder = zlib.decompressobj(_GZIP if self._is_gzip else _deflate_bits(data))
        try:
            piece = self._decoder.decompress(data, _PIECE_BYTES)
        except zlib.error as error:
            raise _cut() from error
        self._waiting = self._decoder.unconsumed_tail
        if self._decoder.eof and self._decoder.unused_data:
            # One compressed part after the other is one body (RFC 1952, section 2.2).
            self._waiting, self._decoder = self._decoder.unused_data, None
        return piece

    def _finish(self) -> None:
        if self._decoder is not None and not self._decoder.eof:
            raise _cut()


def _deflate_bits(data: bytes) -> int:
    """Whether "deflate" means zlib's format, as it should, or bare deflate, as some understand it."""
    return zlib.MAX_WBITS if data[0] & 0x0F == 8 else _RAW


def _cut() -> UpstreamCut:
    return UpstreamCut("The provider's answer broke off before its end.")
