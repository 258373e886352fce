"""Injected faults: whom they strike, and what clients and the record see of them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from llmproxy.api import Attempt, ConfigError, Exchange, Failure, Retry, Section, Services, UpstreamError, hookimpl
from llmproxy.drill.faults import FAULTS
from llmproxy.testing import Clock, StartProxy, configuration_table, make_exchange, make_services, reply, stream
from llmproxy_plugins.drill import Drill, DrillConfig

README = Path(__file__).parent.parent / "plugins" / "drill" / "README.md"
MEANT = {"break_requests_on_purpose": True}
TWO = {"models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["demo/echo"]}}}
STORY = ("one ", "two ", "three ", "four ", "five ", "six ", "seven ", "eight")


class Elsewhere:
    """Whatever fails is tried once more, at the next target."""

    name = "elsewhere"
    failures: list[Failure]

    def __init__(self, config: Section, services: Services) -> None:
        Elsewhere.failures = []

    @hookimpl
    def on_error(self, exchange: Exchange, error: UpstreamError) -> Retry | None:
        Elsewhere.failures.append(error.failure)
        return Retry() if len(exchange.attempts) < 2 else None


def settings(fault: str, **rule: Any) -> dict[str, Any]:
    """A section with one fault, at the provider `upstream`."""
    return {**MEANT, "faults": [{"provider": "upstream", "fault": fault, **rule}]}


def drill(fault: str, **rule: Any) -> Drill:
    """A plugin whose chance can be had again."""
    chance = Random(1)  # noqa: S311 - no secret hangs on it
    return Drill(DrillConfig.model_validate(settings(fault, **rule)), make_services(clock=Clock()), random=chance)


@pytest.mark.parametrize("section", [{}, {"break_requests_on_purpose": False}])
async def test_it_has_to_be_meant(proxy: StartProxy, section: dict[str, bool]) -> None:
    """A gateway that finds this in its configuration by accident does not start."""
    faults = settings("503")["faults"]
    with pytest.raises(ConfigError, match="set break_requests_on_purpose: true"):
        async with proxy(Drill, {"faults": faults, **section}):
            pass


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("503", Failure.OVERLOADED),
        ("429", Failure.RATE_LIMIT),
        ("error_in_200", Failure.OVERLOADED),
        ("malformed", Failure.BROKEN),
        ("hang", Failure.TIMEOUT),
        ("cut", Failure.CUT),
    ],
)
async def test_other_plugins_meet_a_fault_as_a_providers(proxy: StartProxy, fault: str, failure: Failure) -> None:
    """It is classified like the real one, and another target serves the request."""
    section = settings(fault, seconds=0.1)
    async with proxy(Elsewhere, Drill, section, config=TWO) as client:
        client.upstream.default = reply("hi")
        response = await client.chat("hello")
        assert (response.status, response.headers["x-llmproxy-model"]) == (200, "demo/echo")
        assert Elsewhere.failures == [failure]
        [row] = (await client.rows()).requests
        assert {
            "by": "drill",
            "what": f"upstream seems to fail: {fault}",
            "why": "a drill strikes 1 of the requests",
        } in (row["decisions"])


@pytest.mark.parametrize(("fault", "status"), [("503", 503), ("429", 429), ("error_in_200", 503), ("hang", 504)])
async def test_clients_see_what_they_would_see(proxy: StartProxy, fault: str, status: int) -> None:
    """Without anything that helps, the client has the error, and the provider was not asked."""
    async with proxy(Drill, settings(fault, seconds=0.1)) as client:
        response = await client.chat("hello")
        assert response.status == status
        assert client.upstream.requests == []
        assert ("retry-after" in response.headers) == (fault == "429")


async def test_a_stream_is_cut_after_its_beginning(proxy: StartProxy) -> None:
    """The client has the first events, then an error that it can read."""
    async with proxy(Drill, settings("cut", after_events=4), upstream=[stream(*STORY, delay_seconds=0.01)]) as client:
        response = await client.chat("hello", stream=True)
        assert 1 <= len(response.text.split()) <= 4
        assert response.events[-1]["error"]["code"] == "upstream_cut"
        [row] = (await client.rows()).requests
        assert row["outcome"] == "failed"


async def test_a_slow_stream_comes_whole(proxy: StartProxy) -> None:
    """Nothing of it is lost but time."""
    section = settings("slow", pause_seconds=0.02)
    async with proxy(Drill, section, upstream=[stream(*STORY, delay_seconds=0.001)]) as client:
        response = await client.chat("hello", stream=True)
        assert (response.text, response.is_done) == ("".join(STORY), True)
        [row] = (await client.rows()).requests
        assert row["duration_seconds"] >= 0.04


async def test_only_requests_that_carry_the_header_are_struck(proxy: StartProxy) -> None:
    """Whoever does not ask for a fault has none; the header does not reach the provider."""
    async with proxy(Drill, settings("malformed", header="x-llmproxy-drill")) as client:
        client.upstream.default = reply("hi")
        assert (await client.chat("hello")).status == 200
        assert (await client.chat("hello", headers={"X-LLMProxy-Drill": "yes"})).status == 502
        assert [request.headers.get("x-llmproxy-drill") for request in client.upstream.requests] == [None, None]


async def test_other_providers_are_left_alone(proxy: StartProxy) -> None:
    """The pattern is over the provider's name."""
    section = {**MEANT, "faults": [{"provider": "dem*", "fault": "503"}]}
    async with proxy(Drill, section, upstream=[reply("hi")]) as client:
        assert (await client.chat("hello")).status == 200
        assert (await client.chat("hello", model="demo/echo")).status == 503


def attempt_of(exchange: Exchange) -> Attempt:
    """An attempt at the exchange's target."""
    return Attempt(1, exchange.targets[0], exchange.request, exchange.admitted_at, 0.0)


async def test_a_share_of_the_requests_is_struck_and_each_as_a_whole() -> None:
    """Of 2,000 requests a tenth, within four deviations; a request that tries again meets the same outage."""
    plugin, struck = drill("503", share=0.1), 0
    for _ in range(2000):
        exchange = make_exchange()
        failed = []
        for _ in range(2):
            try:
                await plugin.pre_attempt(exchange, attempt_of(exchange))
                failed.append(False)
            except UpstreamError:
                failed.append(True)
        assert failed[0] == failed[1]
        struck += failed[0]
    assert abs(struck - 200) <= 4 * (2000 * 0.1 * 0.9) ** 0.5


def test_the_faults_are_those_of_the_command() -> None:
    """What can be tried beforehand can be tried on a running deployment, by the same name."""
    for name in FAULTS:
        assert DrillConfig.model_validate(settings(name)).faults[0].fault == name
    assert all(f"| `{name}` |" in README.read_text() for name in FAULTS)


def test_the_readme_has_every_key() -> None:
    """The table of the README is made from the declaration of the keys."""
    assert configuration_table(DrillConfig) in README.read_text()
