from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import Failure
from llmproxy_plugins.fallback.config import HealthRules
from llmproxy_plugins.fallback.health import CoolDown, Health, Result, State, TargetKey

KEY = TargetKey("openai", "gpt", None)
OTHER = TargetKey("openai", "gpt", "2")
RULES = HealthRules(consecutive_failures=3, cool_down_seconds=10, max_cool_down_seconds=60)


def fail(
    health: Health, at: float, failure: Failure = Failure.OVERLOADED, *, began: float | None = None, asked: float = 0
) -> bool:
    """An attempt failed at a moment; whether the cool-down has changed by it."""
    return health.learn(KEY, Result(at if began is None else began, at, failure, asked or None))


def succeed(health: Health, at: float, *, began: float | None = None) -> bool:
    """An attempt was answered at a moment; whether the cool-down has changed by it."""
    return health.learn(KEY, Result(at if began is None else began, at))


def cooling(at: float = 0) -> Health:
    """A target that has just failed too often."""
    health = Health(RULES)
    assert [fail(health, at) for _ in range(3)] == [False, False, True]
    return health


def test_failures_in_a_row_make_a_target_cool_down() -> None:
    """So many, and it is left alone; a success in between begins the count anew."""
    health = Health(RULES)
    assert [fail(health, 0), fail(health, 0), succeed(health, 0), fail(health, 0), fail(health, 0)] == [False] * 5
    assert health.is_open(KEY, 0)
    assert fail(health, 1)
    assert (health.state(KEY, 10.9), health.state(KEY, 11)) == (State.COOLING, State.PROBING)


def test_a_share_of_failures_makes_a_target_cool_down() -> None:
    """A target that fails every other time is as bad as one that is down; what is long ago does not count."""
    health = Health(HealthRules(min_requests=10, error_rate=0.5, window_seconds=10, consecutive_failures=99))
    assert not any(fail(health, second) or succeed(health, second) for second in (0, 1, 2, 3))
    assert not any(fail(health, second) or succeed(health, second) for second in (100, 101, 102, 103))
    assert (succeed(health, 104), fail(health, 104)) == (False, True)


def test_targets_are_judged_each_for_itself() -> None:
    """One key of a provider is not the other."""
    assert cooling().is_open(OTHER, 0)


def test_one_request_at_a_time_tries_whether_a_target_is_back() -> None:
    """When the cool-down is over the next request goes there, and the others wait for how that one fares."""
    health = cooling()
    assert not health.begin(KEY, 9)
    assert health.is_open(KEY, 10)
    assert health.begin(KEY, 10)
    assert not health.is_open(KEY, 10)
    health.end_probe(KEY)
    assert health.is_open(KEY, 10)


def test_a_success_after_the_cool_down_makes_a_target_well() -> None:
    """The first request that is answered opens the way for all."""
    health = cooling()
    assert succeed(health, 11)
    assert health.state(KEY, 11) is State.HEALTHY
    assert not fail(health, 12)


def test_what_began_before_a_target_went_down_says_nothing_about_it_now() -> None:
    """A long stream that ends well does not heal it, and one that ends badly does not punish it twice."""
    health = cooling(at=5)
    assert not succeed(health, 20, began=1)
    assert not fail(health, 21, began=1)
    assert health.cool_downs()[KEY].until == 15


def test_a_request_that_succeeds_while_a_target_cools_down_makes_it_well() -> None:
    """Tried for want of a better one, it may show that it is back sooner than expected."""
    health = cooling()
    assert succeed(health, 3, began=2)
    assert health.is_open(KEY, 3)


def test_each_repeat_lasts_twice_as_long_up_to_a_limit() -> None:
    """A vendor that is down for hours is asked less and less often."""
    health, now, lengths = cooling(), 0.0, []
    for _ in range(5):
        now = health.cool_downs()[KEY].until
        assert fail(health, now)
        lengths.append(health.cool_downs()[KEY].until - now)
    assert lengths == [20, 40, 60, 60, 60]


def test_a_target_that_falls_ill_again_soon_has_not_recovered() -> None:
    """The length goes on where it was, unless the target has been well for long."""
    health = cooling()
    succeed(health, 10)
    assert [fail(health, 11) for _ in range(3)][-1]
    assert health.cool_downs()[KEY].until == 31
    succeed(health, 31)
    assert [fail(health, 100) for _ in range(3)][-1]
    assert health.cool_downs()[KEY].until == 110


@pytest.mark.parametrize("failure", [Failure.AUTH, Failure.QUOTA])
def test_a_dead_key_needs_no_second_proof(failure: Failure) -> None:
    """What no request can change is believed the first time."""
    assert fail(Health(RULES), 0, failure)


def test_a_vendors_own_word_is_believed_within_limits() -> None:
    """`retry-after` makes a target cool down for as long as it says, up to the limit."""
    health = Health(RULES)
    assert fail(health, 0, Failure.RATE_LIMIT, asked=7)
    assert health.cool_downs()[KEY].until == 7
    far = Health(RULES)
    fail(far, 0, Failure.OVERLOADED, asked=86_400)
    assert far.cool_downs()[KEY].until == 60


def test_the_longer_of_two_cool_downs_counts() -> None:
    """What another worker knows adds to what this one knows, and never takes from it."""
    health = cooling()
    health.adopt(KEY, CoolDown("elsewhere", 0, 5))
    assert health.cool_downs()[KEY].until == 10
    health.adopt(KEY, CoolDown("elsewhere", 0, 50))
    assert health.cool_downs()[KEY].until == 50
    health.recover(KEY)
    assert health.is_open(KEY, 0)


@given(steps=st.lists(st.tuples(st.floats(0, 30), st.booleans(), st.sampled_from([0, 0, 5, 1000])), max_size=60))
def test_no_target_is_left_alone_for_longer_than_the_limit(steps: list[tuple[float, bool, int]]) -> None:
    """Whatever happens to a target, it is tried again within the longest cool-down."""
    health, now = Health(RULES), 0.0
    for pause, is_good, asked in steps:
        now += pause
        _ = succeed(health, now) if is_good else fail(health, now, Failure.RATE_LIMIT, asked=asked)
        assert health.is_open(KEY, now + RULES.max_cool_down_seconds)


def test_what_clients_name_does_not_fill_the_memory() -> None:
    """Names of models are the clients' choice, so only the latest are remembered."""
    health = Health(RULES)
    for number in range(10_100):
        health.learn(TargetKey("openai", f"made-up-{number}", None), Result(0, 0, Failure.MODEL))
    assert len(list(health.known())) == 10_000
