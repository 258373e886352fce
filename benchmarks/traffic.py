"""The requests that are sent, and the one right answer to each: known to the load and to the upstream alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

API_KEY: Final = "sk-benchmarks-4f1c9d2be87a4c5f9a0e"
MODEL: Final = "bench/model"
PATH: Final = "/v1/chat/completions"

_PROMPT: Final = b"Say in a few words what a gateway is good for, and leave out what everybody knows. " * 6
_MESSAGES: Final = b'{"role":"user","content":"%b"}' % _PROMPT
_TEXT: Final = b"A gateway is one door with one lock: whoever comes in is known, counted and shown the way. " * 4
_USER: Final = re.compile(rb'"user":"(\d+)-(\d+)-(\d+)"')
_USAGE: Final = b'"usage":{"prompt_tokens":112,"completion_tokens":84,"total_tokens":196}'
_EVENT_HEAD: Final = (
    b'data: {"id":"chatcmpl-%08d","object":"chat.completion.chunk","created":1700000000,"model":"model",'
)


@dataclass(frozen=True, slots=True)
class Order:
    """What the upstream is to do; it travels in the request's `user`, which every proxy has to leave alone.

    Attributes:
        number: The request's own, and part of its answer: an answer to another request is a wrong one.
        events: Content events to stream; 0 asks for a whole answer.
        gap_ms: The time between two events; 0 streams as fast as the reader reads.
        model: What is asked for; the answer is the same for every model.
        key: What the client presents.
        headers: Further lines of the request's head, each with its end.
        messages: The conversation, as JSON without its brackets.
    """

    number: int
    events: int = 0
    gap_ms: int = 0
    model: str = MODEL
    key: str = API_KEY
    headers: bytes = b""
    messages: bytes = _MESSAGES

    def request(self) -> bytes:
        """The request on the wire."""
        body = b'{"model":"%b","user":"%d-%d-%d",%b"messages":[%b]}' % (
            self.model.encode(),
            self.number,
            self.events,
            self.gap_ms,
            b'"stream":true,"stream_options":{"include_usage":true},' if self.events else b"",
            self.messages,
        )
        return _HEAD % (self.key.encode(), self.headers, len(body)) + body

    def answer(self) -> bytes:
        """The body of a whole answer."""
        return (
            b'{"id":"chatcmpl-%08d","object":"chat.completion","created":1700000000,"model":"model",'
            b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],%b}'
        ) % (self.number, _TEXT, _USAGE)

    def event(self, index: int) -> bytes:
        """One content event of a stream."""
        return _EVENT_HEAD % self.number + b'"choices":[{"index":0,"delta":{"content":" word%d"}}]}\n\n' % index

    def end(self) -> bytes:
        """The last three events of a stream."""
        head = _EVENT_HEAD % self.number
        finish = head + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        return finish + head + b'"choices":[],' + _USAGE + b"}\n\ndata: [DONE]\n\n"

    def stream(self) -> bytes:
        """The body of a streamed answer."""
        return b"".join(map(self.event, range(self.events))) + self.end()

    def is_answer(self, body: bytes) -> bool:
        """Whether this is the body of its whole answer."""
        return body == self.answer()

    def is_stream(self, body: bytes) -> bool:
        """Whether this is the body of its streamed answer."""
        return body == self.stream()


_HEAD: Final = (
    f"POST {PATH} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %b\r\n"
    "Accept: application/json\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
).encode()


def order_in(body: bytes) -> Order:
    """The order that a request's body carries. Raises ValueError when it carries none."""
    if not (match := _USER.search(body)):
        raise ValueError("The request's body has lost its 'user'.")
    number, events, gap_ms = map(int, match.groups())
    return Order(number, events, gap_ms)


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def unchunked_so_far(data: bytes) -> bytes:
    """The body that the whole chunks among some data make."""
    pieces, position = [], 0
    while (start := data.find(b"\r\n", position) + 2) > 1:
        end = start + int(data[position : start - 2], 16)
        pieces.append(data[start:end])
        position = end + 2
    return b"".join(pieces)


def unchunked(data: bytes) -> bytes:
    """The body that some chunks make. Raises ValueError when they are not whole chunks up to the last."""
    pieces, position = [], 0
    while size := int(data[position : (start := data.index(b"\r\n", position) + 2)], 16):
        position = start + size + 2
        pieces.append(data[start : position - 2])
    if data[start:] != b"\r\n":
        raise ValueError("The last chunk is not the end.")
    return b"".join(pieces)
