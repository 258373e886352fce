"""What tables of figures say of rounds: their median, and how far they lie apart."""

from __future__ import annotations

import pytest

from benchmarks.report import ratio


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ([1.0, 1.5, 9.0], "1.50 (1.00 to 9.00)"),
        ([1.0] * 19 + [9.0], "1.00 (1.00 to 1.00)"),
        ([1.0] * 10 + [3.0] * 10, "2.00 (1.00 to 3.00)"),
    ],
)
def test_of_many_rounds_those_that_something_disturbed_are_left_out(rounds: list[float], told: str) -> None:
    """The range of few is that of all of them, of many that of their middle half."""
    assert ratio(rounds, [1.0] * len(rounds), float) == told
