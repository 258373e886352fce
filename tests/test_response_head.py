"""Heads of responses: what is in them once, and what is never in them."""

from __future__ import annotations

import re

import pytest

from llmproxy.response_head import head_bytes

LENGTH = "content-length: 2\r\n"


def lines(head: bytes) -> list[str]:
    """The lines of a head, which has to end as one."""
    assert head.endswith(b"\r\n\r\n")
    return head.decode("utf-8", "surrogateescape").split("\r\n")[:-2]


def test_a_head_says_what_came_and_how_long_the_body_is() -> None:
    """Status line, the fields as they are, the framing, the date and who answers; nothing else."""
    made = lines(head_bytes(200, [("x-a", "1"), ("X-B", "zwei")], LENGTH, version=(1, 1), keeps_alive=True))
    date = made.pop(4)
    assert made == ["HTTP/1.1 200 OK", "x-a: 1", "X-B: zwei", "content-length: 2", "server: llmproxy"]
    assert re.fullmatch(r"date: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection", "Keep-Alive", "DATE", "server"])
def test_framing_is_cores_alone(name: str) -> None:
    """A field of an answer that would say otherwise where the response ends is left out, however it is written."""
    made = head_bytes(200, [(name, "999")], LENGTH, version=(1, 1), keeps_alive=True)
    assert b"999" not in made


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b"])
def test_a_field_cannot_begin_another(value: str) -> None:
    """A value with a line break in it is not sent, in whatever field."""
    with pytest.raises(ValueError, match="line break"):
        head_bytes(200, [("x-a", value)], LENGTH, version=(1, 1), keeps_alive=True)


@pytest.mark.parametrize(
    ("version", "keeps_alive", "said"),
    [
        ((1, 1), True, None),
        ((1, 1), False, "connection: close"),
        ((1, 0), True, "connection: keep-alive"),
        ((1, 0), False, None),
    ],
)
def test_the_connection_is_named_where_its_version_means_something_else(
    *, version: tuple[int, int], keeps_alive: bool, said: str | None
) -> None:
    """HTTP/1.1 keeps connections and HTTP/1.0 closes them, unless they are told otherwise."""
    made = lines(head_bytes(200, [], LENGTH, version=version, keeps_alive=keeps_alive))
    assert next((line for line in made if line.startswith("connection")), None) == said


def test_bytes_that_are_no_text_go_out_as_they_came() -> None:
    """What was read as surrogates is the same bytes again."""
    made = head_bytes(
        200, [("x-a", b"\xff\xe9".decode("utf-8", "surrogateescape"))], LENGTH, version=(1, 1), keeps_alive=True
    )
    assert b"x-a: \xff\xe9\r\n" in made
