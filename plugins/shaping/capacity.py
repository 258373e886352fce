"""What a vendor takes: requests and tokens at a pace, and so many requests at the same time; without I/O or a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Final

_EPSILON: Final = 1e-9
# How long an answer is taken to last until any has been seen, and how slowly that is unlearned.
_FIRST_GUESS_SECONDS: Final = 1.0
_SMOOTHING: Final = 1 / 16


@dataclass(slots=True)
class Pace:
    """A bucket that refills; what is larger than the bucket leaves it in debt."""

    per_second: float
    size: float
    level: float = field(init=False)
    updated_at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.size

    def ready_at(self, amount: float, now: float) -> float:
        """When there is enough in it."""
        self._refill(now)
        lacking = min(amount, self.size) - self.level
        return now if lacking <= _EPSILON else now + lacking / self.per_second

    def take(self, amount: float, now: float) -> None:
        """Take something out, or put it back."""
        self._refill(now)
        self.level = min(self.level - amount, self.size)

    def _refill(self, now: float) -> None:
        if now > self.updated_at:
            self.level = min(self.size, self.level + (now - self.updated_at) * self.per_second)
            self.updated_at = now


class Capacity:
    """What of an account one worker may use: its share of every limit."""

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, concurrent: int | None, burst: float
    ) -> None:
        self._per_minute: Final = (requests_per_minute, tokens_per_minute)
        self._burst_seconds: Final = burst
        self._all_concurrent: Final = concurrent
        self._paused_until = -inf
        self._mean_seconds = _FIRST_GUESS_SECONDS
        self.running = 0
        self._requests: Pace | None = None
        self._tokens: Pace | None = None
        self._concurrent: int | None = None
        self.divide(1, 0)

    def divide(self, workers: int, rank: int) -> None:
        """Have this worker, the `rank`th, use its part: all parts together are the whole, but none is less than one."""
        requests, tokens = self._per_minute
        self._requests = self._pace(self._requests, requests, workers)
        self._tokens = self._pace(self._tokens, tokens, workers)
        if (most := self._all_concurrent) is not None:
            self._concurrent = max(1, most // workers + (rank < most % workers))

    def cost_seconds(self, tokens: float) -> float:
        """For how long a request keeps the account busy, by whichever limit it takes most of."""
        return max(
            1 / self._requests.per_second if self._requests else 0,
            tokens / self._tokens.per_second if self._tokens else 0,
            self._mean_seconds / self._concurrent if self._concurrent else 0,
        )

    def ready_at(self, tokens: float, now: float) -> float:
        """When there is room for a request if none ends before; infinity when one has to end."""
        if self._concurrent is not None and self.running >= self._concurrent:
            return inf
        ready_at = max(now, self._paused_until)
        if self._requests is not None:
            ready_at = max(ready_at, self._requests.ready_at(1, now))
        if self._tokens is not None:
            ready_at = max(ready_at, self._tokens.ready_at(tokens, now))
        return ready_at

    def take(self, tokens: float, now: float) -> None:
        """A request begins."""
        self.running += 1
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def give_back(self, tokens: float, lasted_seconds: float, now: float) -> None:
        """A request is over, and has not needed so many tokens."""
        self.running -= 1
        self._mean_seconds += (lasted_seconds - self._mean_seconds) * _SMOOTHING
        if self._tokens is not None:
            self._tokens.take(-tokens, now)

    def pause(self, until: float) -> None:
        """The vendor wants no more before then."""
        self._paused_until = max(self._paused_until, until)

    def learn(self, requests: float | None, tokens: float | None, now: float) -> None:
        """What the vendor says is left, as far as that is less than was believed."""
        for pace, left in ((self._requests, requests), (self._tokens, tokens)):
            if pace is not None and left is not None:
                pace.take(0, now)
                pace.level = min(pace.level, left)

    def _pace(self, known: Pace | None, per_minute: float | None, workers: int) -> Pace | None:
        if per_minute is None:
            return None
        per_second = per_minute / 60 / workers
        # A request has to fit in, however slow the pace.
        pace = Pace(per_second, max(per_second * self._burst_seconds, 1))
        if known is not None:
            pace.level, pace.updated_at = min(known.level, pace.size), known.updated_at
        return pace
