"""Second attempts beside slow ones: how slow is slow for a target, and how many of them there may be."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Final

from llmproxy.api import Attempt, Exchange, Hedge, StateKey, Target, UpstreamSuperseded
from llmproxy_plugins.fallback.config import HedgeRules
from llmproxy_plugins.fallback.health import TargetKey, key_of

# Enough for a p95 that six slow ones decide, few enough to follow the target's moods.
_REMEMBERED: Final = 128
_LEAST: Final = 20
_MAX_TARGETS: Final = 10_000
# Extra requests that may be saved up in quiet times.
_MAX_SAVED: Final = 10.0
_HEDGED: Final = StateKey[Target]("fallback.hedged")


class Latencies:
    """The latest times to first content, by target; streams and whole answers apart."""

    def __init__(self) -> None:
        self._observed: OrderedDict[tuple[TargetKey, bool], deque[float]] = OrderedDict()

    def add(self, attempt: Attempt) -> None:
        """Take note of an attempt that was answered, or given up for another that was faster."""
        is_lost = isinstance(attempt.error, UpstreamSuperseded)
        # Without those that lost, the slow ones would be missing and the quantile would sink from hedge to hedge.
        seconds = attempt.duration_seconds if is_lost else attempt.first_chunk_seconds
        if seconds is None:
            return
        key = (key_of(attempt.target), attempt.request.is_stream)
        self._observed.setdefault(key, deque(maxlen=_REMEMBERED)).append(seconds)
        self._observed.move_to_end(key)
        if len(self._observed) > _MAX_TARGETS:
            self._observed.popitem(last=False)

    def quantile(self, attempt: Attempt, share: float) -> float | None:
        """The time within which this share of the target's attempts had begun; None while too few are known."""
        observed = self._observed.get((key_of(attempt.target), attempt.request.is_stream), ())
        if len(observed) < _LEAST:
            return None
        return sorted(observed)[min(int(share * len(observed)), len(observed) - 1)]


class Allowance:
    """How many extra requests there may be, and what those that lost may cost in a day."""

    def __init__(self, rules: HedgeRules, today: Callable[[], date]) -> None:
        self._rules = rules
        self._today = today
        self._extra = 0.0
        self._day = today()
        self._spent_usd = Decimal(0)

    def earn(self) -> None:
        """A request that could be hedged has come."""
        self._extra = min(self._extra + self._rules.max_extra_share, _MAX_SAVED)

    def take(self) -> bool:
        """Whether an extra request may be made now; if so, it counts."""
        if self._extra < 1 or self._is_spent():
            return False
        self._extra -= 1
        return True

    def spend(self, amount_usd: Decimal) -> None:
        """What an extra request has cost."""
        self._begin_day()
        self._spent_usd += amount_usd

    def _is_spent(self) -> bool:
        self._begin_day()
        most_usd = self._rules.max_extra_usd_per_day
        return most_usd is not None and self._spent_usd >= most_usd

    def _begin_day(self) -> None:
        if self._day != (today := self._today()):
            self._day, self._spent_usd = today, Decimal(0)


class Hedging:
    """Decides on second attempts."""

    def __init__(self, today: Callable[[], date]) -> None:
        self._today = today
        self._latencies = Latencies()
        self._allowances: dict[HedgeRules, Allowance] = {}

    def hedge(
        self, exchange: Exchange, attempt: Attempt, rules: HedgeRules, elsewhere: Callable[[], Target | None]
    ) -> Hedge | None:
        """When and where a second attempt begins, if it may; None without another target, or too little known.

        Args:
            elsewhere: Gives a healthy target that is still to be tried, if there is one.
        """
        allowance = self._allowance(rules)
        allowance.earn()
        target = elsewhere()
        slow_seconds = self._latencies.quantile(attempt, rules.quantile)
        if target is None or slow_seconds is None:
            return None

        def may_begin() -> bool:
            if target != elsewhere() or not allowance.take():
                return False
            exchange.state[_HEDGED] = target
            return True

        return Hedge(target, max(slow_seconds, rules.min_seconds), may_begin)

    def learn(self, exchange: Exchange, attempt: Attempt, rules: HedgeRules) -> None:
        """Take note of how an attempt ended: what it took, and what it cost if it was one too many."""
        self._latencies.add(attempt)
        has_lost = attempt.error is not None and _HEDGED in exchange.state
        if has_lost and attempt.cost is not None and attempt.cost.amount_usd is not None:
            self._allowance(rules).spend(attempt.cost.amount_usd)

    def _allowance(self, rules: HedgeRules) -> Allowance:
        allowance = self._allowances.get(rules)
        if allowance is None:
            allowance = self._allowances[rules] = Allowance(rules, self._today)
        return allowance
