from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

import llmproxy_plugins.fallback
from llmproxy.request import Document
from llmproxy.testing import (
    ProxyClient,
    ScriptedUpstream,
    StartProxy,
    configuration_table,
    cut_after,
    error_event_after,
    error_in_200,
    fail,
    garbage,
    hang,
    nothing,
    reply,
    stream,
)
from llmproxy_plugins.fallback import Fallback
from llmproxy_plugins.fallback.config import FallbackConfig
from llmproxy_plugins.fallback.operating import targets_command

# Fast where tests would wait.
QUICK: Document = {"backoff_seconds": 0.001, "first_byte_seconds": 0.2, "answer_seconds": 0.2}


# Over before the next request.
NO_COOL_DOWNS: Document = {"cool_down_seconds": 0.0001, "max_cool_down_seconds": 0.0001}
ANSWERED_BY = ("x-llmproxy-model", "x-llmproxy-attempts")


def two_targets(other: ScriptedUpstream, *, keys: tuple[str, ...] = ()) -> Document:
    """The kit's `upstream`, and `other` behind it as what the alias `test` falls back to."""
    provider = {"kind": "openai", "base_url": other.base_url, "api_key": "sk-other", "models": ["other-model"]}
    several = {"api_key": None, "api_keys": list(keys)} if keys else {}
    return {
        "providers": {"other": provider, "upstream": several},
        "models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["other/other-model"]}},
    }


async def decisions(client: ProxyClient) -> list[str]:
    """What the plugin wrote into the decision record of the last request."""
    rows = await client.rows()
    return [f"{each['what']}: {each['why']}" for each in rows.requests[-1]["decisions"] if each["by"] == "fallback"]


FAULTS = {
    "500": fail(500),
    "503": fail(503),
    "529": fail(529),
    "408": fail(408),
    "409": fail(409),
    "429": fail(429),
    "dead key": fail(401),
    "no credit": fail(402),
    "forbidden": fail(403),
    "unknown model": fail(404),
    "context length": fail(400, code="context_length_exceeded"),
    "content policy": fail(400, code="content_policy_violation"),
    "hangs": hang(),
    "no answer": nothing(),
    "garbage": garbage(),
    "an error in a 200": error_in_200(),
    "cut before any content": cut_after(1),
    "an error event before any content": error_event_after(1),
}


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
async def test_every_failure_before_content_is_answered_by_the_next_target(
    proxy: StartProxy, *, is_stream: bool
) -> None:
    """Whatever goes wrong before the first content, the client sees the other target's answer and nothing else."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        section = {**QUICK, "health": NO_COOL_DOWNS}
        async with proxy(Fallback, section, upstream=FAULTS.values(), config=two_targets(other)) as client:
            for name in FAULTS:
                response = await client.chat("hello", stream=is_stream)
                seen = (response.status, response.text, *map(response.headers.get, ANSWERED_BY))
                assert (name, *seen) == (name, 200, "hi", "other/other-model", "2")


async def test_a_wrong_request_is_not_tried_elsewhere(proxy: StartProxy) -> None:
    """What the client has to change comes back at once, as the first provider said it."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        refusal = fail(400, code="invalid_value", message="temperature is too high")
        async with proxy(Fallback, QUICK, upstream=[refusal], config=two_targets(other)) as client:
            response = await client.chat("hello")
        assert (response.status, response.document["error"]["code"]) == (400, "invalid_value")
        assert other.requests == []


async def test_sdks_do_not_multiply_attempts_that_are_spent(proxy: StartProxy) -> None:
    """Once every target has failed the client gets the best error there is, and the word not to try by itself."""
    async with ScriptedUpstream(default=fail(503)) as other:
        upstream = [fail(429, retry_after=7)] * 3
        async with proxy(Fallback, {**QUICK, "attempts": 2}, upstream=upstream, config=two_targets(other)) as client:
            response = await client.chat("hello")
            attempts = (await client.rows()).attempts
        assert (response.status, response.document["error"]["code"]) == (429, "rate_limit_exceeded")
        assert (response.headers["x-should-retry"], response.headers["retry-after"]) == ("false", "7")
        assert [attempt["failure"] for attempt in attempts] == ["rate_limit", "overloaded"]


async def test_a_failing_target_is_left_alone_and_comes_back(proxy: StartProxy) -> None:
    """After some failures requests go past the target at once; when its time is over one of them tries it again."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        health = {"consecutive_failures": 2, "cool_down_seconds": 0.5}
        upstream = [fail(503), fail(503), reply("back")]
        section = {**QUICK, "health": health}
        async with proxy(Fallback, section, upstream=upstream, config=two_targets(other)) as client:
            for _ in range(4):
                await client.chat("hello")
            assert len(client.upstream.requests) == 2
            [skipped] = await decisions(client)
            targets = await client.request("GET", "/admin/v1/targets", key=client.admin_key)
            until_back = asyncio.timeout(10)
            async with until_back:
                while (await client.chat("hello")).text != "back":
                    pass
    assert skipped.startswith("skipped upstream/test-model: ")
    assert "2 failures in a row, the last overloaded" in skipped
    [failing] = [each for each in targets.document["data"] if each["target"] == "upstream/test-model"]
    assert (failing["state"], failing["reason"]) == ("cooling", "2 failures in a row, the last overloaded")


async def test_when_all_targets_cool_down_one_is_tried_all_the_same(proxy: StartProxy) -> None:
    """A breaker that refuses everyone would be an outage of our own."""
    async with ScriptedUpstream([fail(401)], default=reply("hi")) as other:
        upstream = [fail(401), reply("hello again")]
        async with proxy(Fallback, QUICK, upstream=upstream, config=two_targets(other)) as client:
            refused = await client.chat("hello")
            assert (refused.status, refused.document["error"]["code"]) == (502, "upstream_credentials_exhausted")
            assert (await client.chat("hello")).text == "hello again"


async def test_the_operator_clears_a_cool_down(proxy: StartProxy) -> None:
    """A reset target is the first choice again, without waiting."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        upstream = [fail(401), reply("back")]
        async with proxy(Fallback, QUICK, upstream=upstream, config=two_targets(other)) as client:
            await client.chat("hello")
            assert (await client.chat("hello")).text == "hi"
            body = {"target": "upstream/*"}
            reset = await client.request("POST", "/admin/v1/targets/reset", body, key=client.admin_key)
            assert reset.document == {"reset": ["upstream/test-model"]}
            assert (await client.chat("hello")).text == "back"
            wrong = await client.request("POST", "/admin/v1/targets/reset", {"targets": 1}, key=client.admin_key)
            assert wrong.status == 400


async def test_the_command_line_shows_and_resets_targets(proxy: StartProxy) -> None:
    """`llmproxy targets` says what the admin API says, clears what it is told to, and says when that is nothing."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        upstream = [fail(401)]
        async with proxy(Fallback, QUICK, upstream=upstream, config=two_targets(other)) as client:
            await client.chat("hello")
            command = targets_command(client.gateway)
            shown, reset, well, unknown = [
                await asyncio.to_thread(CliRunner().invoke, command, arguments)
                for arguments in ([], ["--reset", "*", "--json"], ["--reset", "other/*"], ["--reset", "othr/*"])
            ]
    assert [line.split()[:3] for line in shown.output.splitlines()] == [
        ["TARGET", "CREDENTIAL", "STATE"],
        ["other/other-model", "-", "healthy"],
        ["upstream/test-model", "-", "cooling"],
    ]
    assert {each["state"] for each in json.loads(reset.output)["data"]} == {"healthy"}
    assert (well.exit_code, well.stderr) == (0, "Nothing that matches 'other/*' cools down.\n")
    assert (unknown.exit_code, unknown.stderr) == (1, "No target that is known matches 'othr/*'.\n")


async def test_a_dead_key_is_replaced_by_the_next(proxy: StartProxy) -> None:
    """Of a provider with several keys, one that is refused is passed over from then on."""
    async with ScriptedUpstream() as other:
        config = two_targets(other, keys=("sk-dead", "sk-good"))
        async with proxy(Fallback, QUICK, upstream=[fail(401), reply("one"), reply("two")], config=config) as client:
            assert [(await client.chat("hello")).text for _ in range(2)] == ["one", "two"]
            sent = [request.headers["authorization"] for request in client.upstream.requests]
        assert sent == ["Bearer sk-dead", "Bearer sk-good", "Bearer sk-good"]


async def test_a_stream_that_crawls_is_given_to_another_target(proxy: StartProxy) -> None:
    """What is slower than the operator allows never reaches the client; what is fast enough arrives whole."""
    async with ScriptedUpstream(default=stream(*(f"word{number} " for number in range(30)))) as other:
        slow = stream(*("drip " for _ in range(50)), delay_seconds=0.1)
        section = {**QUICK, "min_tokens_per_second": 30, "slow_stream_window_seconds": 0.3}
        async with proxy(Fallback, section, upstream=[slow], config=two_targets(other)) as client:
            response = await client.chat("hello", stream=True)
            assert len(client.upstream.cancelled) == 1
    assert response.text == "".join(f"word{number} " for number in range(30))
    assert response.is_done


async def test_rules_differ_from_model_to_model(proxy: StartProxy) -> None:
    """The first pattern that matches the name asked for counts, and leaves alone what it does not mention."""
    config = FallbackConfig.model_validate(
        {"answer_seconds": 9, "models": {"gpt-*": {"stream_failure": "continue"}, "*": {"answer_seconds": 5}}}
    )
    asked = [config.rules("gpt-4o"), config.rules("claude")]
    assert [(rules.stream_failure, rules.answer_seconds) for rules in asked] == [("continue", 9), ("error", 5)]


@pytest.mark.parametrize(
    "section",
    [
        {"retry_on": ["invalid_request"]},
        {"fallback_on": ["superseded"]},
        {"health": {"cool_down_seconds": 10, "max_cool_down_seconds": 5}},
        {"attempts": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(section: Document) -> None:
    """What cannot help, or cannot be, is a mistake in the configuration."""
    with pytest.raises(ValidationError):
        FallbackConfig.model_validate(section)


def test_the_readme_says_what_can_be_configured() -> None:
    """The table is the one that the declaration makes."""
    readme = Path(llmproxy_plugins.fallback.__file__).parent / "README.md"
    assert configuration_table(FallbackConfig) in readme.read_text()


async def test_an_impatient_client_makes_no_target_cool_down(proxy: StartProxy) -> None:
    """A timeout that the client has chosen says nothing about the provider."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        section = {"health": {"consecutive_failures": 1}}
        async with proxy(Fallback, section, upstream=[hang()] * 3, config=two_targets(other)) as client:
            for _ in range(3):
                response = await client.chat("hello", headers={"x-llmproxy-timeout": "0.05"})
                assert (response.status, response.headers["x-should-retry"]) == (504, "false")
            assert len(client.upstream.requests) == 3
            assert other.requests == []


async def test_a_client_that_hangs_up_makes_no_target_cool_down(proxy: StartProxy) -> None:
    """Whoever leaves before the answer is there has learned nothing about the provider, and neither have we."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        upstream = [hang(), reply("back")]
        section = {"health": {"consecutive_failures": 1}}
        async with proxy(Fallback, section, upstream=upstream, config=two_targets(other)) as client:
            async with asyncio.TaskGroup() as tasks:
                leaving = tasks.create_task(client.chat("hello"))
                await client.upstream.wait_for(lambda: bool(client.upstream.requests))
                leaving.cancel()
            await client.upstream.wait_for(lambda: bool(client.upstream.cancelled))
            assert (await client.chat("hello")).text == "back"


async def test_a_stream_that_is_cut_while_it_is_held_back_is_another_targets(proxy: StartProxy) -> None:
    """What has not gone out yet was never said."""
    async with ScriptedUpstream(default=reply("hi")) as other:
        section = {**QUICK, "min_tokens_per_second": 1000, "slow_stream_window_seconds": 1}
        async with proxy(Fallback, section, upstream=[cut_after(5)], config=two_targets(other)) as client:
            response = await client.chat("hello", stream=True)
    assert (response.text, response.is_done) == ("hi", True)


async def test_a_target_that_cannot_do_what_is_asked_leaves_it_to_another(proxy: StartProxy) -> None:
    """A vendor without the parameter is not asked; when nobody else can either, the client learns of the parameter."""
    claude = {"kind": "anthropic", "base_url": "http://127.0.0.1:9", "api_key": "sk-claude"}
    models = {
        "test": {"targets": ["claude/claude-sonnet-4-5"], "fallbacks": ["upstream/test-model"]},
        "alone": "claude/claude-sonnet-4-5",
    }
    config = {"providers": {"claude": claude}, "models": models}
    async with proxy(Fallback, QUICK, upstream=[reply("two")], config=config) as client:
        response = await client.chat("hello", n=2)
        refused = await client.chat("hello", n=2, model="alone")
        rows = await client.rows()
    assert (response.status, response.text, response.headers["x-llmproxy-attempts"]) == (200, "two", "1")
    assert refused.headers["x-llmproxy-attempts"] == "0"
    assert [row["failure"] for row in rows.attempts] == ["unsupported", None, "unsupported"]
    assert (refused.status, refused.document["error"]["param"]) == (400, "n")
    assert rows.requests[1]["outcome"] == "refused"
    assert rows.ledger[0]["amount_usd"] is not None
