"""A small, strict reader of HTTP/1.1 messages that keeps what it read exactly as it came."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEAD_BYTES: Final = 65_536
READ_BYTES: Final = 65_536

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH: Final = re.compile(r"[0-9]+")
_CHUNK_LENGTH: Final = re.compile(rb"[0-9A-Fa-f]+")


class MalformedMessageError(Exception):
    """The peer sent something that is not HTTP/1.1."""


class Fields(Mapping[str, str]):
    """Header fields: looked up without regard to case, kept in order and in their own spelling in `pairs`."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = tuple(pairs)

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return values[0]

    def __iter__(self) -> Iterator[str]:
        return iter({name.lower(): name for name, _ in reversed(self.pairs)}.values())

    def __len__(self) -> int:
        return len({name.lower() for name, _ in self.pairs})

    def __repr__(self) -> str:
        return f"Fields({self.pairs!r})"

    def get_all(self, name: str) -> tuple[str, ...]:
        """Every value of a field that may occur more than once."""
        wanted = name.lower()
        return tuple(value for spelled, value in self.pairs if spelled.lower() == wanted)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a message: its bytes as received, its first line, its fields."""

    raw: bytes
    start_line: str
    fields: Fields

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return "transfer-encoding" in self.fields

    @property
    def is_framed(self) -> bool:
        """Whether the head says where the body ends."""
        return self.is_chunked or "content-length" in self.fields


class MessageReader:
    """Reads whole messages from a stream.

    Reading ahead is allowed: `wait_for_end` notices a peer that hangs up without losing what it sent before.
    """

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def read_head(self) -> Head | None:
        """The next head; None when the peer ended the connection before it.

        Raises MalformedMessageError, and asyncio.IncompleteReadError when it ends half way.
        """
        if not self._buffer and not await self._fill():
            return None
        raw = await self.read_until(b"\r\n\r\n", limit_bytes=MAX_HEAD_BYTES)
        return parse_head(raw)

    async def read_body(self, head: Head) -> bytes:
        """The body that belongs to `head`, without its framing; empty when the head announces none.

        Raises MalformedMessageError, and asyncio.IncompleteReadError when it ends half way.
        """
        if head.is_chunked:
            return b"".join([chunk async for chunk in self._chunks()])
        return await self.read_exactly(int(head.fields.get("content-length", "0")))

    async def read_until(self, separator: bytes, *, limit_bytes: int | None = None) -> bytes:
        """All bytes up to and with `separator`. Raises MalformedMessageError when there are too many."""
        while (at := self._buffer.find(separator)) < 0:
            if limit_bytes is not None and len(self._buffer) > limit_bytes:
                raise MalformedMessageError(f"No end of the line or head within {limit_bytes} bytes.")
            await self._fill_or_raise()
        return self._take(at + len(separator))

    async def read_exactly(self, count: int) -> bytes:
        """The next `count` bytes."""
        while len(self._buffer) < count:
            await self._fill_or_raise()
        return self._take(count)

    async def read_rest(self) -> bytes:
        """All bytes until the peer ends the connection."""
        await self.wait_for_end()
        return self._take(len(self._buffer))

    async def wait_for_end(self) -> None:
        """Return when the peer ends the connection; what it sends until then can still be read."""
        while await self._fill():
            pass

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await self.read_until(b"\r\n", limit_bytes=MAX_HEAD_BYTES)
            if not _CHUNK_LENGTH.fullmatch(line[:-2]):
                raise MalformedMessageError(f"{line!r} is not the length of a chunk.")
            chunk = await self.read_exactly(int(line, 16))
            if await self.read_exactly(2) != b"\r\n":
                raise MalformedMessageError("A chunk is longer than it said, or trailers follow the last one.")
            if not chunk:
                return
            yield chunk

    async def _fill(self) -> bool:
        data = await self._stream.read(READ_BYTES)
        self._buffer += data
        return bool(data)

    async def _fill_or_raise(self) -> None:
        if not await self._fill():
            raise asyncio.IncompleteReadError(bytes(self._buffer), None)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def parse_head(raw: bytes) -> Head:
    """The head in `raw`, which ends with its empty line. Raises MalformedMessageError."""
    start_line, *lines = raw[:-4].split(b"\r\n")
    head = Head(raw, start_line.decode("latin-1"), Fields(_parse_field(line) for line in lines))
    _refuse_ambiguous_framing(head.fields)
    return head


def _parse_field(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise MalformedMessageError(f"{line!r} is not a header field.")
    return name.decode("latin-1"), value.strip(b" \t").decode("latin-1")


def _refuse_ambiguous_framing(fields: Fields) -> None:
    lengths, encodings = fields.get_all("content-length"), fields.get_all("transfer-encoding")
    if len(lengths) + len(encodings) > 1:
        raise MalformedMessageError("The head says more than once how long the body is.")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise MalformedMessageError(f"{lengths[0]!r} is not a length.")
    if encodings and encodings[0].lower() != "chunked":
        raise MalformedMessageError(f"{encodings[0]!r} is not a transfer encoding this reader knows.")
