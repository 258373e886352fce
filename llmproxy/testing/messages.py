"""What passes between a test's upstream and its client: the request as recorded, the response as scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from http.client import responses
from urllib.parse import parse_qsl, urlsplit

from llmproxy.request import Document, Headers
from llmproxy.testing.http1 import Fields


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request exactly as it was received.

    `number` counts the upstream's requests and `connection` its connections, both from 1. `body` is without its
    chunked framing, if it had any.
    """

    number: int
    connection: int
    method: str
    target: str
    headers: Fields
    raw_head: bytes
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query, decoded."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def document(self) -> Document:
        """The body as JSON, which is an object in every API served here. Raises ValueError when it is no JSON."""
        document: Document = json.loads(self.body)
        return document

    @property
    def is_stream(self) -> bool:
        """Whether the body asks for server-sent events."""
        try:
            return self.document.get("stream") is True
        except ValueError:
            return False

    @property
    def includes_usage(self) -> bool:
        """Whether `stream_options` asks for usage in the stream."""
        options = self.document.get("stream_options") or {}
        return options.get("include_usage") is True


class Framing(StrEnum):
    """How a response says where its body ends."""

    LENGTH = "length"
    CHUNKED = "chunked"
    # No head, no framing: the pieces are all that is sent.
    BARE = "bare"


class Ending(StrEnum):
    """What follows the last piece."""

    COMPLETE = "complete"
    SILENCE = "silence"
    CLOSE = "close"
    RESET = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One response, as data: what is sent, how it is framed, when, and how it ends.

    Attributes:
        pieces: The body; one event each where it is a stream.
        sent_pieces: How many of them are really sent; None for all.
        sends_half: Whether half of the first piece that is not sent goes out all the same.
        slice_bytes: The most that is written at once.
        permits: One is taken before each piece, so that a test decides when it leaves.
    """

    pieces: Iterable[bytes]
    status: int = 200
    headers: Headers = ()
    framing: Framing = Framing.LENGTH
    ending: Ending = Ending.COMPLETE
    sent_pieces: int | None = None
    sends_half: bool = False
    head_delay_seconds: float = 0
    piece_delay_seconds: float = 0
    slice_bytes: int | None = None
    permits: asyncio.Semaphore | None = None

    def head(self) -> bytes:
        """Status line and header fields; nothing when bare."""
        if self.framing is Framing.BARE:
            return b""
        phrase = responses.get(self.status, "")
        fields = [f"{name}: {value}\r\n" for name, value in (*self.headers, self._framing_field())]
        return f"HTTP/1.1 {self.status} {phrase}\r\n{''.join(fields)}\r\n".encode("latin-1")

    def frame(self, piece: bytes) -> bytes:
        """A piece as it stands on the wire."""
        # A chunk without content would be the end of the body.
        is_chunk = self.framing is Framing.CHUNKED and piece
        return b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunk else piece

    def tail(self, unsent_piece: bytes) -> bytes:
        """What follows the pieces that were sent: half of the next one, or the end of the body."""
        if self.sends_half:
            framed = self.frame(unsent_piece)
            return framed[: len(framed) // 2]
        is_ended = self.framing is Framing.CHUNKED and self.ending is Ending.COMPLETE
        return b"0\r\n\r\n" if is_ended else b""

    def _framing_field(self) -> tuple[str, str]:
        if self.framing is Framing.CHUNKED:
            return "Transfer-Encoding", "chunked"
        return "Content-Length", str(sum(map(len, self.pieces)))


@dataclass(frozen=True, slots=True)
class Reply:
    """What an upstream does with one request: `message` makes the response from it."""

    message: Callable[[RecordedRequest], Message]

    def changed(self, change: Callable[[Message], Message]) -> Reply:
        """The same reply with its response passed through `change`."""
        return Reply(lambda request: change(self.message(request)))


# What a script is made of: a reply, or a function that chooses one when it sees the request.
Script = Reply | Callable[[RecordedRequest], Reply]
