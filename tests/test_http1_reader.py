"""What counts as a response: heads, framing and ends, byte by byte and without a socket."""

from __future__ import annotations

import pytest

from llmproxy.http1.reader import (
    MAX_FIELDS,
    MAX_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    MalformedResponseError,
    ResponseReader,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def expecting(*, is_bodiless: bool = False) -> ResponseReader:
    """A reader to which a response is due."""
    reader = ResponseReader()
    reader.begin(is_bodiless=is_bodiless)
    return reader


def feed(reader: ResponseReader, wire: bytes, size: int) -> None:
    """Have some bytes come in pieces of a size."""
    for start in range(0, len(wire), size):
        reader.feed(wire[start : start + size])


def status(reader: ResponseReader) -> int:
    """The status of the head that must be there."""
    assert reader.head is not None
    return reader.head.status


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_response_is_the_same_however_it_is_cut(size: int) -> None:
    """Fields in their order and in any case, all pieces of the body, and the end: whatever comes in one read."""
    wire = OK + "X-One: 1\r\nx-two:\t ü  \r\nX-ONE: again\r\ntransfer-encoding: Chunked\r\n\r\n".encode()
    wire += b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: ignored\r\n\r\n"
    reader = expecting()
    for start in range(0, len(wire), size):
        assert not reader.is_complete
        reader.feed(wire[start : start + size])
    assert reader.head is not None
    assert (reader.head.status, reader.head.fields.getall("x-one")) == (200, ["1", "again"])
    assert reader.head.fields["X-TWO"] == "ü"
    assert (reader.take(), reader.is_complete, reader.keeps_alive) == (b"abcde", True, True)


@pytest.mark.parametrize(
    ("wire", "body", "is_complete", "keeps_alive"),
    [
        (OK + b"Content-Length: 2\r\n\r\nab", b"ab", True, True),
        (OK + b"Content-Length: 3\r\n\r\nab", b"ab", False, True),
        (OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nab", b"ab", True, False),
        (OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nabc", b"ab", True, False),
        (OK + b"Content-Length: 2\r\n\r\nab" + OK + b"Content-Length: 1\r\n\r\nc", b"ab", True, False),
        (OK + b"Content-Length: 2\r\n\r\nab" + OK[:5], b"ab", True, False),
        (OK + b"Content-Length: 2\r\n\r\nab garbage", b"ab", True, False),
        (OK + b"\r\nab", b"ab", False, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", b"ab", True, False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab", b"ab", True, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", True, True),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", True, True),
        (CHUNKED + b"2\r\nab\r\n0\r\n", b"ab", False, True),
        (OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nab", b"ab", True, True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX: 1\r\n\r\n" + CHUNKED + b"0\r\n\r\n", b"", True, True),
    ],
)  # fmt: skip
def test_where_a_response_ends(wire: bytes, body: bytes, *, is_complete: bool, keeps_alive: bool) -> None:
    """A body ends where its framing says, and what comes behind it goes with the connection."""
    for size in (1, len(wire)):
        reader = expecting()
        feed(reader, wire, size)
        assert (reader.take(), reader.is_complete, reader.keeps_alive) == (body, is_complete, keeps_alive)


@pytest.mark.parametrize(
    ("wire", "is_whole"),
    [
        (b"", False),
        (b"HTTP/1.1 2", False),
        (OK + b"X: 1\r\n", False),
        (OK + b"\r\n", True),
        (OK + b"\r\nsome", True),
        (OK + b"Content-Length: 5\r\n\r\nsome", False),
        (CHUNKED + b"4\r\nsome\r\n", False),
        (CHUNKED + b"4\r\nsome\r\n0\r\n", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False),
    ],
)
def test_what_the_end_of_the_connection_means(wire: bytes, *, is_whole: bool) -> None:
    """It ends a body that has no other end, and cuts every other one."""
    reader = expecting()
    reader.feed(wire)
    assert reader.finish() is is_whole


def test_an_answer_to_a_head_request_has_no_body_whatever_it_says() -> None:
    """Its length is that of a body which does not come; the connection is not trusted with another request."""
    reader = expecting(is_bodiless=True)
    reader.feed(OK + b"Content-Length: 5\r\n\r\n")
    assert (status(reader), reader.is_complete, reader.keeps_alive, reader.take()) == (200, True, False, b"")


def test_responses_follow_each_other() -> None:
    """One reader reads what comes on its connection, one response after the other, however each was framed."""
    reader = expecting()
    for wire in (OK + b"Content-Length: 1\r\n\r\na", CHUNKED + b"1\r\nb\r\n0\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n"):
        reader.begin()
        assert not reader.has_begun
        reader.feed(wire)
        assert (reader.is_complete, reader.keeps_alive, reader.has_begun) == (True, True, True)
        assert reader.take() in (b"a", b"b", b"")


MALFORMED = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "another protocol": b"RTSP/1.0 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a short status": b"HTTP/1.1 20 OK\r\n\r\n",
    "a long status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a low status": b"HTTP/1.1 099 No\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "blank lines first": b"\r\n\r\n" + OK + b"\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a bare line feed": OK + b"X: a\nContent-Length: 0\r\n\r\n",
    "a bare carriage return": OK + b"X: a\rb\r\n\r\n",
    "a folded field": OK + b"X: a\r\n b\r\n\r\n",
    "a field before it starts": OK + b" X: a\r\n\r\n",
    "a space before the colon": OK + b"X : a\r\n\r\n",
    "no colon": OK + b"X\r\n\r\n",
    "no name": OK + b": a\r\n\r\n",
    "a strange name": OK + b"X\xff: a\r\n\r\n",
    "a NUL": OK + b"X: a\0b\r\n\r\n",
    "two framings": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two framings, turned round": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n",
    "the same length twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\n",
    "a signed length": OK + b"Content-Length: +2\r\n\r\n",
    "an endless length": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
    "an empty length": OK + b"Content-Length:\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "another coding last": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "no coding": OK + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\n",
    "a prefixed chunk size": CHUNKED + b"0x2\r\nab\r\n",
    "a negative chunk size": CHUNKED + b"-2\r\nab\r\n",
    "an endless chunk size": CHUNKED + b"fffffffffffffffff\r\n",
    "a chunk size before a bare line feed": CHUNKED + b"2\nab\r\n",
    "a chunk longer than it says": CHUNKED + b"2\r\nabc\r\n",
    "a chunk before a bare line feed": CHUNKED + b"2\r\nab\n0\r\n\r\n",
    "a broken trailer": CHUNKED + b"0\r\nno colon\r\n\r\n",
    "a huge field": OK + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "a huge status line": b"HTTP/1.1 200 " + b"x" * (MAX_HEAD_BYTES + 1),
    "many fields": OK + b"X: 1\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    "many trailers": CHUNKED + b"0\r\n" + b"X: 1\r\n" * (MAX_FRAMING_BYTES // 6 + 2),
    "a huge chunk extension": CHUNKED + b"2;" + b"x" * (MAX_FRAMING_BYTES + 1),
}


@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_what_is_refused(wire: bytes, size: int) -> None:
    """Whatever is no HTTP/1.1, says two things about its end, or never ends."""
    reader = expecting()
    with pytest.raises(MalformedResponseError):
        feed(reader, wire, size)


def test_garbage_is_not_waited_out() -> None:
    """What cannot become a head any more is refused at its first wrong byte."""
    reader = expecting()
    reader.feed(b"HTTP/1.")
    with pytest.raises(MalformedResponseError):
        reader.feed(b"x")


def test_as_much_as_is_allowed_is_read() -> None:
    """The limits are limits, not one less."""
    fields = OK + b"X: 1\r\n" * (MAX_FIELDS - 1)
    rest = b"Content-Length: 0\r\n\r\n"
    reader = expecting()
    reader.feed(fields + rest)
    assert reader.is_complete
    reader.begin()
    reader.feed(OK + b"X: " + b"x" * (MAX_HEAD_BYTES - len(OK + b"X: \r\n" + rest) + 4) + b"\r\n" + rest)
    assert reader.is_complete
