"""One budget of attempts and one deadline, whatever the settings, the failures and the hedges."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.accounting import Accounting
from llmproxy.attempt import Attempts
from llmproxy.config import Timeouts
from llmproxy.errors import Failure, UpstreamError, UpstreamTimeout
from llmproxy.exchange import Answer, Attempt, Exchange, Target
from llmproxy.failover import Failover
from llmproxy.hooks import Hooks, RegisteredPlugin, resolve
from llmproxy.pricing import PriceBook
from llmproxy.testing import make_exchange, make_services
from llmproxy.upstream import HTTPTransport
from llmproxy_plugins.fallback import Fallback
from llmproxy_plugins.fallback.choosing import _TELLING
from llmproxy_plugins.fallback.config import FallbackConfig
from tests.virtual_time import LoopClock, run

# What floats make of sums of seconds.
ROUNDING_SECONDS = 1e-6
TARGETS = tuple(
    Target(provider, model, credential=credential)
    for provider, model, credential in (("a", "m", "1"), ("a", "m", "2"), ("b", "m", None), ("c", "n", None))
)


@dataclass(frozen=True)
class Scripted:
    """How an attempt goes: what it takes, and what it fails with if it does."""

    seconds: float
    failure: Failure | None
    retry_after_seconds: float | None = None


class ScriptedAttempts(Attempts):
    """Attempts that end as the script says, in turn; the last line holds for all that follow."""

    def __init__(self, script: Sequence[Scripted], clock: LoopClock) -> None:
        super().__init__({}, HTTPTransport(), Timeouts(), clock)
        self._script = list(script)

    async def answer(self, exchange: Exchange, attempt: Attempt) -> Answer:
        line = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        attempt.is_sent = True
        try:
            async with asyncio.timeout(attempt.timeout_seconds):
                await asyncio.sleep(line.seconds)
        except TimeoutError as error:
            raise UpstreamTimeout("Too late.", phase="first_byte") from error
        if line.failure is not None:
            raise UpstreamError("No.", failure=line.failure, retry_after_seconds=line.retry_after_seconds)
        attempt.first_chunk_seconds = line.seconds
        return Answer(body=b"{}")


@dataclass
class Outcome:
    exchange: Exchange
    seconds: float
    error: UpstreamError | None


PRICES = PriceBook(())


def hooks_of(plugin: Fallback) -> Hooks:
    """The plugin's hooks, of which none may fail."""

    def fail(name: str, hook: str, error: Exception) -> None:
        raise error

    return resolve([RegisteredPlugin("fallback", plugin)], on_failure=fail)


async def outcome_of(
    section: dict[str, Any], script: Sequence[Scripted], targets: Sequence[Target], earlier: int = 0
) -> Outcome:
    """How one request goes, after some others with the same script."""
    clock = LoopClock()
    plugin = Fallback(FallbackConfig.model_validate(section), make_services(clock=clock))
    hooks = hooks_of(plugin)
    attempts = ScriptedAttempts(script, clock)
    failover = Failover(
        hooks=hooks, holdings=None, attempts=attempts, accounting=Accounting({}, PRICES, clock), clock=clock
    )
    for _ in range(earlier):
        await one(failover, hooks, clock, targets)
    return await one(failover, hooks, clock, targets)


async def one(failover: Failover, hooks: Hooks, clock: LoopClock, targets: Sequence[Target]) -> Outcome:
    """How one request goes."""
    exchange = make_exchange("hello", model="test")
    exchange.started_monotonic = began = clock.monotonic()
    exchange.targets = exchange.candidates = tuple(targets)
    assert hooks.pre_request is not None
    await hooks.pre_request(exchange)
    error = None
    try:
        await failover.answer(exchange, exchange.request)
        failover.end(exchange, exchange.attempts[-1])
    except UpstreamError as raised:
        error = raised
    return Outcome(exchange, clock.monotonic() - began, error)


SECONDS = st.sampled_from([0.0, 0.01, 0.4, 1.0, 7.0, 90.0, 1000.0])
SCRIPTS = st.lists(
    st.builds(
        Scripted,
        SECONDS,
        st.sampled_from([None, *(failure for failure in Failure if failure is not Failure.SUPERSEDED)]),
        st.sampled_from([None, 0.02, 3.0, 40.0, 5000.0]),
    ),
    min_size=1,
    max_size=12,
)
FAILURES = st.lists(
    st.sampled_from([each for each in Failure if each not in (Failure.INVALID_REQUEST, Failure.SUPERSEDED)]),
    unique=True,
).map(tuple)
SECTIONS = st.fixed_dictionaries(
    {
        "attempts": st.integers(1, 20),
        "deadline_seconds": st.sampled_from([0.05, 1.0, 10.0, 300.0]),
        "answer_seconds": st.sampled_from([None, 0.2, 5.0]),
        "retry_on": FAILURES,
        "fallback_on": FAILURES,
        "backoff_seconds": st.sampled_from([0.01, 0.5, 60.0]),
        "hedge": st.sampled_from([None, {"min_seconds": 0.05, "max_extra_share": 1.0}]),
    }
)


@given(
    section=SECTIONS,
    script=SCRIPTS,
    targets=st.lists(st.sampled_from(TARGETS), min_size=1, unique=True),
    earlier=st.sampled_from([0, 0, 3, 25]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_attempts_and_time_stay_within_their_limits(
    section: dict[str, Any], script: list[Scripted], targets: list[Target], earlier: int
) -> None:
    """No combination of settings, failures and hedges makes more attempts, or takes longer, than the section allows."""
    outcome = run(outcome_of(section, script, targets, earlier))
    assert len(outcome.exchange.attempts) <= section["attempts"]
    assert outcome.seconds <= section["deadline_seconds"] + ROUNDING_SECONDS
    assert all(attempt.is_over for attempt in outcome.exchange.attempts)


def broken(failure: Failure, seconds: float = 0.1, *, retry_after: float | None = None) -> Scripted:
    """An attempt that fails."""
    return Scripted(seconds, failure, retry_after)


GOOD = Scripted(0.1, None)


def test_an_attempt_at_another_target_begins_at_once() -> None:
    """A pause would only cost time where nobody has to recover."""
    outcome = run(outcome_of({"backoff_seconds": 100}, [broken(Failure.OVERLOADED), GOOD], TARGETS[:3]))
    assert outcome.error is None
    assert outcome.seconds == pytest.approx(0.2)


def test_a_dead_key_is_followed_by_another_key_of_the_same_provider() -> None:
    """The provider is fine when only a key is not: its other key comes before other providers."""
    targets = (TARGETS[0], TARGETS[2], TARGETS[1])
    outcome = run(outcome_of({}, [broken(Failure.AUTH), GOOD], targets))
    assert [attempt.target for attempt in outcome.exchange.attempts] == [TARGETS[0], TARGETS[1]]


def test_what_a_model_refuses_is_not_asked_of_it_with_another_key() -> None:
    """The same model would say the same: a request that is too long goes to another model."""
    outcome = run(outcome_of({}, [broken(Failure.CONTEXT_LENGTH), GOOD], TARGETS[:3]))
    assert [attempt.target for attempt in outcome.exchange.attempts] == [TARGETS[0], TARGETS[2]]


def test_a_wrong_request_is_tried_once() -> None:
    """What is wrong here is wrong everywhere."""
    outcome = run(outcome_of({}, [broken(Failure.INVALID_REQUEST), GOOD], TARGETS))
    assert len(outcome.exchange.attempts) == 1
    assert outcome.error is not None
    assert outcome.error.failure is Failure.INVALID_REQUEST


def test_a_vendors_pause_is_kept_when_it_fits_the_deadline() -> None:
    """`retry-after` is waited out at the only target there is."""
    outcome = run(outcome_of({}, [broken(Failure.RATE_LIMIT, retry_after=20), GOOD], TARGETS[:1]))
    assert outcome.error is None
    assert 20 <= outcome.seconds < 21


def test_a_vendors_pause_beyond_the_deadline_is_left_to_the_client() -> None:
    """Nobody waits for what cannot be had in time; the client learns when it can."""
    outcome = run(outcome_of({}, [broken(Failure.RATE_LIMIT, retry_after=1000)], TARGETS[:1]))
    assert outcome.seconds == pytest.approx(0.1)
    assert outcome.error is not None
    assert outcome.error.retry_after_seconds == pytest.approx(1000)


def test_the_error_that_helps_the_client_most_is_told() -> None:
    """Of several failures the client gets the one it can act on, not the last."""
    script = [broken(Failure.OVERLOADED), broken(Failure.CONTEXT_LENGTH), broken(Failure.CONNECT)]
    outcome = run(outcome_of({}, script, (TARGETS[0], TARGETS[2], TARGETS[3])))
    assert outcome.error is not None
    assert outcome.error.failure is Failure.CONTEXT_LENGTH


def test_the_shortest_pause_is_told() -> None:
    """The client may come back as soon as the first target may."""
    script = [broken(Failure.RATE_LIMIT, retry_after=1000), broken(Failure.OVERLOADED, retry_after=400)]
    outcome = run(outcome_of({"attempts": 2}, script, (TARGETS[0], TARGETS[2])))
    assert outcome.error is not None
    assert outcome.error.retry_after_seconds == pytest.approx(400)


def test_every_failure_has_its_place_among_the_telling_ones() -> None:
    """Whatever fails, it is known how much the client can do about it."""
    assert sorted(_TELLING) == sorted(Failure)


@pytest.mark.parametrize("failure", [Failure.AUTH, Failure.QUOTA])
def test_our_own_credentials_are_never_the_clients_fault(failure: Failure) -> None:
    """A client whose key is good must not read that its key, or its account, is not."""
    outcome = run(outcome_of({}, [broken(failure)], TARGETS))
    assert outcome.error is not None
    assert (outcome.error.http_status, outcome.error.error_code) == (502, "upstream_credentials_exhausted")


def test_a_hanging_target_does_not_use_up_the_time_of_the_next() -> None:
    """While there is another target, an attempt may take so long and no longer; the last has all the time there is."""
    script = [Scripted(1000, None), Scripted(200, None)]
    outcome = run(outcome_of({"answer_seconds": 30}, script, (TARGETS[0], TARGETS[2])))
    assert outcome.error is None
    assert outcome.seconds == pytest.approx(230)
    assert [attempt.timeout_seconds for attempt in outcome.exchange.attempts] == [30, None]
