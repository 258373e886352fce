"""Attribution: what clients say in headers, within limits, and what a key says for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.attribution import attribution_of, comma_list, timeout_seconds
from llmproxy.errors import BadRequest
from llmproxy.exchange import Attribution, Principal

ANYONE = Principal("acme", "key_1")


def test_every_header_lands_in_its_field() -> None:
    """Feature, user, session, prompt version, tags, metadata and trace are taken from the headers."""
    headers = {
        "x-llmproxy-feature": "search",
        "x-llmproxy-user": "zoë",
        "x-llmproxy-session": "s1",
        "x-llmproxy-prompt-version": "7",
        "x-llmproxy-tags": "a, b,,c ",
        "x-llmproxy-metadata": '{"team": {"id": 1}}',
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    assert attribution_of(headers, ANYONE) == Attribution(
        "search", "zoë", "s1", "7", ("a", "b", "c"), {"team": {"id": 1}}, "4bf92f3577b34da6a3ce929d0e0e4736"
    )


def test_without_headers_there_is_none() -> None:
    """Everything is optional."""
    assert attribution_of({}, ANYONE) == Attribution()


def test_what_the_key_says_wins() -> None:
    """A client cannot book its spending on another's feature or user when its key names them."""
    principal = Principal("acme", "key_1", feature="billing", user="ann")
    found = attribution_of({"x-llmproxy-feature": "free", "x-llmproxy-user": "bob"}, principal)
    assert (found.feature, found.user) == ("billing", "ann")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-llmproxy-feature", "x" * 257),
        ("x-llmproxy-user", "a\x00b"),
        ("x-llmproxy-session", "a\udcffb"),
        ("x-llmproxy-tags", ",".join(map(str, range(33)))),
        ("x-llmproxy-tags", "y" * 257),
        ("x-llmproxy-metadata", "[1]"),
        ("x-llmproxy-metadata", "{"),
        ("x-llmproxy-metadata", '{"a": "' + "x" * 5000 + '"}'),
    ],
)
def test_what_no_row_could_hold_is_a_bad_request(name: str, value: str) -> None:
    """The error names the header and quotes nothing."""
    with pytest.raises(BadRequest) as caught:
        attribution_of({name: value}, ANYONE)
    assert name in caught.value.message
    assert value not in caught.value.message


@given(st.text())
def test_any_trace_header_gives_a_trace_id_or_none(value: str) -> None:
    """What is not W3C's form is ignored, never an error: tracing must not break requests."""
    found = attribution_of({"traceparent": value}, ANYONE).trace_id
    assert found is None or len(found) == 32


@pytest.mark.parametrize(("value", "seconds"), [("5", 5.0), ("0.25", 0.25), (None, None)])
def test_the_clients_timeout_is_in_seconds(value: str | None, seconds: float | None) -> None:
    """Whole or not; absent leaves it to the configuration."""
    assert timeout_seconds({} if value is None else {"x-llmproxy-timeout": value}) == seconds


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_timeout_that_is_no_positive_number_is_a_bad_request(value: str) -> None:
    """Silently ignoring it would let a client wait for what it meant to limit."""
    with pytest.raises(BadRequest, match="x-llmproxy-timeout"):
        timeout_seconds({"x-llmproxy-timeout": value})


def test_a_comma_list_has_no_blanks() -> None:
    """Items are trimmed, empty ones left out."""
    assert comma_list(" a,, b ,") == ("a", "b")
