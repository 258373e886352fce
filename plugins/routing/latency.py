"""How long targets take to their first content, as this worker has seen it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from llmproxy.api import Attempt, Target, UpstreamSuperseded, UpstreamTimeout

# A measurement counts at least this much, however soon it follows another.
_LEAST_COUNTED: Final = 1 / 10
_MAX_REMEMBERED: Final = 10_000

# Whole answers take longer than the beginnings of streams, so that they are never compared.
_Key = tuple[str, str, str | None, bool]


@dataclass(slots=True)
class _Record:
    """What is known of one target: nothing as long as `seconds` is None."""

    seconds: float | None = None
    count: int = 0
    observed_at: float = -inf
    chosen_at: float = -inf


class Latencies:
    """Moving averages, in which newer measurements count more.

    An average that is not renewed falls, so that a target that was slow is tried again; whoever is chosen has its
    average back until it answers, so that it is one request that tries. A target not known yet is tried at once.

    Args:
        monotonic: Seconds from an arbitrary start.
        half_life_seconds: The time in which an average falls by half, and what it was made of counts half.
    """

    def __init__(self, monotonic: Callable[[], float], half_life_seconds: float) -> None:
        self._monotonic = monotonic
        self._half_life_seconds = half_life_seconds
        self._records: dict[_Key, _Record] = {}

    def expected_seconds(self, target: Target, *, is_stream: bool) -> float:
        """What to reckon with; infinite while nothing is known and somebody is trying already."""
        record, now = self._record(target, is_stream=is_stream), self._monotonic()
        if record.seconds is None:
            return inf if now - record.chosen_at < self._half_life_seconds else 0.0
        return record.seconds * self._kept(now - max(record.observed_at, record.chosen_at))

    def measured_seconds(self, target: Target, *, is_stream: bool) -> float | None:
        """The average as it was when last renewed; None when nothing is known."""
        return self._record(target, is_stream=is_stream).seconds

    def choose(self, target: Target, *, is_stream: bool) -> None:
        """A request is being sent there."""
        self._record(target, is_stream=is_stream).chosen_at = self._monotonic()

    def observe(self, attempt: Attempt) -> None:
        """Learn from an attempt that is over, if its target was ever in question."""
        record = self._records.get(_key(attempt.target, is_stream=attempt.request.is_stream))
        seconds = _seconds_of(attempt)
        if record is None or seconds is None:
            return
        now = self._monotonic()
        record.count += 1
        share = max(1 - self._kept(now - record.observed_at), 1 / record.count, _LEAST_COUNTED)
        known = seconds if record.seconds is None else record.seconds
        record.seconds = known + share * (seconds - known)
        record.observed_at = now

    def _kept(self, age_seconds: float) -> float:
        return float(0.5 ** (age_seconds / self._half_life_seconds))

    def _record(self, target: Target, *, is_stream: bool) -> _Record:
        key = _key(target, is_stream=is_stream)
        if key not in self._records and len(self._records) >= _MAX_REMEMBERED:
            self._records.clear()
        return self._records.setdefault(key, _Record())


def _key(target: Target, *, is_stream: bool) -> _Key:
    return target.provider, target.model, target.credential, is_stream


def _seconds_of(attempt: Attempt) -> float | None:
    """How long it took, or at least would have taken; what failed at once says nothing about how fast answers are."""
    if attempt.first_chunk_seconds is None and isinstance(attempt.error, UpstreamTimeout | UpstreamSuperseded):
        return attempt.duration_seconds
    return attempt.first_chunk_seconds
