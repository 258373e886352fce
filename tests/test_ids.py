"""Request ids: unique, sorted by time, and telling when they were made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import BadRequest
from llmproxy.ids import new_id, time_of

TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)).map(lambda time: time.replace(tzinfo=UTC))  # noqa: DTZ001 - made aware at once


@given(TIMES)
def test_an_id_is_a_uuid_of_version_7_that_tells_its_time(now: datetime) -> None:
    """The first 48 bits are the milliseconds, then version, parts of a millisecond, variant and chance."""
    made = UUID(new_id(now))
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert abs(time_of(str(made)) - now) < timedelta(milliseconds=1.5)


@given(TIMES, st.timedeltas(timedelta(microseconds=5), timedelta(days=1000)))
def test_later_ids_sort_later(now: datetime, later: timedelta) -> None:
    """So that an index over ids is one over time, and requests of one millisecond are listed as they came."""
    assert new_id(now) < new_id(now + later)


def test_ids_of_one_moment_differ() -> None:
    """Chance alone keeps them apart."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert len({new_id(now) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("text", ["", "x", "req_1", "'; DROP TABLE requests; --", "f" * 32])
def test_what_is_no_id_is_a_bad_request(text: str) -> None:
    """Nothing but an id reaches a query."""
    with pytest.raises(BadRequest):
        time_of(text)
