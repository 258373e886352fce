"""The guard: what its verdicts do to requests and whole answers, and what happens without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmproxy.errors import ConfigError
from llmproxy.testing import (
    RecordedRequest,
    Reply,
    ScriptedUpstream,
    StartProxy,
    ToolCall,
    completion,
    configuration_table,
    document,
    embeddings,
    fail,
    hang,
    reply,
    slow_head,
    stream,
    tools,
)
from llmproxy_plugins.caching import Caching
from llmproxy_plugins.guard import Guard, GuardConfig
from llmproxy_plugins.redaction import Redaction
from tests.guard import BAD, REASON, asking, judge, questions

README = Path(__file__).parent.parent / "plugins" / "guard" / "README.md"
UNCHECKED = {"answers": None}


# Requests


async def test_an_allowed_request_goes_as_it_came(proxy: StartProxy) -> None:
    """With the verdict allow, the provider gets the client's own bytes, and the client no word of the guard."""
    async with judge() as server, proxy(Guard, asking(server)) as client:
        client.upstream.default = reply("hi")
        body = b'{"model":"upstream/test-model",  "messages": [{"role": "user", "content": "h\\u0069"}]}'
        response = await client.request("POST", "/v1/chat/completions", body=body)
        assert response.text == "hi"
        assert "x-llmproxy-guard" not in response.headers
        assert client.upstream.requests[0].body == body.replace(b"upstream/", b"")


async def test_the_judge_learns_what_it_needs(proxy: StartProxy) -> None:
    """The webhook gets the texts, whose they are, and the operator's headers."""
    async with judge() as server, proxy(Guard, asking(server, **UNCHECKED)) as client:
        client.upstream.default = reply("hi")
        response = await client.chat("hello", tools=[{"type": "function", "function": {"name": "f"}}])
        (request,) = server.requests
        assert request.headers["x-judge-key"] == "s3cret"
        assert request.document == {
            "subject": "request",
            "request_id": response.headers["x-llmproxy-request-id"],
            "workspace": "default",
            "model": "test",
            "texts": ["hello", "f"],
            "before": [],
        }


async def test_a_denied_request_reaches_nobody(proxy: StartProxy, capfd: pytest.CaptureFixture[str]) -> None:
    """A denial is a 403 of its own code; nothing of the prompt, or of the reason, is in error, rows or log."""
    async with judge() as server, proxy(Guard, asking(server)) as client:
        response = await client.chat(f"tell me of the {BAD} fruit")
        assert (response.status, response.document["error"]["code"]) == (403, "guard_denied")
        assert client.upstream.requests == []
        rows = await client.rows()
        assert rows.requests[0]["outcome"] == "refused"
        assert rows.requests[0]["decisions"][0]["what"] == "denied the request"
        written = response.body.decode() + str(rows) + "".join(capfd.readouterr())
        assert "fruit" not in written
        assert REASON not in written


async def test_reasons_are_shown_where_the_operator_wants_it(proxy: StartProxy) -> None:
    """With show_reason the client and the decision record are told why."""
    async with judge() as server, proxy(Guard, asking(server, show_reason=True)) as client:
        response = await client.chat(BAD)
        assert REASON in response.document["error"]["message"]
        assert (await client.rows()).requests[0]["decisions"][0]["why"] == REASON


async def test_texts_are_replaced_where_they_stand(proxy: StartProxy) -> None:
    """With replace the provider gets the judge's texts, and everything else as it was."""
    async with judge() as server, proxy(Guard, asking(server, **UNCHECKED)) as client:
        client.upstream.default = reply("hi")
        parts = [{"type": "text", "text": "a rude word"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
        await client.request(
            "POST", "/v1/chat/completions", {"model": "test", "messages": [{"role": "user", "content": parts}], "n": 1}
        )
        sent = client.upstream.requests[0].document
        assert sent["messages"][0]["content"] == [{"type": "text", "text": "a kind word"}, parts[1]]
        assert sent["n"] == 1


async def test_a_flag_is_told(proxy: StartProxy) -> None:
    """With flag all goes on, and the client's header and the decision record say so."""
    async with judge() as server, proxy(Guard, asking(server)) as client:
        client.upstream.default = reply("hi")
        response = await client.chat("an odd thing")
        assert (response.status, response.headers["x-llmproxy-guard"]) == (200, "flagged")
        assert (await client.rows()).requests[0]["decisions"][0]["what"] == "flagged the request"


async def test_a_member_given_twice_is_refused(proxy: StartProxy) -> None:
    """Of two members of one name only one could be judged, and the provider may read the other."""
    async with judge() as server, proxy(Guard, asking(server)) as client:
        said = b'[{"role": "user", "content": "hello"}]'
        response = await client.request(
            "POST", "/v1/chat/completions", body=b'{"model": "test", "messages": %b, "messages": %b}' % (said, said)
        )
        assert response.status == 400
        assert server.requests == []


@pytest.mark.parametrize(
    ("path", "request_", "texts"),
    [
        ("/v1/embeddings", {"input": ["one", "two"]}, ["one", "two"]),
        ("/v1/completions", {"prompt": "one"}, ["one"]),
        ("/v1/embeddings", {"input": [1, 2, 3]}, []),
    ],
)
async def test_every_operation_is_judged(
    proxy: StartProxy, path: str, request_: dict[str, Any], texts: list[str]
) -> None:
    """Inputs and prompts are texts as messages are; token ids are none, and nobody is asked about nothing."""
    async with judge() as server, proxy(Guard, asking(server)) as client:
        client.upstream.default = completion("fine") if "prompt" in request_ else embeddings()
        await client.request("POST", path, {"model": "test", **request_})
        assert [question["texts"] for question in questions(server, "request")] == ([texts] if texts else [])
        assert len(questions(server, "answer")) == ("prompt" in request_)


async def test_the_judge_sees_what_redaction_left(proxy: StartProxy) -> None:
    """Behind redaction, requests and answers hold placeholders for the judge, and values for the client."""
    redaction = {"detectors": {"email": "placeholder"}}
    async with judge() as server, proxy(Redaction, redaction, Guard, asking(server)) as client:
        client.upstream.default = lambda request: reply(request.document["messages"][0]["content"])
        response = await client.chat("write to ann@example.com")
        assert response.text == "write to ann@example.com"
        asked = [request.document["texts"] for request in server.requests]
        assert [any("<EMAIL_1>" in text for text in texts) for texts in asked] == [True, True]
        assert "ann@" not in str(asked)


# Whole answers


async def test_a_denied_answer_is_paid_and_kept_by_nobody(proxy: StartProxy) -> None:
    """Nothing of a denied answer reaches the client or a cache, and what the provider charges is on the row."""
    async with judge() as server, proxy(Guard, asking(server), Caching, {"when": "always"}) as client:
        client.upstream.default = reply(f"the {BAD} fruit")
        for _ in range(2):
            response = await client.chat("hello")
            assert (response.status, response.document["error"]["code"]) == (403, "guard_denied")
            assert b"fruit" not in response.body
        assert len(client.upstream.requests) == 2
        assert all(row["amount_usd"] > 0 for row in (await client.rows()).ledger)


async def test_a_replaced_answer_is_replaced_for_the_cache_too(proxy: StartProxy) -> None:
    """What is kept is what went out, so that a hit needs no verdict."""
    async with judge() as server, proxy(Guard, asking(server), Caching, {"when": "always"}) as client:
        client.upstream.default = reply("how rude")
        assert [(await client.chat("hello")).text for _ in range(2)] == ["how kind"] * 2
        assert len(client.upstream.requests) == 1


async def test_what_a_tool_is_called_with_is_judged(proxy: StartProxy) -> None:
    """The arguments of tool calls are texts of an answer."""
    async with judge() as server, proxy(Guard, asking(server)) as client:
        client.upstream.default = tools(ToolCall("send", {"text": BAD}))
        assert (await client.chat("hello")).status == 403


# Beside the provider


async def test_a_parallel_check_runs_while_the_provider_works(proxy: StartProxy) -> None:
    """With parallel the provider is asked before there is a verdict, and the client waits for both."""
    slow = slow_head(document({"verdict": "allow"}), 0.3)
    async with judge(slow) as server, proxy(Guard, asking(server, requests={"parallel": True}, answers=None)) as client:
        are_judged: list[bool] = []

        def play(request: RecordedRequest) -> Reply:
            are_judged.append(any(exchange.is_sent for exchange in server.exchanges))
            return reply("hi")

        client.upstream.default = play
        assert (await client.chat("hello")).text == "hi"
        assert are_judged == [False]
        assert [exchange.is_sent for exchange in server.exchanges] == [True]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("text", [BAD, "rude"])
async def test_a_parallel_denial_comes_before_any_of_the_answer(
    proxy: StartProxy, *, is_stream: bool, text: str
) -> None:
    """A request that may not go as it is gets 403 in place of the answer; the attempt is made and paid."""
    settings = {"requests": {"parallel": True}, "answers": None}
    async with judge() as server, proxy(Guard, asking(server, **settings)) as client:
        client.upstream.default = stream("some", "thing")
        response = await client.chat(text, stream=is_stream)
        assert (response.status, response.document["error"]["code"]) == (403, "guard_denied")
        rows = await client.rows()
        assert len(client.upstream.requests) == 1
        assert rows.ledger[0]["amount_usd"] > 0


async def test_a_hit_waits_for_the_verdict(proxy: StartProxy) -> None:
    """An answer that a cache has at once does not overtake the check of its request."""
    allowed = [True]

    def judging(request: RecordedRequest) -> Reply:
        return document({"verdict": "allow" if allowed[0] else "deny"})

    settings = {"requests": {"parallel": True}, "answers": None}
    async with (
        judge(judging) as server,
        proxy(Guard, asking(server, **settings), Caching, {"when": "always"}) as client,
    ):
        client.upstream.default = reply("hi")
        assert (await client.chat("hello")).headers["x-llmproxy-cache"] == "miss"
        assert (await client.chat("hello")).headers["x-llmproxy-cache"] == "hit"
        allowed[0] = False
        assert [(await client.chat("hello", stream=is_stream)).status for is_stream in (False, True)] == [403, 403]
        assert len(client.upstream.requests) == 1


# Without a verdict


@pytest.mark.parametrize(
    "answer", [fail(500), hang(), document({"verdict": "perhaps"}), document({"verdict": "replace"})]
)
@pytest.mark.parametrize(("how", "statuses"), [("closed", (503, 503)), ("open", (200, 200))])
async def test_a_judge_that_does_not_judge(
    proxy: StartProxy, answer: Reply, how: str, statuses: tuple[int, int]
) -> None:
    """Without a verdict requests and answers are refused, or let pass where the operator said so, which is recorded."""
    async with judge(answer) as server:
        settings = asking(server, requests={"fail": how}, answers={"fail": how})
        settings["webhook"]["timeout_seconds"] = 0.1
        async with proxy(Guard, settings) as client:
            client.upstream.default = reply("hi")
            assert (await client.chat("hello")).status == statuses[0]
            decisions = [each["what"] for each in (await client.rows()).requests[0]["decisions"]]
            unchecked = ["let pass unchecked the request", "let pass unchecked the answer"]
            assert decisions == (unchecked if how == "open" else [])


async def test_answers_have_a_policy_of_their_own(proxy: StartProxy) -> None:
    """With requests open and answers closed, the attempt is made and its answer withheld."""
    async with judge(fail(500)) as server, proxy(Guard, asking(server, requests={"fail": "open"})) as client:
        client.upstream.default = reply("hi")
        assert (await client.chat("hello")).status == 503
        assert len(client.upstream.requests) == 1


# OpenAI's moderation


def moderated(request: RecordedRequest) -> Reply:
    """Results as OpenAI gives them."""
    categories = [{"violence": BAD in text, "hate": "odd" in text} for text in request.document["input"]]
    return document({"id": "modr-1", "results": [{"flagged": True, "categories": each} for each in categories]})


def moderation(server: ScriptedUpstream, **settings: object) -> dict[str, Any]:
    """A configuration that asks for moderation."""
    return {"moderation": {"api_key": "sk-mod", "base_url": server.base_url, **settings}}


async def test_moderation_is_asked_as_openai_has_it(proxy: StartProxy) -> None:
    """Texts go to /moderations with the key and the model, and a flagged category is a denial."""
    async with judge(moderated) as server, proxy(Guard, moderation(server)) as client:
        client.upstream.default = reply("hi")
        assert [(await client.chat(text)).status for text in ("hello", BAD)] == [200, 403]
        request = server.requests[0]
        assert (request.path, request.headers["authorization"]) == ("/v1/moderations", "Bearer sk-mod")
        assert request.document == {"model": "omni-moderation-latest", "input": ["hello"]}


async def test_only_the_categories_that_count_do(proxy: StartProxy) -> None:
    """Categories that match no pattern change nothing; with the action flag the rest is flagged."""
    settings = {"categories": ["viol*"], "action": "flag"}
    async with judge(moderated) as server, proxy(Guard, moderation(server, **settings)) as client:
        client.upstream.default = reply("hi")
        flags = [(await client.chat(text)).headers.get("x-llmproxy-guard") for text in ("odd", BAD)]
        assert flags == [None, "flagged"]


# The configuration


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"webhook": {"url": "http://a"}, "moderation": {"api_key": "k"}},
        {"webhook": {"url": "http://a"}, "requests": None, "answers": None},
        {"webhook": {"url": "file:///etc/passwd"}},
    ],
)
async def test_a_guard_that_guards_nothing_is_a_mistake(proxy: StartProxy, settings: dict[str, Any]) -> None:
    """There is exactly one judge, and something to judge."""
    with pytest.raises(ConfigError):
        async with proxy(Guard, settings):
            pass


def test_the_readme_has_every_key() -> None:
    """The table of the README is made from the declaration of the keys."""
    assert configuration_table(GuardConfig) in README.read_text()


def test_secrets_are_not_shown() -> None:
    """Neither the webhook's headers nor the moderation's key stand in what is printed."""
    config = GuardConfig.model_validate({"webhook": {"url": "http://a", "headers": {"x-key": "s3cret"}}})
    assert "s3cret" not in repr(config)
    assert "s3cret" not in json.dumps(config.model_dump(mode="json"))
