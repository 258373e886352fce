"""Rate limits through the whole gateway: who is held to what, what is said of it, and what is given back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmproxy.api import Answer, Attempt, Exchange, Principal, Retry, Section, Services, UpstreamError, hookimpl
from llmproxy.testing import (
    ProxyResponse,
    StartProxy,
    configuration_table,
    fail,
    hang,
    make_exchange,
    reply,
    stream,
    tokens,
    wait_until,
    with_headers,
)
from llmproxy_plugins.rate_limits import RateLimits
from llmproxy_plugins.rate_limits.headers import duration
from llmproxy_plugins.rate_limits.limits import Limits
from llmproxy_plugins.rate_limits.settings import RateLimitsConfig


def limits(*each: dict[str, Any], **fields: object) -> dict[str, Any]:
    """The plugin's section."""
    return {"limits": list(each), **fields}


def of_user(user: str) -> dict[str, str]:
    """The headers of a user."""
    return {"x-llmproxy-user": user}


def told(response: ProxyResponse, unit: str = "requests") -> tuple[str, str, str]:
    """What a response says of a unit: limit, remaining, reset."""
    limit, remaining, reset = (
        response.headers[f"x-ratelimit-{what}-{unit}"] for what in ("limit", "remaining", "reset")
    )
    return limit, remaining, reset


async def test_refuses_past_the_limit_and_lets_in_when_it_reopens(proxy: StartProxy) -> None:
    """Past its limit a user gets 429, with the time at which there is room; everybody else goes on."""
    section = limits({"scope": "user", "match": "*", "requests": 5, "window": "minute", "algorithm": "fixed_window"})
    async with proxy(RateLimits, section, now="12:00:20", upstream=[reply("hi")] * 7) as client:
        for left in (4, 3, 2, 1, 0):
            response = await client.chat(headers=of_user("ann"))
            assert (response.status, told(response)) == (200, ("5", str(left), "40s"))
        refused = await client.chat(headers=of_user("ann"))
        assert (refused.status, refused.headers["retry-after"], told(refused)) == (429, "40", ("5", "0", "40s"))
        error = refused.document["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert "5 requests per minute of workspace 'default', user 'ann'" in error["message"]
        assert (await client.chat(headers=of_user("bob"))).status == 200
        (row,) = [row for row in (await client.rows()).requests if row["http_status"] == 429]
        (decision,) = row["decisions"]
        reason = "the limit of 5 requests per minute of workspace 'default', user 'ann' has no room"
        assert (decision["what"], decision["why"]) == ("refused", reason)
        client.clock.set("12:01:00")
        assert (await client.chat(headers=of_user("ann"))).status == 200


async def test_a_sliding_window_says_when_the_oldest_leaves_it(proxy: StartProxy) -> None:
    """What was used in the last minute counts, wherever the clock's minute begins; retry-after is when it does not."""
    section = limits({"scope": "gateway", "requests": 2})
    async with proxy(RateLimits, section, now="12:00:30", upstream=[reply("hi")] * 3) as client:
        await client.chat()
        client.clock.set("12:00:50")
        await client.chat()
        client.clock.set("12:01:10")
        refused = await client.chat()
        # Up to one step of three seconds late.
        assert (refused.status, int(refused.headers["retry-after"])) == (429, 23)
        client.clock.set("12:01:33")
        assert (await client.chat()).status == 200
        assert (await client.chat()).status == 429


async def test_a_token_bucket_lets_its_burst_through_and_refills(proxy: StartProxy) -> None:
    """No more than the burst at once, and the limit's pace after it."""
    section = limits({"scope": "key", "requests": 60, "algorithm": "token_bucket", "burst": 0.05})
    async with proxy(RateLimits, section, now="12:00:00", upstream=[reply("hi")] * 6) as client:
        assert [(await client.chat()).status for _ in range(4)] == [200, 200, 200, 429]
        client.clock.set("12:00:04")
        assert [(await client.chat()).status for _ in range(4)] == [200, 200, 200, 429]


async def test_exceptions_stand_before_the_rule(proxy: StartProxy) -> None:
    """Of limits alike the first that fits counts; several scopes together hold what fits all of them."""
    section = limits(
        {"scope": "user", "match": "vip", "requests": 3},
        {"scope": "user", "match": "*", "requests": 1},
        {"scope": ["workspace", "feature"], "match": ["default", "beta-*"], "requests": 2},
    )
    async with proxy(RateLimits, section, upstream=[reply("hi")] * 9) as client:
        assert [(await client.chat(headers=of_user("vip"))).status for _ in range(4)] == [200, 200, 200, 429]
        assert [(await client.chat(headers=of_user("ann"))).status for _ in range(2)] == [200, 429]
        beta = [{**of_user(name), "x-llmproxy-feature": "beta-1"} for name in "abc"]
        assert [(await client.chat(headers=headers)).status for headers in beta] == [200, 200, 429]


async def test_tokens_are_estimated_before_and_corrected_after(proxy: StartProxy) -> None:
    """An answer smaller than assumed gives the rest back; one that is larger is charged in full."""
    section = limits({"scope": "workspace", "tokens": 10_000, "algorithm": "fixed_window"}, assumed_output_tokens=4000)
    script = [reply("hi", usage=tokens(100, 200)), reply("hi", usage=tokens(100, 7100)), reply("hi"), reply("hi")]
    async with proxy(RateLimits, section, now="12:00:00", upstream=script) as client:
        assert told(await client.chat(), "tokens") == ("10000", "9700", "1m0s")
        await client.chat()
        await client.rows()
        refused = await client.chat()
        assert (refused.status, told(refused, "tokens")[1]) == (429, "2500")
        client.clock.set("12:01:00")
        assert (await client.chat()).status == 200


async def test_a_request_that_can_never_fit_is_told_so(proxy: StartProxy) -> None:
    """What is larger than the limit itself gets no time to come back at."""
    async with proxy(RateLimits, limits({"scope": "key", "input_tokens": 10})) as client:
        refused = await client.chat("word " * 100)
        assert (refused.status, refused.headers["x-should-retry"]) == (429, "false")
        assert "retry-after" not in refused.headers


async def test_what_one_limit_refuses_the_others_get_back(proxy: StartProxy) -> None:
    """A request refused for its tokens has taken no request and keeps no slot."""
    section = limits({"scope": "key", "requests": 2, "concurrent": 1, "tokens": 2000}, assumed_output_tokens=1500)
    async with proxy(RateLimits, section, upstream=[reply("hi", usage=tokens(1, 1400)), reply("hi")]) as client:
        assert (await client.chat()).status == 200
        await client.rows()
        for _ in range(3):
            refused = await client.chat()
            assert "tokens per minute" in refused.document["error"]["message"]
            await client.rows()
        usage = await client.app.services.database.fetch(
            "SELECT sum(settled) AS used FROM quota_buckets WHERE allowance LIKE 'rate_limits:requests:%'"
        )
        assert usage[0]["used"] <= 2


@pytest.mark.parametrize("kind", ["whole", "stream"])
async def test_slots_are_free_again_however_a_request_ends(proxy: StartProxy, kind: str) -> None:
    """As many at the same time as the limit says: the next is refused, and let in once one has ended or hung up."""
    section = limits({"scope": "user", "match": "*", "concurrent": 5, "concurrent_streams": 1})
    is_stream = kind == "stream"
    answer, most = (stream("a"), 1) if is_stream else (reply("a"), 5)
    async with proxy(RateLimits, section, upstream=[*[hang()] * most, answer, fail(500), answer]) as client:
        hanging = [
            asyncio.get_running_loop().create_task(client.chat(stream=is_stream, headers=of_user("ann")))
            for _ in range(most)
        ]
        await wait_until(lambda: len(client.upstream.requests) == most)
        refused = await client.chat(stream=is_stream, headers=of_user("ann"))
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        await client.rows()
        for status in (200, 502, 200):
            assert (await client.chat(stream=is_stream, headers=of_user("ann"))).status == status
            await client.rows()


class Retrying:
    """Tries again."""

    name = "retrying"

    class Config(Section):
        """Nothing."""

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def on_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Retry:
        return Retry()


async def test_limits_of_models_count_attempts(proxy: StartProxy) -> None:
    """A limit of a model or a provider counts what is sent there, retries too."""
    section = limits({"scope": "model", "match": "upstream/*", "requests": 2, "concurrent": 1})
    async with proxy(RateLimits, section, Retrying, upstream=[fail(503), reply("hi")]) as client:
        assert (await client.chat()).status == 200
        assert (await client.chat(model="demo/echo")).status == 200
        assert "2 requests per minute of model" in (await client.chat()).document["error"]["message"]


class Caching:
    """Answers everything itself."""

    name = "answering"

    class Config(Section):
        """Nothing."""

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def pre_request(self, exchange: Exchange) -> Answer:
        return Answer(body=b"{}", cache="hit")


async def test_a_cache_answers_requests_but_takes_no_tokens(proxy: StartProxy) -> None:
    """A hit counts as a request, and not as tokens."""
    section = limits({"scope": "key", "requests": 2, "tokens": 1})
    async with proxy(RateLimits, section, Caching) as client:
        answers = [await client.chat() for _ in range(3)]
        assert [each.status for each in answers] == [200, 200, 429]
        assert told(answers[0])[:2] == ("2", "1")


async def test_the_clients_limits_stand_in_place_of_the_gateways(proxy: StartProxy) -> None:
    """What the provider says of the gateway's own limits is not mixed with what holds for the client."""
    theirs = [("x-ratelimit-limit-requests", "9999"), ("x-ratelimit-remaining-tokens", "77")]
    script = [with_headers(reply("hi"), *theirs), with_headers(stream("hi"), *theirs), with_headers(fail(500), *theirs)]
    section = limits({"scope": "key", "requests": 10})
    async with proxy(RateLimits, section, upstream=script) as client:
        for left, is_stream in ((9, False), (8, True), (7, False)):
            response = await client.chat(stream=is_stream)
            assert [value for name, value in response.headers.items() if name == "x-ratelimit-limit-requests"] == ["10"]
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
            assert response.headers["x-ratelimit-remaining-tokens"] == "77"


async def test_who_has_no_limit_is_told_of_none(proxy: StartProxy) -> None:
    """A request that no limit fits passes without a trace."""
    section = limits({"scope": "tag", "requests": 1, "concurrent": 1})
    async with proxy(RateLimits, section, upstream=[reply("hi")] * 3) as client:
        response = await client.chat()
        assert not [name for name in response.headers if name.startswith("x-ratelimit")]
        tagged = {"x-llmproxy-tags": "a, b"}
        assert [(await client.chat(headers=tagged)).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"scope": "user", "window": "minute"}, "needs at least one of"),
        ({"scope": ["user", "user"], "requests": 1}, "twice"),
        ({"scope": ["user", "key"], "match": "a", "requests": 1}, "one pattern for each scope"),
        ({"scope": "gateway", "match": "a", "requests": 1}, "stands alone"),
        ({"scope": "user", "requests": 0}, "greater than 0"),
    ],
)
def test_mistakes_are_found_at_start(section: dict[str, Any], says: str) -> None:
    """A limit that says nothing, or says it twice, is refused."""
    with pytest.raises(ValidationError, match=says):
        RateLimitsConfig.model_validate(limits(section))


def test_a_key_that_is_renamed_is_held_to_the_limits_of_its_new_name() -> None:
    """What was found for a key under one name does not hold for it under another."""
    config = RateLimitsConfig.model_validate(limits({"scope": "key", "match": "batch", "requests": 1}))
    found = Limits(config.limits)
    named = {name: make_exchange(principal=Principal("default", "key_1", name)) for name in ("batch", "interactive")}
    assert [len(found.plan(exchange).counted) for exchange in named.values()] == [1, 0]


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.02, "20ms"), (12.5, "12.5s"), (360, "6m0s"), (3600, "1h0m0s"), (60.25, "1m0.25s")]
)
def test_durations_are_written_as_openai_writes_them(seconds: float, written: str) -> None:
    """Milliseconds below a second, then the units that are needed."""
    assert duration(seconds) == written


def test_readme_table_is_the_configuration() -> None:
    """The README's table is what the declaration says."""
    readme = Path(__file__).parent.parent / "plugins/rate_limits/README.md"
    assert configuration_table(RateLimitsConfig) in readme.read_text()
