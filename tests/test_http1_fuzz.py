"""The lean client's reader beside aiohttp's parser: the same responses from the same bytes, or a reason to refuse."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientPayloadError, http_exceptions
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpResponseParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmproxy.http1.reader import MalformedResponseError, ResponseReader

# Where ours is stricter: what aiohttp tolerates for old servers, and RFC 9112 lets a client refuse.
STRICTER: Final = {
    "a line that ends in a bare line feed, or has a bare carriage return in it": rb"(?<!\r)\n|\r(?!\n)",
    "a folded field": rb"\r\n[ \t]",
    "a space before a colon": rb"\r\n[^:\r\n]*[ \t]:",
    "a control character in the head, or in a chunk's extension": rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
    # Of sizes that are drawn here; its last byte may be a carriage return.
    "a chunk that ends in a bare line feed": b"|".join(
        rb"\n0*%d(;[^\r\n]*)?\r\n(?s:.){%d}\n" % (size, size) for size in range(1, 9)
    ),
    "a space behind a chunk's size": rb"[0-9a-fA-F][ \t]+(\r\n|;)",
    "a transfer coding other than one chunked": rb"(?i)transfer-encoding:(?![ \t]*chunked[ \t]*\r\n)"
    rb"|transfer-encoding:(.|\n)*transfer-encoding:",
    "a blank line before the head": rb"^(\r\n)",
    "a version other than 1.0 and 1.1": rb"HTTP/(?!1\.[01] )",
    "a status below 100": rb"HTTP/1.[01] 0",
    "a switch of protocols that nobody asked for": rb"HTTP/1.[01] 101",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a parser made of some bytes and the end of the connection behind them."""

    status: int
    fields: Sequence[tuple[str, str]]
    body: bytes
    is_whole: bool


# Bytes


_TOKENS = st.sampled_from(["X-One", "x-two", "Content-Type", "Connection", "Trailer", "Upgrade", "Keep-Alive"])
_VALUES = st.sampled_from(
    ["", "1", "close", "keep-alive", "a, b", "ü", "  spaced\t", "upgrade", "text/event-stream", ":"]
)
_FIELDS = st.lists(st.tuples(_TOKENS, _VALUES), max_size=4)
_STATUS_LINES = st.sampled_from(
    [
        *("HTTP/1.1 200 OK", "HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.0 200 OK", "HTTP/1.1 204 No Content"),
        *("HTTP/1.1 304 Not Modified", "HTTP/1.1 404 ü", "HTTP/1.1 999 X", "HTTP/1.1 099 X", "HTTP/2.0 200 OK"),
    ]
)
_EARLY = st.sampled_from(["", "", "", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", "\r\n"])
_LENGTHS = st.sampled_from(["0", "3", "5", "05", "+5", "5, 5", "5 ", "-1", "0x5", "99999999999999999999", ""])
_CODINGS = st.sampled_from(["chunked", "Chunked", "gzip, chunked", "chunked, gzip", "identity", "xchunked", "chunked "])
_SIZES = st.sampled_from(["{:x}", "{:X}", "0{:x}", "{:x} ", "{:x};a=b", '{:x};a="b"', "0x{:x}", "-{:x}", ""])
_BODIES = st.binary(max_size=8)
_JUNK = st.sampled_from([b"", b"", b"", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x"])


@st.composite
def _chunks(draw: st.DrawFn) -> bytes:
    """A chunked body, most often a good one."""
    pieces = [
        draw(st.just("{:x}") | _SIZES).format(len(body)).encode() + b"\r\n" + body + b"\r\n"
        for body in draw(st.lists(st.binary(min_size=1, max_size=8), max_size=4))
    ]
    end = draw(st.sampled_from([b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nT: v\r\n\r\n", b"0\r\n", b"", b"0\r\nbad\r\n\r\n"]))
    return b"".join(pieces) + end


@st.composite
def _responses(draw: st.DrawFn) -> bytes:
    """A response, with its faults."""
    fields = list(draw(_FIELDS))
    body = draw(_BODIES)
    match draw(st.sampled_from(["length", "length", "chunks", "chunks", "close", "odd length", "odd coding", "both"])):
        case "length":
            fields.append(("Content-Length", str(len(body))))
        case "odd length":
            fields.append(("Content-Length", draw(_LENGTHS)))
        case "chunks":
            fields.append(("Transfer-Encoding", "chunked"))
            body = draw(_chunks())
        case "odd coding":
            fields.append(("Transfer-Encoding", draw(_CODINGS)))
            body = draw(_chunks())
        case "both":
            fields += [("Transfer-Encoding", "chunked"), ("content-length", str(len(body)))]
            body = draw(_chunks())
        case _:
            pass
    lines = "".join(f"{name}: {value}\r\n" for name, value in draw(st.permutations(fields)))
    head = f"{draw(_EARLY)}{draw(_STATUS_LINES)}\r\n{lines}\r\n"
    return head.encode() + body + draw(_JUNK)


@st.composite
def _wires(draw: st.DrawFn) -> bytes:
    """A response of which perhaps a few bytes were changed."""
    wire = bytearray(draw(_responses()))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(wire)))
        patch = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\0", b"\x7f", b"\xff", b"0", b"a"])
        )
        wire[at : at + draw(st.integers(0, 2))] = patch
    return bytes(wire)


def _cut(wire: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    ends = sorted({min(cut, len(wire)) for cut in cuts} | {len(wire)})
    return (wire[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end)


# Verdicts


def ours(pieces: Iterator[bytes]) -> tuple[Verdict | None, int]:
    """What our reader makes of it, None when it refuses; and how many bytes that took."""
    reader = ResponseReader()
    reader.begin()
    read = 0
    body = b""
    try:
        for piece in pieces:
            reader.feed(piece)
            body += reader.take()
            read += len(piece)
            if reader.is_complete:
                break
    except MalformedResponseError:
        return None, read
    is_whole = reader.finish()
    if reader.head is None:
        return Verdict(0, [], b"", is_whole=False), read
    return Verdict(reader.head.status, _lowered(reader.head.fields), body, is_whole), read


def aiohttps(wire: bytes) -> Verdict | None:
    """What aiohttp's parser makes of it."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpResponseParser(
            BaseProtocol(loop),
            loop,
            65_536,
            max_line_size=65_536,
            max_field_size=65_536,
            payload_exception=ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
        )
        return _aiohttps(parser, wire)
    finally:
        loop.close()


def _aiohttps(parser: HttpResponseParser, wire: bytes) -> Verdict | None:
    try:
        messages, is_upgraded, _ = parser.feed_data(wire)
    except http_exceptions.HttpProcessingError:
        return None
    final = [(message, payload) for message, payload in messages if message.code >= 200 or message.code < 100]
    if is_upgraded or not final:
        return None if is_upgraded else Verdict(0, [], b"", is_whole=False)
    message, payload = final[0]
    with suppress(http_exceptions.HttpProcessingError, ClientPayloadError):
        parser.feed_eof()
    is_whole = payload.is_eof() and payload.exception() is None
    return Verdict(message.code, _lowered(message.headers), b"".join(getattr(payload, "_buffer", ())), is_whole)


def _lowered(fields: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    """In their order; aiohttp writes the names it knows its own way."""
    return [(name.lower(), value) for name, value in fields.items()]


# What must hold


@settings(max_examples=600, deadline=None)
@given(wire=_wires(), cuts=st.lists(st.integers(0, 300), max_size=6))
@example(wire=b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", cuts=[])
@example(wire=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nab\r\n0\r\n\r\n", cuts=[])
@example(wire=b"HTTP/1.1 200\r\nX: \r\nX:\r\r\nContent-Length: 0\r\n\r\n", cuts=[])
@example(wire=b"HTTP/1.1 200\r\nX: \r\nContent-Length:\r 0\r\n\r\n", cuts=[])
@example(wire=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\r\n0\r\n\r\n", cuts=[])
@example(wire=b"HTTP/1.1 200\r\nX: \x7f\nX: \r\nContent-Length: 0\r\n\r\n", cuts=[])
@example(wire=b"HTTP/1.1 200\r\nX: \0\n\r\n", cuts=[])
@example(wire=b"HTTP/1.1 200\r\nX: \x7f\n\r\n", cuts=[])
def test_the_same_verdict_as_aiohttps(wire: bytes, cuts: list[int]) -> None:
    """What ours accepts, aiohttp's reads alike; an answer that ours alone does not see has one of the reasons above."""
    verdict, _ = ours(_cut(wire, cuts))
    if verdict is not None and verdict.status:
        # What comes behind a whole response is nobody's, and not compared.
        whole, read = ours(_cut(wire, range(len(wire))))
        assert whole == verdict
        assert aiohttps(wire[:read]) == verdict
        return
    theirs = aiohttps(wire)
    if theirs is not None and theirs.status:
        assert [reason for reason, pattern in STRICTER.items() if re.search(pattern, wire)] != []


@settings(max_examples=300, deadline=None)
@given(wire=_wires(), cuts=st.lists(st.integers(0, 300), max_size=6))
def test_cuts_make_no_difference(wire: bytes, cuts: list[int]) -> None:
    """A response is accepted or refused for its bytes, not for how they came."""
    assert ours(_cut(wire, cuts))[0] == ours(iter([wire]))[0] == ours(_cut(wire, range(len(wire))))[0]


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_noise_is_refused_or_waited_for(noise: bytes, cuts: list[int]) -> None:
    """Random bytes never become an answer, and nothing but the one error comes of them."""
    verdict, _ = ours(_cut(noise, cuts))
    assert verdict is None or not verdict.is_whole
