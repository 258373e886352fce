"""The head of a response as bytes, made in one go: nothing is built for a field but its line."""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Final

from llmproxy.request import Headers

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
# What says where the response ends, and what it would be wrong to have twice: core's alone.
_OWN: Final = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"})


def head_bytes(status: int, headers: Headers, framing: str, *, version: tuple[int, int], keeps_alive: bool) -> bytes:
    """Status line and fields. Raises ValueError when a field cannot be sent.

    Args:
        framing: The line that says how long the body is, if any.
        version: The HTTP version that was asked with.
        keeps_alive: Whether another request may follow on the connection.
    """
    lines = [f"{name}: {value}\r\n" for name, value in headers if name.lower() not in _OWN]
    fields = "".join(lines)
    if fields.count("\n") != len(lines) or fields.count("\r") != len(lines) or "\0" in fields:
        raise ValueError("A header has a line break in it.")
    connection = ""
    if keeps_alive != (version >= (1, 1)):
        # Said only where it is not what the version means by itself.
        connection = "connection: keep-alive\r\n" if keeps_alive else "connection: close\r\n"
    head = (
        f"HTTP/{version[0]}.{version[1]} {status} {_REASONS.get(status, '')}\r\n{fields}{framing}"
        f"date: {_date(int(time()))}\r\nserver: llmproxy\r\n{connection}\r\n"
    )
    # What came as bytes that are no text goes out as it came.
    return head.encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
