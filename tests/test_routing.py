"""Routing without a gateway: shares, who stays where, what is learned of latencies, what things cost."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmproxy.api import Attempt, Cost, Exchange, Target, UpstreamTimeout, Usage
from llmproxy.testing import Clock, call_hook, configuration_table, make_exchange, make_services
from llmproxy_plugins.routing import Routing, RoutingConfig
from llmproxy_plugins.routing.order import by_weight, draw_at_random, draw_for

README = Path(__file__).parent.parent / "plugins" / "routing" / "README.md"
MAIN, CANARY, SPARE = Target("a", "main", weight=95), Target("b", "canary", weight=5), Target("c", "spare", weight=0)

subjects = st.lists(st.text(max_size=20), min_size=1, max_size=50, unique=True)
weights = st.floats(0.01, 100)
places = st.lists(
    st.builds(Target, st.sampled_from("abc"), st.sampled_from("xyz"), weight=weights),
    min_size=1,
    max_size=6,
    unique_by=lambda target: target.name,
)


class Prices:
    """What tokens cost at some models, in dollars; nothing is known of the others."""

    def __init__(self, **usd: tuple[str, str]) -> None:
        self._usd = usd

    def cost(self, target: Target, usage: Usage) -> Cost:
        if target.model not in self._usd:
            return Cost(None, "assumed")
        sent, received = map(Decimal, self._usd[target.model])
        return Cost(sent * usage.input_tokens + received * usage.output_tokens, "assumed")


def seeded(seed: int) -> Random:
    """Chance that can be had again."""
    return Random(seed)  # noqa: S311 - no secret hangs on it


def routing(clock: Clock | None = None, prices: Prices | None = None, seed: int = 1, **settings: Any) -> Routing:
    """A plugin, and always the same one."""
    services = make_services(clock=clock or Clock(), pricing=prices or Prices())
    return Routing(RoutingConfig.model_validate(settings), services, random=seeded(seed))


async def order(plugin: Routing, *targets: Target, exchange: Exchange | None = None) -> Sequence[Target]:
    """The order in which targets are to be tried."""
    return list(await call_hook(plugin, "narrow_targets", exchange or make_exchange(), targets))


async def first(plugin: Routing, *targets: Target, exchange: Exchange | None = None) -> Target:
    """The target that is to be tried first."""
    return (await order(plugin, *targets, exchange=exchange))[0]


def answered(
    target: Target, seconds: float, *, is_stream: bool = False, error: UpstreamTimeout | None = None
) -> Attempt:
    """An attempt that is over."""
    exchange = make_exchange(stream=is_stream)
    attempt = Attempt(1, target, exchange.request, exchange.admitted_at, 0.0)
    attempt.first_chunk_seconds = None if error else seconds
    attempt.duration_seconds, attempt.error = seconds, error
    return attempt


# Weights


@pytest.mark.parametrize("shares", [(95, 5), (1, 1, 1), (0.5, 0.25, 0.25), (1000, 1)])
def test_each_target_gets_its_share(shares: tuple[float, ...]) -> None:
    """Of 20,000 requests every target has as many as its weight says, within four standard deviations."""
    targets = [Target("p", str(number), weight=weight) for number, weight in enumerate(shares)]
    draw, count = draw_at_random(seeded(7)), 20_000
    found = Counter(by_weight(targets, draw)[0].model for _ in range(count))
    for target in targets:
        share = target.weight / sum(shares)
        assert abs(found[target.model] - share * count) <= 4 * sqrt(count * share * (1 - share))


def test_what_is_left_is_split_by_weight_too() -> None:
    """When the first choice fails, the others share its requests as their weights say."""
    targets = [Target("p", "a", weight=8), Target("p", "b", weight=3), Target("p", "c", weight=1)]
    draw = draw_at_random(seeded(7))
    second = Counter(
        ordered[1].model for ordered in (by_weight(targets, draw) for _ in range(20_000)) if ordered[0].model == "a"
    )
    share = second["b"] / second.total()
    assert abs(share - 0.75) <= 4 * sqrt(0.75 * 0.25 / second.total())


async def test_targets_without_weight_stay_behind_in_their_order() -> None:
    """What has no share is there for failures, in the order in which it was named."""
    spares = [Target("c", "spare", weight=0), Target("a", "spare", weight=0), Target("b", "spare", weight=0)]
    for seed in range(20):
        ordered = await order(routing(seed=seed), spares[0], CANARY, spares[1], MAIN, spares[2])
        assert set(ordered[:2]) == {MAIN, CANARY}
        assert list(ordered[2:]) == spares


@pytest.mark.parametrize("targets", [[MAIN], [MAIN, SPARE], [SPARE, SPARE]])
async def test_one_target_is_no_choice(targets: list[Target]) -> None:
    """Where nothing can be split nothing is said, and the order is left as it is."""
    exchange = make_exchange()
    assert await order(routing(), *targets, exchange=exchange) == targets
    assert exchange.decisions == []


async def test_the_keys_of_a_provider_share_its_requests() -> None:
    """Each key is a target with a weight of its own."""
    keys = [Target("a", "m", weight=0.75, credential="old"), Target("a", "m", weight=0.25, credential="new")]
    plugin = routing()
    found = Counter([(await first(plugin, *keys)).credential for _ in range(400)])
    assert abs(found["old"] - 300) <= 4 * sqrt(400 * 0.75 * 0.25)


async def test_the_record_says_what_was_chosen_and_why() -> None:
    """One line: the target, its key if there are several, and its share."""
    exchange = make_exchange()
    await order(
        routing(), Target("a", "m", weight=3, credential="1"), Target("a", "m", weight=0.0001), exchange=exchange
    )
    [decision] = exchange.decisions
    assert (decision.by, decision.what, decision.why) == ("routing", "chose a/m (key 1)", "weight 3 of 3")


# Who stays


@given(subjects, places)
def test_a_subject_always_gets_the_same_order(names: list[str], targets: list[Target]) -> None:
    """In whichever order the targets are named, and whoever computes it."""
    for name in names:
        assert by_weight(targets, draw_for(name)) == by_weight(targets[::-1], draw_for(name))


@given(subjects, places, st.builds(Target, st.just("new"), st.just("x"), weight=weights))
def test_a_new_target_takes_subjects_and_moves_no_others(names: list[str], targets: list[Target], new: Target) -> None:
    """Whoever does not go to the new target stays where it was; the same when a target goes away."""
    for name in names:
        before, after = by_weight(targets, draw_for(name)), by_weight([*targets, new], draw_for(name))
        assert [target for target in after if target != new] == before


@given(subjects, places, st.floats(1, 10))
def test_more_weight_takes_subjects_and_moves_no_others(names: list[str], targets: list[Target], factor: float) -> None:
    """Nobody leaves a target that gains weight, and nobody moves between the others."""
    old = targets[0]
    gained = Target(old.provider, old.model, weight=old.weight * factor)
    for name in names:
        before = by_weight(targets, draw_for(name))[0]
        after = by_weight([gained, *targets[1:]], draw_for(name))[0]
        assert after in {gained, before}


def test_subjects_are_split_by_weight() -> None:
    """Staying does not change the shares: of 20,000 sessions 5 % are the canary's, within four deviations."""
    found = Counter(by_weight([MAIN, CANARY], draw_for(f"session {number}"))[0] for number in range(20_000))
    assert abs(found[CANARY] - 1000) <= 4 * sqrt(20_000 * 0.05 * 0.95)


def test_a_little_more_weight_moves_few() -> None:
    """From 5 to 6 % moves about one subject in a hundred, all of them to the target that gained."""
    heavier = Target("b", "canary", weight=6)
    lighter = Target("a", "main", weight=94)
    moved = 0
    for number in range(5000):
        before = by_weight([MAIN, CANARY], draw_for(str(number)))[0].name
        after = by_weight([lighter, heavier], draw_for(str(number)))[0].name
        moved += before != after
        assert after in {before, "b/canary"}
    assert 10 <= moved <= 100


def test_another_process_makes_the_same_choice() -> None:
    """Workers and replicas agree without a word: nothing depends on how a process hashes, or when it started."""
    script = (
        "from llmproxy.api import Target\n"
        "from llmproxy_plugins.routing.order import by_weight, draw_for\n"
        "targets = [Target('a', 'main', weight=95), Target('b', 'canary', weight=5)]\n"
        "print(''.join(by_weight(targets, draw_for(str(number)))[0].provider for number in range(300)))\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "4711"},
        cwd=Path(__file__).parent.parent,
    )
    here = "".join(by_weight([MAIN, CANARY], draw_for(str(number)))[0].provider for number in range(300))
    assert there.stdout.strip() == here
    assert 3 <= here.count("b") <= 40


def exchange_of(**names: str) -> Exchange:
    """A request that says who is asking."""
    return make_exchange(headers={f"x-llmproxy-{name}": value for name, value in names.items()})


@pytest.mark.parametrize("sticky", ["user", "session"])
async def test_who_is_named_keeps_to_one_target(sticky: str) -> None:
    """The same user or session goes to the same target with every worker; different ones are spread."""
    even = [Target("a", "m"), Target("b", "m")]
    workers = [routing(seed=seed, sticky=sticky) for seed in range(3)]
    chosen = set()
    for number in range(40):
        exchange = exchange_of(**{sticky: f"one-{number}"})
        choices = {await first(worker, *even, exchange=exchange) for worker in workers}
        assert len(choices) == 1
        assert exchange.decisions[0].why == f"weight 1 of 2, always for this {sticky}"
        chosen |= choices
    assert chosen == set(even)


async def test_a_key_keeps_to_one_target() -> None:
    """With `sticky: key` all requests of a key stay together, whoever they are for."""
    even = [Target("a", "m"), Target("b", "m")]
    plugin = routing(sticky="key")
    assert len({await first(plugin, *even, exchange=exchange_of(session=str(number))) for number in range(30)}) == 1


async def test_a_request_that_names_nobody_is_split_by_chance() -> None:
    """Without a subject there is nobody to stay."""
    plugin, even = routing(sticky="session"), [Target("a", "m"), Target("b", "m")]
    exchange = make_exchange()
    assert {await first(plugin, *even, exchange=exchange) for _ in range(30)} == set(even)
    assert exchange.decisions[0].why == "weight 1 of 2, no session is named"


# Settings by model


async def test_the_first_pattern_that_fits_counts() -> None:
    """Patterns are over the name asked for; what a rule leaves out is as it is for all."""
    models = {"fast*": {"strategy": "least_cost"}, "*": {"sticky": "key"}}
    plugin = routing(prices=Prices(main=("2", "2"), canary=("1", "1")), models=models)
    fast, other = make_exchange(model="fast-one"), make_exchange(model="support")
    assert await first(plugin, MAIN, CANARY, exchange=fast) == CANARY
    await order(plugin, MAIN, CANARY, exchange=other)
    assert other.decisions[0].why.endswith("always for this key")


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "least_latency", "sticky": "user"},
        {"strategy": "least_cost", "models": {"x": {"sticky": "user"}}},
        {"models": {"x": {"strategy": "least_cost", "sticky": "key"}}},
        {"strategy": "round_robin"},
        {"mirror": [{"model": "x", "to": "a/b", "share": 0}]},
        {"mirror": [{"model": "x", "to": "a/b", "share": 1.5}]},
        {"models": {"": {}}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    """A choice made anew for each request cannot stay, and shares lie above none and up to all."""
    with pytest.raises(ValidationError):
        RoutingConfig.model_validate(settings)


async def test_a_rule_may_switch_staying_off() -> None:
    """`sticky: none` is said for some models where all others stay."""
    plugin = routing(sticky="key", models={"loose": {"sticky": "none"}})
    chosen = {
        await first(plugin, Target("a", "m"), Target("b", "m"), exchange=make_exchange(model="loose"))
        for _ in range(30)
    }
    assert len(chosen) == 2


# Latency


async def test_the_fastest_target_is_chosen_once_all_are_known() -> None:
    """Each is tried once, then whoever answers soonest has the requests, whatever the weights."""
    plugin = routing(strategy="least_latency")
    assert {await first(plugin, MAIN, CANARY), await first(plugin, MAIN, CANARY)} == {MAIN, CANARY}
    await call_hook(plugin, "post_attempt", make_exchange(), answered(MAIN, 2.0))
    await call_hook(plugin, "post_attempt", make_exchange(), answered(CANARY, 0.5))
    exchange = make_exchange()
    assert [await first(plugin, MAIN, CANARY, exchange=exchange) for _ in range(50)] == [CANARY] * 50
    assert exchange.decisions[0].why == "its first content takes 0.500 s"


async def test_targets_about_as_fast_share_the_requests() -> None:
    """A difference of a few percent does not send all workers to the same target."""
    plugin = routing(strategy="least_latency")
    await order(plugin, MAIN, CANARY)
    for target, seconds in ((MAIN, 1.0), (CANARY, 1.02)):
        await call_hook(plugin, "post_attempt", make_exchange(), answered(target, seconds))
    found = Counter([await first(plugin, MAIN, CANARY) for _ in range(400)])
    assert min(found[MAIN], found[CANARY]) > 80


async def test_a_slow_target_is_tried_again_by_one_request_at_a_time() -> None:
    """What is not renewed fades; while one request tries, the others stay with what is known to be fast."""
    clock = Clock()
    plugin = routing(clock, strategy="least_latency", latency_half_life_seconds=10)
    await order(plugin, MAIN, CANARY)
    await call_hook(plugin, "post_attempt", make_exchange(), answered(MAIN, 8.0))
    await call_hook(plugin, "post_attempt", make_exchange(), answered(CANARY, 1.0))
    chosen = []
    for _ in range(50):
        await clock.advance(1)
        chosen.append(await first(plugin, MAIN, CANARY))
        await call_hook(
            plugin, "post_attempt", make_exchange(), answered(chosen[-1], 8.0 if chosen[-1] == MAIN else 1.0)
        )
    assert 1 <= chosen.count(MAIN) <= 2
    assert chosen[:20] == [CANARY] * 20


async def test_a_target_that_does_not_answer_is_not_tried_by_everybody() -> None:
    """As long as nobody knows how fast it is, one request in a half-life finds out."""
    clock = Clock()
    plugin = routing(clock, strategy="least_latency", latency_half_life_seconds=10)
    await order(plugin, MAIN, CANARY)
    await order(plugin, MAIN, CANARY)
    await call_hook(plugin, "post_attempt", make_exchange(), answered(CANARY, 1.0))
    assert [await first(plugin, MAIN, CANARY) for _ in range(20)] == [CANARY] * 20
    await clock.advance(11)
    assert [await first(plugin, MAIN, CANARY) for _ in range(3)] == [MAIN, CANARY, CANARY]


async def test_a_timeout_is_a_long_time_and_a_refusal_none() -> None:
    """Who kept a request waiting in vain is slow; who refused it at once is not fast."""
    plugin = routing(strategy="least_latency")
    await order(plugin, MAIN, CANARY)
    timed_out = UpstreamTimeout("The provider did not answer.", phase="first_byte")
    await call_hook(plugin, "post_attempt", make_exchange(), answered(MAIN, 30.0, error=timed_out))
    refused = answered(CANARY, 0.01)
    refused.first_chunk_seconds, refused.error = None, None
    await call_hook(plugin, "post_attempt", make_exchange(), refused)
    await call_hook(plugin, "post_attempt", make_exchange(), answered(CANARY, 1.0))
    assert [await first(plugin, MAIN, CANARY) for _ in range(20)] == [CANARY] * 20


async def test_streams_and_whole_answers_are_measured_apart() -> None:
    """A stream's first content comes long before a whole answer, which says nothing about the target."""
    plugin = routing(strategy="least_latency")
    for is_stream, fast, slow in ((True, MAIN, CANARY), (False, CANARY, MAIN)):
        await order(plugin, MAIN, CANARY, exchange=make_exchange(stream=is_stream))
        await call_hook(plugin, "post_attempt", make_exchange(), answered(fast, 0.2, is_stream=is_stream))
        await call_hook(plugin, "post_attempt", make_exchange(), answered(slow, 0.9, is_stream=is_stream))
    assert await first(plugin, MAIN, CANARY, exchange=make_exchange(stream=True)) == MAIN
    assert await first(plugin, MAIN, CANARY, exchange=make_exchange()) == CANARY


@given(st.lists(st.floats(0.01, 60), min_size=1, max_size=30), st.floats(0, 5))
async def test_an_average_lies_between_what_was_measured(measured: list[float], apart_seconds: float) -> None:
    """Whatever comes in whatever rhythm, the average is never outside the least and the most."""
    clock = Clock()
    plugin = routing(clock, strategy="least_latency")
    await order(plugin, MAIN, CANARY)
    for seconds in measured:
        await call_hook(plugin, "post_attempt", make_exchange(), answered(MAIN, seconds))
        await clock.advance(apart_seconds)
    known = plugin._latencies.measured_seconds(MAIN, is_stream=False)
    assert known is not None
    assert min(measured) - 1e-9 <= known <= max(measured) + 1e-9


# Cost


async def test_the_cheapest_target_is_chosen_by_what_the_request_will_use() -> None:
    """Dear input or dear output: which of them matters depends on the request."""
    prices = Prices(main=("0.001", "0.010"), canary=("0.004", "0.001"))
    plugin = routing(prices=prices, strategy="least_cost")
    assert await first(plugin, MAIN, CANARY, exchange=make_exchange("long " * 4000, max_tokens=10)) == MAIN
    exchange = make_exchange("short", max_tokens=1000)
    assert await first(plugin, MAIN, CANARY, exchange=exchange) == CANARY
    amount_usd = 0.004 * (exchange.request.size_bytes // 4) + 0.001 * 1000
    assert exchange.decisions[0].why == f"about {amount_usd:.6f} USD, the least"


async def test_a_target_without_a_price_comes_last() -> None:
    """An unknown price is not a low one; where none is known chance decides."""
    plugin = routing(prices=Prices(canary=("9", "9")), strategy="least_cost")
    assert [await first(plugin, MAIN, CANARY) for _ in range(20)] == [CANARY] * 20
    unpriced = routing(strategy="least_cost")
    exchange = make_exchange()
    assert len({await first(unpriced, MAIN, CANARY, exchange=exchange) for _ in range(30)}) == 2
    assert exchange.decisions[0].why == "no price is known"


def test_the_readme_has_every_key() -> None:
    """The table of the README is made from the declaration of the keys."""
    assert configuration_table(RoutingConfig) in README.read_text()
