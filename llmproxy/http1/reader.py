"""Responses as they come off one connection, without I/O: llhttp frames them, and what it would let pass is refused."""

from __future__ import annotations

from typing import Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict, CIMultiDictProxy

MAX_HEAD_BYTES: Final = 65_536
MAX_FIELDS: Final = 256
# What may come between two pieces of a body that is no body itself: chunk extensions and trailers.
MAX_FRAMING_BYTES: Final = 65_536

_HEAD_END: Final = b"\r\n\r\n"


class MalformedResponseError(Exception):
    """What came is not an HTTP/1.1 response, or one whose end nobody can tell for sure."""


class ResponseHead(NamedTuple):
    """Status and fields of a response."""

    status: int
    fields: CIMultiDictProxy[str]


class ResponseReader:
    """Reads one response after another.

    Attributes:
        head: The response's head once it is there; informational ones are passed over.
        pieces: What has come of its body and was not taken yet.
        is_complete: Whether nothing more of it will come.
        keeps_alive: Whether another request may follow on the connection, once the response is complete.
    """

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.is_complete = True
        self.keeps_alive = True
        # What the parser calls; it looks for this one when it is made.
        self.on_body = self.pieces.append
        self._parser = HttpResponseParser(self)
        # A control character in a value must not cost the answer; whoever passes a field on looks at it.
        self._parser.set_dangerous_leniencies(lenient_headers=True)
        self._raw = b""
        self._is_head_parsed = False
        self._is_bodiless = False
        self._ends_with_connection = False
        self._framing_bytes = 0

    @property
    def has_begun(self) -> bool:
        """Whether anything of the response has come."""
        return self.head is not None or bool(self._raw)

    def begin(self, *, is_bodiless: bool = False) -> None:
        """A request goes out: expect its response, one without a body when it answers a HEAD."""
        self.head = None
        self.is_complete = False
        self._is_bodiless = is_bodiless
        self._framing_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take in what came. Raises MalformedResponseError, after which nothing of the connection can be trusted."""
        while data and self.head is None:
            data = self._feed_head(data)
        if data:
            self._feed_body(data)

    def take(self) -> bytes:
        """What has come of the body since the last time."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def finish(self) -> bool:
        """The connection has ended: whether the response has too."""
        if self._ends_with_connection and self.head is not None:
            self.is_complete = True
        return self.is_complete

    # What the parser calls

    def on_message_begin(self) -> None:
        """A response begins. One that nobody asked for stops the parser: its body is nobody's."""
        if self.is_complete:
            raise MalformedResponseError("A second response came behind the one that was asked for.")

    def on_headers_complete(self) -> None:
        """Fields are over. Only now the parser knows; once the message is complete it says no."""
        self._is_head_parsed = True
        self.keeps_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        """The end, as it was announced."""
        if self.head is not None:
            self.is_complete = True

    # Heads

    def _feed_head(self, data: bytes) -> bytes:
        """Take in some of a head; what comes behind it is returned."""
        fed = len(self._raw)
        raw = self._raw + data
        end = raw.find(_HEAD_END, max(fed - 3, 0))
        if (len(raw) if end < 0 else end) > MAX_HEAD_BYTES:
            raise MalformedResponseError(f"The head has more than {MAX_HEAD_BYTES} bytes.")
        if end < 0:
            # Parsed at once all the same, so that garbage is not waited out.
            self._parse(data)
            self._raw = raw
            return b""
        self._raw = b""
        self._is_head_parsed = False
        return self._end_head(raw, fed, end + len(_HEAD_END))

    def _end_head(self, raw: bytes, fed: int, end: int) -> bytes:
        head = _head(raw[:end])
        if head.status >= 200:
            # Before it is parsed to its end: without a body, the message ends with it.
            self.head = head
        self._parse(raw[fed:end])
        if not self._is_head_parsed or self._parser.get_status_code() != head.status:
            raise MalformedResponseError("The head does not end where it says.")
        if self.head is not None:
            self._expect_body(self.head)
        return raw[end:]

    def _expect_body(self, head: ResponseHead) -> None:
        fields = head.fields
        coding = fields.getall("transfer-encoding", None)
        if coding is not None and (len(coding) > 1 or coding[0].lower() != "chunked"):
            raise MalformedResponseError("The body has a transfer coding other than chunked.")
        self._ends_with_connection = coding is None and "content-length" not in fields
        if self._is_bodiless and not self.is_complete:
            # The parser cannot be told, and would take the next response for this one's body.
            self.is_complete = True
            self.keeps_alive = False

    # Bodies

    def _feed_body(self, data: bytes) -> None:
        if self.is_complete:
            self.keeps_alive = False
            return
        self._parse(data)
        self._framing_bytes = 0 if self.pieces else self._framing_bytes + len(data)
        if self._framing_bytes > MAX_FRAMING_BYTES:
            raise MalformedResponseError("There is no end to chunk extensions or trailers.")

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self.is_complete:
                raise MalformedResponseError(str(error)) from error
            # The response is whole; what comes behind it goes with the connection.
            self.keeps_alive = False


def _head(raw: bytes) -> ResponseHead:
    """The parts of a head; that they are well-formed is the parser's business."""
    if not raw.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")) or raw[9:10] == b"0" or raw[9:12] == b"101":
        raise MalformedResponseError("The answer is not HTTP/1.")
    if b"\r\n " in raw or b"\r\n\t" in raw or b"\0" in raw:
        raise MalformedResponseError("The head has a folded line or a NUL in it.")
    line_ends = raw.count(b"\r\n")
    if raw.count(b"\r") != line_ends or raw.count(b"\n") != line_ends:
        # Going by what is beside it, or by the pieces it comes in, llhttp takes it for a part of the value or its end.
        raise MalformedResponseError("The head has a carriage return, or a line feed, in the middle of a line.")
    lines = raw.decode("utf-8", "surrogateescape").split("\r\n")
    if len(lines) > MAX_FIELDS + 3:
        raise MalformedResponseError(f"The head has more than {MAX_FIELDS} fields.")
    parts = [line.partition(":") for line in lines[1:-2]]
    fields = CIMultiDict([(name, value.strip(" \t")) for name, _, value in parts])
    try:
        return ResponseHead(int(raw[9:12]), CIMultiDictProxy(fields))
    except ValueError as error:
        raise MalformedResponseError("The status is no number.") from error
