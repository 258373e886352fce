"""The first claim, in real processes: spend never passes a hard cap, and what there is can be spent."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tests.budget_load import CAP, Scale, run


@pytest.mark.timeout(120)
async def test_a_hard_cap_holds_and_can_be_used_up(database_url: str, tmp_path: Path) -> None:
    """Two replicas that start at once, clients that hang up, failures and killed workers spend 95 % to 100 % of it.

    The window of the budget is the ledger's sum to the digit, and nobody holds anything in the end.
    """
    result = await run(Scale(workers=2, replicas=2, clients=40, kills=2), database_url, tmp_path)
    assert result.errors == []
    assert Decimal("0.95") * CAP <= result.spent <= CAP
    assert (result.settled, result.held) == (result.spent, Decimal(0))
    assert result.outcomes["interrupted"] > 0
