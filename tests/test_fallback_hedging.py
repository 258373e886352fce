from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from llmproxy.exchange import Attempt, Exchange, Hedge, Target
from llmproxy.request import Document
from llmproxy.testing import ScriptedUpstream, StartProxy, make_exchange, reply
from llmproxy.testing.clock import START
from llmproxy_plugins.fallback import Fallback
from llmproxy_plugins.fallback.config import HedgeRules
from llmproxy_plugins.fallback.hedging import Allowance, Hedging
from tests.test_fallback import two_targets

DAY = date(2026, 1, 1)
FIRST, SECOND = Target("a", "m"), Target("b", "m")
RULES = HedgeRules(min_seconds=0.1)


def attempt_at(exchange: Exchange, target: Target, seconds: float | None = None) -> Attempt:
    """An attempt, answered after so many seconds if any are given."""
    attempt = Attempt(1, target, exchange.request, START, 0.0)
    attempt.first_chunk_seconds = seconds
    return attempt


def informed(seconds: list[float]) -> Hedging:
    """Hedging that has seen attempts at the first target take so long."""
    hedging, exchange = Hedging(lambda: DAY), make_exchange()
    for each in seconds:
        hedging.learn(exchange, attempt_at(exchange, FIRST, each), RULES)
    return hedging


def hedge(hedging: Hedging, rules: HedgeRules = RULES, *, elsewhere: Target | None = SECOND) -> Hedge | None:
    """What is decided for one request to the first target."""
    exchange = make_exchange()
    return hedging.hedge(exchange, attempt_at(exchange, FIRST), rules, lambda: elsewhere)


def test_slow_is_what_is_slow_for_the_target() -> None:
    """A second attempt begins after the target's own p95, and never before the least pause."""
    slow = hedge(informed([number / 100 for number in range(1, 101)]))
    assert slow is not None
    assert slow.target == SECOND
    assert slow.after_seconds == pytest.approx(0.96)
    fast = hedge(informed([0.001] * 100))
    assert fast is not None
    assert fast.after_seconds == 0.1


def test_nothing_is_hedged_in_the_dark() -> None:
    """Without another target, or before enough is known of this one, one attempt is made at a time."""
    assert hedge(informed([0.5] * 100), elsewhere=None) is None
    assert hedge(informed([0.5] * 5)) is None


def test_extra_requests_stay_within_their_share() -> None:
    """However slow everything is, no more than the share of all requests is asked twice."""
    hedging = informed([0.5] * 100)
    begun = [decided.may_begin() for _ in range(1000) if (decided := hedge(hedging)) is not None]
    assert 40 <= sum(begun) <= 50


def test_attempts_that_lose_cost_no_more_than_is_allowed_in_a_day() -> None:
    """When the money is spent nothing is hedged until the next day."""
    today = [DAY]
    allowance = Allowance(HedgeRules(max_extra_share=1, max_extra_usd_per_day=0.5), lambda: today[0])
    for _ in range(5):
        allowance.earn()
    assert allowance.take()
    allowance.spend(Decimal("0.6"))
    assert not allowance.take()
    today[0] = date(2026, 1, 2)
    assert allowance.take()


async def test_a_slow_answer_is_overtaken_by_another_target(proxy: StartProxy) -> None:
    """The client gets the first answer, the slow provider is hung up on, and both attempts are recorded."""
    hedged: Document = {"hedge": {"min_seconds": 0.05, "max_extra_share": 1}}
    async with ScriptedUpstream(default=reply("overtaken")) as other:
        upstream = [*([reply("usual")] * 20), reply("slow", delay_seconds=20)]
        async with proxy(Fallback, hedged, upstream=upstream, config=two_targets(other)) as client:
            for _ in range(20):
                await client.chat("hello")
            response = await client.chat("hello")
            rows = await client.rows()
            assert response.text == "overtaken"
            assert (response.headers["x-llmproxy-model"], len(client.upstream.cancelled)) == ("other/other-model", 1)
    last = [row["failure"] for row in rows.attempts if row["request_id"] == rows.requests[-1]["id"]]
    assert last == ["superseded", None]
