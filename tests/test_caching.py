"""The plugin `caching`, as clients meet it: the whole gateway, on real sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam, ChatCompletionStreamOptionsParam

from llmproxy.api import Answer, Attempt, Exchange, Retry, Section, Services, Target, hookimpl
from llmproxy.testing import (
    ProxyClient,
    ProxyResponse,
    Reply,
    StartProxy,
    ToolCall,
    completion,
    configuration_table,
    cut_after,
    document,
    embeddings,
    end_without_done,
    error_event_after,
    error_in_200,
    events,
    fail,
    reasoning,
    reply,
    stream,
    tokens,
    with_headers,
)
from llmproxy.testing.proxy_client import KEY
from llmproxy_plugins.caching import Caching
from llmproxy_plugins.caching.config import CachingConfig
from tests.caching import ANSWERED, COLD, decision

README = Path(__file__).parent.parent / "plugins" / "caching" / "README.md"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
USAGE = {"include_usage": True}
TWO_TENANTS = {"workspaces": {"acme": {"keys": ["sk-acme-2b7e151628aed2a6"]}}}
ACME = {"authorization": "Bearer sk-acme-2b7e151628aed2a6"}


# Members of a request's body, which may be anything.
Fields = Mapping[str, Any]


async def asked_twice(client: ProxyClient, **fields: Any) -> tuple[ProxyResponse, ProxyResponse]:
    """Two equal requests, one after the other."""
    given = {"temperature": 0, **fields}
    return await client.chat("hello", **given), await client.chat("hello", **given)


# Hits


async def test_what_was_asked_before_is_answered_from_memory(proxy: StartProxy) -> None:
    """The second of two equal requests is a hit: the first answer byte for byte, with neither provider nor price."""
    limits = with_headers(reply("hi", usage=tokens(12, 3)), ("x-ratelimit-remaining-requests", "7"))
    async with proxy(Caching, upstream=[limits]) as client:
        first, second = await asked_twice(client)
        assert (first.headers[ANSWERED], second.headers[ANSWERED]) == ("miss", "hit")
        assert second.body == first.body
        assert (second.headers["age"], second.headers["x-llmproxy-attempts"]) == ("0", "0")
        assert second.headers["x-llmproxy-cost-usd"] == "0" != first.headers["x-llmproxy-cost-usd"]
        assert second.headers["x-llmproxy-model"] == first.headers["x-llmproxy-model"] == "upstream/test-model"
        assert second.headers["x-llmproxy-cache-key"] == first.headers["x-llmproxy-cache-key"]
        assert "x-ratelimit-remaining-requests" in first.headers
        assert "x-ratelimit-remaining-requests" not in second.headers
        assert len(client.upstream.requests) == 1


async def test_a_hit_costs_nothing_and_says_what_it_saved(proxy: StartProxy) -> None:
    """The row of a hit has no attempt, no usage and no cost, and its decision the saving."""
    async with proxy(Caching, upstream=[reply("hi", usage=tokens(12, 3))]) as client:
        await asked_twice(client)
        rows = await client.rows()
        asked, served = rows.requests
        assert (asked["cost_usd"], served["cost_usd"]) == (Decimal("0.000018"), None)
        assert len(rows.attempts) == 1
        assert (
            decision(served, "hit") == "saved 0.000018 USD and 15 tokens of upstream/test-model, which answered 0 s ago"
        )


async def test_an_answer_grows_old(proxy: StartProxy) -> None:
    """`age` counts the seconds, and after `ttl_seconds` the provider is asked again."""
    async with proxy(Caching, {"ttl_seconds": 60}, now="09:00", upstream=[reply("old"), reply("new")]) as client:
        await client.chat("hello", temperature=0)
        client.clock.set("09:00:59")
        hit = await client.chat("hello", temperature=0)
        assert (hit.text, hit.headers["age"]) == ("old", "59")
        client.clock.set("09:01")
        assert (await client.chat("hello", temperature=0)).text == "new"


async def test_only_what_would_be_answered_alike_is_kept(proxy: StartProxy) -> None:
    """By default that takes temperature 0 or a seed, and nothing that looks things up or has a side effect."""
    alike: Sequence[Fields] = (
        {"temperature": 0},
        {"temperature": 0.0},
        {"seed": 7, "temperature": 1},
        {"temperature": 0, "tools": [{"type": "function", "function": {"name": "f"}}]},
    )
    unlike: Sequence[Fields] = (
        {},
        {"temperature": 0.2},
        {"temperature": False},
        {"temperature": 0, "tools": [{"type": "web_search"}]},
        {"temperature": 0, "web_search_options": {}},
        {"temperature": 0, "store": True},
    )
    async with proxy(Caching) as client:
        client.upstream.default = reply("hi")
        for case, fields in enumerate((*alike, *unlike)):
            statuses = [(await client.chat(f"case {case}", **fields)).headers[ANSWERED] for _ in range(2)]
            assert statuses == (["miss", "hit"] if case < len(alike) else ["bypass", "bypass"]), fields


async def test_embeddings_are_always_alike(proxy: StartProxy) -> None:
    """They need neither temperature nor seed."""
    asked = {"model": "test", "input": ["a", "b"]}
    async with proxy(Caching, upstream=[embeddings((0.5, 0.25))]) as client:
        answers = [await client.request("POST", "/v1/embeddings", asked) for _ in range(2)]
        assert answers[1].headers[ANSWERED] == "hit"
        assert answers[0].body == answers[1].body


async def test_the_operator_may_have_everything_kept_or_nothing(proxy: StartProxy) -> None:
    """The first rule that matches model, workspace and key has the say over `when` and `ttl_seconds`."""
    rules = [
        {"model": "demo/*", "when": "never"},
        {"workspace": "acme", "when": "always", "ttl_seconds": 10},
        {"key": "*", "when": "always"},
    ]
    replies = [reply(str(number)) for number in range(4)]
    async with proxy(Caching, {"rules": rules}, now="09:00", config=TWO_TENANTS, upstream=replies) as client:
        assert [(await client.chat("hello")).text for _ in range(2)] == ["0", "0"]
        assert (await client.chat("hello", model="demo/echo", temperature=0)).headers[ANSWERED] == "bypass"
        assert [(await client.chat("hello", headers=ACME)).text for _ in range(2)] == ["1", "1"]
        client.clock.set("09:00:11")
        assert (await client.chat("hello", headers=ACME)).text == "2"


async def test_hits_pass_plugins_that_restore_on_the_way_back(proxy: StartProxy) -> None:
    """What stands before the cache hides and restores: one entry, with what is hidden, gives each client its own."""

    class Hiding:
        name = "redaction"

        def __init__(self, config: Section, services: Services) -> None:
            pass

        @hookimpl
        def pre_request(self, exchange: Exchange) -> None:
            exchange.request.set("messages", [{"role": "user", "content": "my name is NAME"}])

        @hookimpl
        def post_response(self, exchange: Exchange) -> None:
            assert exchange.answer is not None
            user = exchange.attribution.user or ""
            exchange.answer = Answer(
                200, exchange.answer.headers, exchange.answer.body.replace(b"NAME", user.encode()), cache="hit"
            )

    async with proxy(Hiding, Caching, upstream=[reply("hello NAME")]) as client:
        said = [
            (await client.chat(f"my name is {name}", headers={"x-llmproxy-user": name}, temperature=0)).text
            for name in ("ann", "bob")
        ]
        assert said == ["hello ann", "hello bob"]
        assert len(client.upstream.requests) == 1


# Tenants and other things that make a difference


async def test_tenants_never_share(proxy: StartProxy) -> None:
    """The same request of another workspace is another request."""
    async with proxy(Caching, config=TWO_TENANTS, upstream=[reply("ours"), reply("theirs")]) as client:
        assert (await client.chat("hello", temperature=0)).text == "ours"
        assert (await client.chat("hello", headers=ACME, temperature=0)).text == "theirs"
        assert (await client.chat("hello", temperature=0)).text == "ours"


async def test_tenants_share_when_the_operator_says_so(proxy: StartProxy) -> None:
    """`share_between` names workspaces that may be served each other's answers."""
    settings = {"share_between": ["default", "acme"]}
    async with proxy(Caching, settings, config=TWO_TENANTS, upstream=[reply("ours")]) as client:
        await client.chat("hello", temperature=0)
        assert (await client.chat("hello", headers=ACME, temperature=0)).headers[ANSWERED] == "hit"


async def test_keys_share_unless_told_not_to(proxy: StartProxy) -> None:
    """The keys of a workspace share its answers; with `per_key` each has its own."""
    keys = {"workspaces": {"default": {"keys": [KEY, "sk-another-2b7e151628aed2a6"]}}}
    other = {"authorization": "Bearer sk-another-2b7e151628aed2a6"}
    for per_key, status in ((False, "hit"), (True, "miss")):
        async with proxy(Caching, {"per_key": per_key}, config=keys, upstream=[reply("hi")] * 2) as client:
            await client.chat("hello", temperature=0)
            assert (await client.chat("hello", headers=other, temperature=0)).headers[ANSWERED] == status


async def test_what_a_fallback_answered_is_not_kept(proxy: StartProxy) -> None:
    """Neither after a failure, nor when the fallback was chosen at once: the next request asks for the real thing."""

    class Detour:
        name = "detour"

        def __init__(self, config: Section, services: Services) -> None:
            pass

        @hookimpl
        def choose_provider(self, exchange: Exchange) -> Target | None:
            is_blocked = exchange.attribution.user == "detoured"
            return exchange.targets[-1] if is_blocked or exchange.attempts else None

        @hookimpl
        def on_error(self) -> Retry:
            return Retry()

    models = {"models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["upstream/spare"]}}}
    replies = [reply("spare"), fail(503), reply("spare"), reply("real")]
    async with proxy(Caching, Detour, config=models, upstream=replies) as client:
        users = ("detoured", "ann", "ann", "ann")
        answers = [await client.chat("hello", headers={"x-llmproxy-user": user}, temperature=0) for user in users]
        assert [answer.text for answer in answers] == ["spare", "spare", "real", "real"]
        assert answers[-1].headers[ANSWERED] == "hit"


async def test_headers_that_matter_are_part_of_the_question(proxy: StartProxy) -> None:
    """A namespace, a beta of the vendor's and another set of targets each make another request."""
    async with proxy(Caching) as client:
        client.upstream.default = reply("hi")
        nothing: Mapping[str, str] = {}
        for headers in (
            nothing,
            {"x-llmproxy-cache-namespace": "blue"},
            {"x-llmproxy-cache-namespace": "green"},
            {"openai-beta": "assistants=v2"},
            {"x-llmproxy-fallback": "demo/echo"},
        ):
            statuses = [
                (await client.chat("hello", headers=headers, temperature=0)).headers[ANSWERED] for _ in range(2)
            ]
            assert statuses == ["miss", "hit"]


async def test_an_alias_that_stands_for_something_else_is_another_model(proxy: StartProxy, tmp_path: Path) -> None:
    """Two aliases of one model do not share, and neither do an alias and its model."""
    models = {"models": {"other": "upstream/test-model"}}
    async with proxy(Caching, config=models, upstream=[reply(name) for name in "abc"]) as client:
        names = ("test", "other", "upstream/test-model")
        assert [(await client.chat("hello", model=name, temperature=0)).text for name in names] == ["a", "b", "c"]


# What clients say


async def test_cache_control_is_obeyed(proxy: StartProxy) -> None:
    """RFC 9111, 5.2.1: what the second of three equal requests asks of an answer that is ten seconds old."""
    cases = {
        "no-cache": (["miss", "bypass", "hit"], ["one", "two", "two"]),
        "no-store": (["miss", "bypass", "hit"], ["one", "two", "one"]),
        "max-age=0": (["miss", "miss", "hit"], ["one", "two", "two"]),
        "max-age=10": (["miss", "hit", "hit"], ["one", "one", "one"]),
        "max-age=60, min-fresh=3591": (["miss", "miss", "hit"], ["one", "two", "two"]),
        "min-fresh=3590": (["miss", "hit", "hit"], ["one", "one", "one"]),
        'MAX-AGE="nonsense"': (["miss", "miss", "hit"], ["one", "two", "two"]),
        "max-stale=100, no-transform": (["miss", "hit", "hit"], ["one", "one", "one"]),
    }
    async with proxy(Caching) as client:
        for directive, (statuses, texts) in cases.items():
            client.upstream.replies.clear()
            client.upstream.replies.extend([reply("one"), reply("two")])
            client.clock.set("09:00")
            answers = [await client.chat(directive, temperature=0)]
            client.clock.set("09:00:10")
            answers.append(await client.chat(directive, headers={"cache-control": directive}, temperature=0))
            answers.append(await client.chat(directive, temperature=0))
            assert [answer.headers[ANSWERED] for answer in answers] == statuses, directive
            assert [answer.text for answer in answers] == texts, directive


async def test_only_if_cached_never_asks_a_provider(proxy: StartProxy) -> None:
    """Without an answer it is a 504 that no SDK retries, also for requests that are never kept."""
    only = {"cache-control": "only-if-cached"}
    async with proxy(Caching, upstream=[reply("one")]) as client:
        for temperature in (0, 1):
            refused = await client.chat("hello", headers=only, temperature=temperature)
            assert (refused.status, refused.document["error"]["code"]) == (504, "not_cached")
            assert refused.headers["x-should-retry"] == "false"
        assert client.upstream.requests == []
        await client.chat("hello", temperature=0)
        assert (await client.chat("hello", headers=only, temperature=0)).text == "one"


async def test_clients_say_how_long_their_answer_lives(proxy: StartProxy) -> None:
    """`x-llmproxy-cache-ttl` counts, up to `max_ttl_seconds`; 0 keeps nothing, and nonsense is refused."""
    settings = {"ttl_seconds": 60, "max_ttl_seconds": 100}
    async with proxy(Caching, settings, now="09:00", upstream=[reply(name) for name in "abcd"]) as client:
        for text, ttl in (("short", "10"), ("long", "5000"), ("none", "0")):
            await client.chat(text, headers={"x-llmproxy-cache-ttl": ttl}, temperature=0)
        assert (await client.chat("none", temperature=0)).text == "d"
        client.clock.set("09:00:11")
        assert (await client.chat("long", temperature=0)).text == "b"
        assert (await client.chat("short", headers={"cache-control": "only-if-cached"}, temperature=0)).status == 504
        client.clock.set("09:01:40")
        assert (await client.chat("long", headers={"cache-control": "only-if-cached"}, temperature=0)).status == 504
        refused = await client.chat("hello", headers={"x-llmproxy-cache-ttl": "1h"}, temperature=0)
        assert (refused.status, refused.document["error"]["param"]) == (400, "x-llmproxy-cache-ttl")


# Streams


async def test_a_kept_answer_is_whole_or_a_stream_as_asked(proxy: StartProxy) -> None:
    """What came as a stream serves a request for a whole answer, and the other way round, read by the OpenAI SDK."""
    call = ToolCall("get_weather", {"city": "Oslo"})
    expected = ("Let me see.", "get_weather", '{"city": "Oslo"}', "tool_calls", (20, 9, 8))
    async with proxy(Caching) as client:
        client.upstream.default = reply("Let me see.", tool_calls=[call], usage=tokens(20, 9, cached_tokens=8))
        async with AsyncOpenAI(base_url=client.base_url, api_key=client.key, max_retries=0) as sdk:
            for seed, (first, second) in enumerate(product((False, True), repeat=2)):
                assert await said(sdk, seed, is_streamed=first) == expected
                assert await said(sdk, seed, is_streamed=second) == expected
        assert len(client.upstream.requests) == 4


async def said(sdk: AsyncOpenAI, seed: int, *, is_streamed: bool) -> tuple[object, ...]:
    """Text, function, arguments, end and usage of an answer."""
    asked, messages = sdk.chat.completions, MESSAGES
    if is_streamed:
        options: ChatCompletionStreamOptionsParam = {"include_usage": True}
        async with asked.stream(model="test", messages=messages, seed=seed, stream_options=options) as events:
            answer: ChatCompletion = await events.get_final_completion()
    else:
        answer = await asked.create(model="test", messages=messages, seed=seed)
    [choice], usage = answer.choices, answer.usage
    assert choice.message.tool_calls
    assert usage
    assert usage.prompt_tokens_details
    [call] = choice.message.tool_calls
    assert call.type == "function"
    function = call.function
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens)
    return choice.message.content, function.name, function.arguments, choice.finish_reason, counts


async def test_a_replayed_stream_shows_usage_to_whoever_asks(proxy: StartProxy) -> None:
    """Also when the stream that was kept had hidden it, and never to a client that did not ask."""
    async with proxy(Caching, upstream=[stream("a ", "b", usage=tokens(3, 2))]) as client:
        first = await client.chat("hello", stream=True, temperature=0)
        shown = await client.chat("hello", stream=True, temperature=0, stream_options=USAGE)
        hidden = await client.chat("hello", stream=True, temperature=0)
        assert [answer.headers[ANSWERED] for answer in (first, shown, hidden)] == ["miss", "hit", "hit"]
        assert [answer.text for answer in (first, shown, hidden)] == ["a b"] * 3
        assert shown.events[-1]["usage"]["total_tokens"] == 5
        assert all("usage" not in event for event in hidden.events)
        assert shown.is_done
        assert {event["id"] for event in shown.events} == {event["id"] for event in first.events}


async def test_thoughts_survive(proxy: StartProxy) -> None:
    """An answer with reasoning is replayed with it."""
    async with proxy(Caching, upstream=[reasoning("Hm.", "Yes.")]) as client:
        await client.chat("hello", stream=True, temperature=0)
        kept = await client.chat("hello", temperature=0)
        assert kept.headers[ANSWERED] == "hit"
        assert kept.document["choices"][0]["message"]["reasoning_content"] == "Hm."


async def test_text_completions_are_kept_whole(proxy: StartProxy) -> None:
    """A whole one serves a request for a stream; a streamed one is passed on and not kept."""
    asked = {"model": "test", "prompt": "say", **COLD}
    async with proxy(Caching, upstream=[completion("a", "b"), completion("c")]) as client:
        streamed = await client.request("POST", "/v1/completions", {**asked, "stream": True})
        whole = await client.request("POST", "/v1/completions", asked)
        replayed = await client.request("POST", "/v1/completions", {**asked, "stream": True})
        assert [answer.text for answer in (streamed, whole, replayed)] == ["ab", "c", "c"]
        assert [answer.headers[ANSWERED] for answer in (streamed, whole, replayed)] == ["miss", "miss", "hit"]


# What is never kept

ODD_DELTA = events(
    b'data: {"choices":[{"index":0,"delta":{"content":"a","audio":{"id":"x"}}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
)
REFUSING = {"message": {"role": "assistant", "content": None, "refusal": "I cannot."}, "finish_reason": "stop"}
WORDLESS = {"message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}


BAD: Sequence[Reply] = (
    fail(429),
    fail(500),
    error_in_200("No."),
    reply("so", finish_reason="content_filter"),
    reply("so", finish_reason="length"),
    reply("so", finish_reason="gremlins"),
    document({"choices": [{"index": 0, **REFUSING}]}),
    document({"choices": [{"index": 0, **WORDLESS}]}),
    reply("a" * 3000),
)
BAD_STREAMS: Sequence[Reply] = (
    cut_after(2, stream("a", "b", "c")),
    end_without_done(2, stream("a", "b", "c")),
    error_event_after(2, stream("a", "b", "c")),
    stream("a", finish_reason="content_filter"),
    stream("a" * 3000),
    ODD_DELTA,
)


async def test_what_is_no_good_answer_is_not_kept(proxy: StartProxy) -> None:
    """Errors, refusals, cut, truncated, empty and oversized answers, and what could be told again only in part."""
    async with proxy(Caching, {"max_entry_bytes": 2048}) as client:
        for case, bad in enumerate((*BAD, *BAD_STREAMS)):
            client.upstream.replies.extend([bad, reply("good")])
            await client.chat(f"case {case}", stream=bad in BAD_STREAMS, temperature=0)
            answers = [await client.chat(f"case {case}", temperature=0) for _ in range(2)]
            assert [answer.text for answer in answers] == ["good", "good"], case
            assert [answer.headers[ANSWERED] for answer in answers] == ["miss", "hit"], case


async def test_an_answer_as_long_as_the_client_allowed_is_kept(proxy: StartProxy) -> None:
    """`length` is the end that was asked for when the request sets the limit."""
    async with proxy(Caching, upstream=[reply("yes", finish_reason="length")]) as client:
        _, second = await asked_twice(client, max_tokens=1)
        assert second.headers[ANSWERED] == "hit"


class MeddlingConfig(Section):
    what: str


class Meddling:
    name = "meddling"
    Config = MeddlingConfig

    def __init__(self, config: MeddlingConfig, services: Services) -> None:
        self.what = config.what

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        if self.what == "request":
            exchange.request.set("seed", 1)

    @hookimpl
    def narrow_targets(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
        return targets[:1] if self.what == "targets" else None

    @hookimpl
    def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        if self.what == "attempt":
            attempt.request.set("seed", 1)


@pytest.mark.parametrize("what", ["request", "targets", "attempt", "nothing"])
async def test_what_a_plugin_behind_the_cache_changed_is_not_kept(proxy: StartProxy, what: str) -> None:
    """The answer is to another question than the one the key was made of."""
    models = {"models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["demo/echo"]}}}
    replies = [reply("one"), reply("two")]
    async with proxy(Caching, Meddling, {"what": what}, config=models, upstream=replies) as client:
        _, second = await asked_twice(client)
        assert second.headers[ANSWERED] == ("hit" if what == "nothing" else "miss")


def test_the_readme_has_every_key() -> None:
    """The table of the README is made from the declaration of the keys."""
    assert configuration_table(CachingConfig) in README.read_text()
