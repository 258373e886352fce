"""The replies of an upstream that misbehaves, and ways to spoil or slow a good one."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from typing import Final

from llmproxy.request import Headers
from llmproxy.testing import chat
from llmproxy.testing.chat import ChatAnswer
from llmproxy.testing.messages import Ending, Framing, Message, RecordedRequest, Reply
from llmproxy.testing.replies import document, event_message, stream

FLOOD_TEXT: Final = "x" * 16_384
ERROR_MESSAGE: Final = "The upstream failed while it was answering."

# Nothing comes


def hang() -> Reply:
    """Take the request and never answer."""
    return _bare(ending=Ending.SILENCE)


def nothing() -> Reply:
    """Close the connection without a byte of an answer."""
    return _bare()


def raw(data: bytes, *, ending: Ending = Ending.CLOSE) -> Reply:
    """These bytes for a response, head and all, then `ending`."""
    return _bare(data, ending=ending)


def garbage() -> Reply:
    """Bytes that are not HTTP."""
    return raw(b"\x00\x16\x03\xff* NOT HTTP AT ALL\r\n\r\n\xfe\xed")


# The end is missing. `n` counts events as they are sent, so the first of a chat stream holds only the role. At least
# one event is always missing. A body that is no stream counts as two halves.


def hang_after(n: int, of: Reply | None = None) -> Reply:
    """`n` events of a reply, then silence."""
    return _stopped(n, of, ending=Ending.SILENCE)


def cut_after(n: int, of: Reply | None = None, *, ending: Ending = Ending.RESET) -> Reply:
    """`n` events of a reply, then the connection is reset; `Ending.CLOSE` closes it quietly, still incomplete."""
    return _stopped(n, of, ending=ending)


def cut_mid_event(n: int, of: Reply | None = None, *, ending: Ending = Ending.RESET) -> Reply:
    """`n` events and half of the next, then the connection is reset (or closed)."""
    return _stopped(n, of, ending=ending, sends_half=True)


def end_without_done(n: int, of: Reply | None = None) -> Reply:
    """`n` events, then an end that HTTP takes for complete: no finish reason, no `[DONE]`."""
    return _begun(n, of).changed(lambda message: replace(message, pieces=_kept(message, n)))


# Errors in unexpected places


def error_in_200(
    message: str = ERROR_MESSAGE, *, code: str | None = None, type_: str = "server_error", headers: Headers = ()
) -> Reply:
    """An error document under status 200, even to a request for a stream."""
    return document(chat.error(message, type_=type_, code=code), headers=headers)


def error_event_after(
    n: int,
    of: Reply | None = None,
    *,
    message: str = ERROR_MESSAGE,
    code: str | None = None,
    type_: str = "server_error",
) -> Reply:
    """`n` events, then one that holds an error, then a clean end. To a request for no stream: `error_in_200`."""
    error = chat.error(message, type_=type_, code=code)

    def spoil(good: Message, request: RecordedRequest) -> Message:
        if good.framing is Framing.LENGTH:
            return document(error).message(request)
        return replace(good, pieces=(*_kept(good, n), chat.event(error)))

    begun = _begun(n, of)
    return Reply(lambda request: spoil(begun.message(request), request))


# Good replies, sent badly


def slow_head(reply: Reply, seconds: float) -> Reply:
    """The reply, its head only after `seconds`."""
    return reply.changed(lambda message: replace(message, head_delay_seconds=seconds))


def one_byte_at_a_time(reply: Reply) -> Reply:
    """The reply, every byte of head, framing and body written on its own."""
    return reply.changed(lambda message: replace(message, slice_bytes=1))


def stepped(reply: Reply, permits: asyncio.Semaphore) -> Reply:
    """The reply, each event sent only when the test releases a permit: order without a clock."""
    return reply.changed(lambda message: replace(message, permits=permits))


def gzip(reply: Reply) -> Reply:
    """The reply compressed, whether or not it was asked for; events are flushed one by one."""
    return reply.changed(_compress)


def with_headers(reply: Reply, *headers: tuple[str, str]) -> Reply:
    """The reply with these header fields added."""
    return reply.changed(lambda message: replace(message, headers=(*message.headers, *headers)))


def flood(total_bytes: int) -> Reply:
    """A correct stream of at least `total_bytes`, as fast as the client takes it.

    `bytes_accepted` of the exchange says how far the kernel let it get.
    """

    def pieces(request: RecordedRequest) -> Iterator[bytes]:
        answer = ChatAnswer(texts=(FLOOD_TEXT,), model=None, usage=chat.tokens(), finish_reason=None)
        role, text, *end = answer.events(request)
        return chain((role,), repeat(text, -(-total_bytes // len(text))), end)

    return Reply(lambda request: event_message(request, pieces(request)))


def _bare(*pieces: bytes, ending: Ending = Ending.CLOSE) -> Reply:
    return Reply(lambda _: Message(pieces=pieces, framing=Framing.BARE, ending=ending))


def _begun(n: int, of: Reply | None) -> Reply:
    """The reply to spoil after `n` pieces: `of`, or a stream long enough, its pieces ready to be counted."""
    reply = of or stream(*(f"word{number} " for number in range(1, n + 2)))
    return reply.changed(_divide)


def _divide(message: Message) -> Message:
    pieces = tuple(message.pieces)
    if message.framing is Framing.LENGTH:
        body = b"".join(pieces)
        pieces = (body[: len(body) // 2], body[len(body) // 2 :])
    return replace(message, pieces=pieces)


def _kept(message: Message, n: int) -> tuple[bytes, ...]:
    pieces = tuple(message.pieces)
    return pieces[: min(n, len(pieces) - 1)]


def _stopped(n: int, of: Reply | None, *, ending: Ending, sends_half: bool = False) -> Reply:
    return _begun(n, of).changed(
        lambda message: replace(message, sent_pieces=len(_kept(message, n)), sends_half=sends_half, ending=ending)
    )


def _compress(message: Message) -> Message:
    headers = (*message.headers, ("Content-Encoding", "gzip"))
    pieces = _compressed(message.pieces)
    # A length needs the whole body; a stream may be endless and is compressed as it goes.
    whole = (b"".join(pieces),) if message.framing is Framing.LENGTH else pieces
    return replace(message, headers=headers, pieces=whole)


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    # 16 added to the window size asks zlib for a gzip header.
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS + 16)
    for piece in pieces:
        yield compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()
