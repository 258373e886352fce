"""Which targets are well: a circuit breaker for each, as a state machine without I/O or a clock of its own.

A target is healthy; after too many failures it cools down; then one request at a time tries whether it is back. The
first that succeeds makes it healthy again, and one that fails makes it cool down for twice as long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final, NamedTuple

from llmproxy.api import Failure, Target
from llmproxy_plugins.fallback.config import HealthRules

# Names of models are the clients' choice, so what is remembered of them has a limit.
_MAX_TARGETS: Final = 10_000
_BUCKETS: Final = 10
# Clocks and round trips make that much of a difference between two accounts of the same moment.
_SAME_SECONDS: Final = 0.5
# Past any limit there may be, and within what a float holds.
_MAX_DOUBLINGS: Final = 64
# The key, the account or the model is gone: no need to wait for more of the same.
_FATAL: Final = frozenset({Failure.AUTH, Failure.QUOTA})
# With a word from the vendor on how long to wait, one is enough as well.
_TOLD_TO_WAIT: Final = frozenset({Failure.RATE_LIMIT, Failure.OVERLOADED})


class TargetKey(NamedTuple):
    """What of a target is well or is not."""

    provider: str
    model: str
    credential: str | None

    @property
    def name(self) -> str:
        """As people write it: `provider/model`, and which of several keys."""
        return f"{self.provider}/{self.model}" + (f" (key {self.credential})" if self.credential else "")


def key_of(target: Target) -> TargetKey:
    """A target without what does not matter here: its weight and its region."""
    return TargetKey(target.provider, target.model, target.credential)


class State(StrEnum):
    """How a target is."""

    HEALTHY = "healthy"
    COOLING = "cooling"
    # The cool-down is over, and whether the target is back is for the next request to find out.
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class CoolDown:
    """Why a target is left alone, and until when.

    `repeats` counts the cool-downs before it that were not long ago.
    """

    reason: str
    began: float
    until: float
    repeats: int = 0


class Result(NamedTuple):
    """How an attempt went, as far as that says anything about its target. A tuple, since one is made of every attempt.

    `failure` is None for success. `retry_after_seconds` is the vendor's word. Times are of one monotonic clock.
    """

    began: float
    ended: float
    failure: Failure | None = None
    retry_after_seconds: float | None = None


class _Window:
    """Successes and failures of the last seconds, in some coarse buckets."""

    def __init__(self, seconds: float) -> None:
        self._bucket_seconds = seconds / _BUCKETS
        self._counts: dict[int, tuple[int, int]] = {}

    def add(self, now: float, *, failed: bool) -> None:
        bucket = int(now / self._bucket_seconds)
        counted = self._counts.get(bucket)
        if counted is None:
            self._counts = {each: count for each, count in self._counts.items() if each > bucket - _BUCKETS}
            counted = (0, 0)
        self._counts[bucket] = (counted[0] + 1, counted[1] + failed)

    def totals(self) -> tuple[int, int]:
        """Requests, and how many of them failed, as of the last addition."""
        return sum(count[0] for count in self._counts.values()), sum(count[1] for count in self._counts.values())


@dataclass(slots=True)
class _Record:
    window: _Window
    failures_in_a_row: int = 0
    cool_down: CoolDown | None = None
    last_repeats: int = -1
    last_until: float = -inf
    probes: int = 0


class Health:
    """What is known of every target that was tried."""

    def __init__(self, rules: HealthRules) -> None:
        self._rules = rules
        self._records: OrderedDict[TargetKey, _Record] = OrderedDict()

    # Asking

    def state(self, key: TargetKey, now: float) -> State:
        """How a target is."""
        cool_down = self.cool_down(key)
        if cool_down is None:
            return State.HEALTHY
        return State.COOLING if now < cool_down.until else State.PROBING

    def is_open(self, key: TargetKey, now: float) -> bool:
        """Whether a target may be sent a request: it is well, or it is its turn to show that it is again."""
        record = self._records.get(key)
        if record is None or record.cool_down is None:
            return True
        return now >= record.cool_down.until and not record.probes

    def cool_down(self, key: TargetKey) -> CoolDown | None:
        """What a target cools down from, or has not recovered from; None when it is healthy."""
        record = self._records.get(key)
        return record.cool_down if record else None

    def cool_downs(self) -> Mapping[TargetKey, CoolDown]:
        """All there are."""
        return {key: record.cool_down for key, record in self._records.items() if record.cool_down}

    def known(self) -> Iterable[TargetKey]:
        """Every target that has been tried."""
        return tuple(self._records)

    # Learning

    def begin(self, key: TargetKey, now: float) -> bool:
        """An attempt begins; whether it is one that tries out if the target is back."""
        if self.state(key, now) is not State.PROBING:
            return False
        self._records[key].probes += 1
        return True

    def end_probe(self, key: TargetKey) -> None:
        """An attempt that `begin` called one to try the target out is over."""
        record = self._records.get(key)
        if record is not None and record.probes:
            record.probes -= 1

    def learn(self, key: TargetKey, result: Result) -> bool:
        """Take note of how an attempt went; whether the target's cool-down has changed by it."""
        record = self._record(key)
        record.window.add(result.ended, failed=result.failure is not None)
        if result.failure is None:
            return self._succeeded(record, result)
        record.failures_in_a_row += 1
        return self._failed(record, result, result.failure)

    def _succeeded(self, record: _Record, result: Result) -> bool:
        record.failures_in_a_row = 0
        # What began before the target went down says nothing about it now.
        if record.cool_down is None or result.began < record.cool_down.began:
            return False
        self._heal(record)
        return True

    def _failed(self, record: _Record, result: Result, failure: Failure) -> bool:
        cool_down = record.cool_down
        if cool_down is not None and result.began < cool_down.until:
            return False
        reason = self._reason(record, result, failure) if cool_down is None else f"{failure} again"
        if reason is None:
            return False
        repeats = self._repeats(record, result.ended)
        until = result.ended + self._seconds(repeats, result.retry_after_seconds)
        record.cool_down = CoolDown(reason, result.ended, until, repeats)
        return True

    def _reason(self, record: _Record, result: Result, failure: Failure) -> str | None:
        """Why the target should be left alone; None when it should not."""
        if failure in _FATAL:
            return str(failure)
        if failure in _TOLD_TO_WAIT and result.retry_after_seconds:
            return f"{failure}, with a word on when to come back"
        if record.failures_in_a_row >= self._rules.consecutive_failures:
            return f"{record.failures_in_a_row} failures in a row, the last {failure}"
        requests, failures = record.window.totals()
        if requests >= self._rules.min_requests and failures >= requests * self._rules.error_rate:
            return f"{failures} of {requests} requests failed, the last with {failure}"
        return None

    def _repeats(self, record: _Record, now: float) -> int:
        if record.cool_down is not None:
            return record.cool_down.repeats + 1
        is_recent = now - record.last_until <= self._rules.max_cool_down_seconds
        return record.last_repeats + 1 if is_recent else 0

    def _seconds(self, repeats: int, asked_seconds: float | None) -> float:
        first_seconds = asked_seconds or self._rules.cool_down_seconds
        return min(first_seconds * 2.0 ** min(repeats, _MAX_DOUBLINGS), self._rules.max_cool_down_seconds)

    # Hearing from others

    def adopt(self, key: TargetKey, cool_down: CoolDown) -> None:
        """Take over what another worker has found out."""
        record = self._record(key)
        own = record.cool_down
        if own is None or own.until + _SAME_SECONDS < cool_down.until:
            record.cool_down = cool_down

    def recover(self, key: TargetKey) -> None:
        """A target is well, as somebody else knows; it begins anew."""
        record = self._records.get(key)
        if record is not None:
            self._heal(record)

    def forget(self, key: TargetKey) -> None:
        """Begin with a target as if it had never been tried."""
        self._records.pop(key, None)

    def _heal(self, record: _Record) -> None:
        if record.cool_down is not None:
            record.last_repeats, record.last_until = record.cool_down.repeats, record.cool_down.until
        record.cool_down = None
        record.failures_in_a_row = 0
        record.window = _Window(self._rules.window_seconds)

    def _record(self, key: TargetKey) -> _Record:
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record(_Window(self._rules.window_seconds))
            if len(self._records) > _MAX_TARGETS:
                self._records.popitem(last=False)
        self._records.move_to_end(key)
        return record
