"""What follows a failure, decided without I/O: which target is next, after what pause, and what the client is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Final

from llmproxy.api import Attempt, Exchange, Failure, Target, UpstreamError
from llmproxy_plugins.fallback.config import FallbackConfig
from llmproxy_plugins.fallback.health import Health, key_of

# Another key of the provider may well do.
_OF_THE_KEY: Final = frozenset({Failure.AUTH, Failure.QUOTA, Failure.RATE_LIMIT})
# Another key of the provider would get the same answer.
_OF_THE_MODEL: Final = frozenset({Failure.CONTEXT_LENGTH, Failure.CONTENT_POLICY, Failure.MODEL, Failure.UNSUPPORTED})
_OF_OUR_ACCOUNT: Final = frozenset({Failure.AUTH, Failure.QUOTA})
# What the client can do something about comes first, what only the operator can, last.
_TELLING: Final = (
    *(Failure.CONTEXT_LENGTH, Failure.CONTENT_POLICY, Failure.INVALID_REQUEST),
    *(Failure.RATE_LIMIT, Failure.OVERLOADED, Failure.TIMEOUT, Failure.CUT, Failure.BROKEN, Failure.CONNECT),
    *(Failure.WITHHELD, Failure.UNSUPPORTED, Failure.MODEL, Failure.QUOTA, Failure.AUTH, Failure.SUPERSEDED),
)
# Waiting helps against these; what they say on how long may be passed on.
_PASSING: Final = frozenset(
    {Failure.RATE_LIMIT, Failure.OVERLOADED, Failure.TIMEOUT, Failure.CUT, Failure.BROKEN, Failure.CONNECT}
)


@dataclass(frozen=True, slots=True)
class Next:
    """Where the next attempt goes, and when."""

    target: Target
    after_seconds: float = 0.0


class Chooser:
    """Decides for one configuration."""

    def __init__(self, config: FallbackConfig, health: Health, random: Random) -> None:
        self._config = config
        self._health = health
        self._random = random

    # Where to go

    def first_choice(self, exchange: Exchange, now: float) -> Target:
        """The target of an attempt that no failure led to: the first, or one that goes on where a stream was cut."""
        untried = _untried(exchange)
        if untried:
            return self._best(untried, now)
        return min(exchange.targets, key=[attempt.target for attempt in exchange.attempts].count)

    def after(self, exchange: Exchange, attempt: Attempt, error: UpstreamError, now: float) -> Next | None:
        """What follows a failed attempt; None when there is nothing left to try, or no time for it."""
        if len(exchange.attempts) >= self._config.attempts or now >= exchange.deadline_monotonic:
            return None
        if error.failure in self._config.fallback_on and (others := _untried(exchange)):
            if error.failure in _OF_THE_KEY:
                others = sorted(others, key=lambda target: target.name != attempt.target.name)
            return Next(self._best(others, now))
        is_worth_it = error.failure in self._config.retry_on or error.failure in self._config.fallback_on
        return self._retry(exchange, now) if is_worth_it else None

    def alternative(self, exchange: Exchange, attempt: Attempt, now: float) -> Target | None:
        """A healthy target that could still be tried beside or after this attempt."""
        if len(exchange.targets) < 2 or len(exchange.attempts) >= self._config.attempts:
            return None
        others = (target for target in _untried(exchange) if target != attempt.target)
        return next((target for target in others if self._health.is_open(key_of(target), now)), None)

    def cooling_before(self, exchange: Exchange, chosen: Target, now: float) -> Iterable[Target]:
        """The targets that were passed over for this one, because they cool down."""
        if chosen is exchange.targets[0]:
            return
        tried = [attempt.target for attempt in exchange.attempts]
        for target in exchange.targets:
            if target == chosen:
                return
            if target not in tried and not self._health.is_open(key_of(target), now):
                yield target

    def _best(self, targets: Sequence[Target], now: float) -> Target:
        """The first that is well; when none is, the one that will be soonest, rather than refusing everyone."""
        for target in targets:
            if self._health.is_open(key_of(target), now):
                return target
        return min(targets, key=self._ready_at)

    def _ready_at(self, target: Target) -> float:
        cool_down = self._health.cool_down(key_of(target))
        return cool_down.until if cool_down else -inf

    def _retry(self, exchange: Exchange, now: float) -> Next | None:
        """The target that was tried and can be tried again the soonest."""
        options = (
            Next(target, self._pause(attempts, now))
            for target in exchange.targets
            if (attempts := _at(exchange, target)) and self._may_retry(attempts)
        )
        in_time = (each for each in options if now + each.after_seconds < exchange.deadline_monotonic)
        return min(in_time, key=lambda each: each.after_seconds, default=None)

    def _may_retry(self, attempts: Sequence[Attempt]) -> bool:
        errors = [attempt.error for attempt in attempts]
        return all(isinstance(each, UpstreamError) and each.failure in self._config.retry_on for each in errors)

    def _pause(self, attempts: Sequence[Attempt], now: float) -> float:
        """What the vendor asked for, else anything up to a limit that doubles with each try, so crowds disperse."""
        most_seconds = self._config.backoff_seconds * 2.0 ** (len(attempts) - 1)
        jitter_seconds = self._random.uniform(0, min(most_seconds, self._config.max_backoff_seconds))
        return max(_asked_seconds(attempts[-1], now), jitter_seconds)

    # What to say

    def most_telling(self, exchange: Exchange, now: float) -> UpstreamError:
        """The error to give up with: of all attempts', the one that helps the client most."""
        errors = [attempt.error for attempt in exchange.attempts if isinstance(attempt.error, UpstreamError)]
        error = min(errors, key=lambda each: _TELLING.index(each.failure))
        if error.failure in _OF_OUR_ACCOUNT:
            return _credentials_exhausted(error)
        if error.failure in _PASSING:
            error.retry_after_seconds = self._useful_pause(exchange, now)
        return error

    def _useful_pause(self, exchange: Exchange, now: float) -> float | None:
        """How long it is until the first target may serve again; None when nobody knows."""
        pauses = (
            max((_asked_seconds(attempt, now) for attempt in _at(exchange, target)), default=0)
            or self._ready_at(target) - now
            for target in exchange.targets
        )
        return min((each for each in pauses if each > 0), default=None)


def _untried(exchange: Exchange) -> Sequence[Target]:
    """The targets in their order that have not been tried and may know better than those that were."""
    if not exchange.attempts:
        return exchange.targets
    tried = {attempt.target for attempt in exchange.attempts}
    hopeless = {
        attempt.target.name
        for attempt in exchange.attempts
        if isinstance(attempt.error, UpstreamError) and attempt.error.failure in _OF_THE_MODEL
    }
    return [target for target in exchange.targets if target not in tried and target.name not in hopeless]


def _at(exchange: Exchange, target: Target) -> list[Attempt]:
    return [attempt for attempt in exchange.attempts if attempt.target == target]


def _asked_seconds(attempt: Attempt, now: float) -> float:
    """How much is left of the pause that the vendor asked for."""
    error = attempt.error
    if not isinstance(error, UpstreamError) or not error.retry_after_seconds:
        return 0.0
    ended = attempt.started_monotonic + (attempt.duration_seconds or 0)
    return max(ended + error.retry_after_seconds - now, 0.0)


def _credentials_exhausted(error: UpstreamError) -> UpstreamError:
    """The client's key is fine, so it must not see what was said about ours as if it were about its own."""
    told = UpstreamError(
        "No provider that was tried accepts the gateway's credentials; its operator has to see to that.",
        failure=error.failure,
        upstream_status=error.upstream_status,
        code="upstream_credentials_exhausted",
    )
    told.__cause__ = error
    return told
