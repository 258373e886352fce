"""The one loop that makes attempts: hedges, deadlines, refused answers, streams that go on, several keys."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import orjson
import pytest

from llmproxy.api import (
    Answer,
    AnswerStream,
    Attempt,
    Exchange,
    Hedge,
    Operation,
    Refused,
    Request,
    Resume,
    Retry,
    Section,
    Services,
    UpstreamBroken,
    UpstreamError,
    hookimpl,
)
from llmproxy.testing import StartProxy, cut_after, fail, hang, reply, stream, wait_until
from tests.wire import STREAM, dial, request

# The scripted provider first, the demo's as the other one.
TWO: dict[str, Any] = {"models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["demo/echo"]}}}
TWO_KEYS: dict[str, Any] = {
    "providers": {"upstream": {"api_key": None, "api_keys": ["sk-one", {"key": "sk-two", "name": "spare"}]}}
}


class Plugin:
    """What every plugin is made with; `ended` counts the attempts that were said to be over."""

    ended: ClassVar[Counter[tuple[str, int]]]
    errors: ClassVar[list[str | None]]

    def __init__(self, config: Section, services: Services) -> None:
        self.services = services
        type(self).ended = Counter()
        type(self).errors = []

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Note which attempt is over, and how it ended."""
        assert attempt.duration_seconds is not None
        self.ended[exchange.id, attempt.number] += 1
        self.errors.append(attempt.error.error_code if attempt.error else None)


class Again(Plugin):
    """Tries everything twice."""

    name = "again"

    @hookimpl
    def on_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Retry | None:
        """Go on while there is a target that was not tried."""
        return Retry() if len(exchange.attempts) < len(exchange.targets) else None


class Hedged(Again):
    """Begins at the last target when the first is slow."""

    name = "hedged"

    @hookimpl
    def hedge(self, exchange: Exchange, attempt: Attempt) -> Hedge:
        """Not for long."""
        return Hedge(exchange.targets[-1], 0.05)


class Picky(Again):
    """Takes no answer of the scripted provider's, and marks what others stream."""

    name = "picky"

    @hookimpl
    async def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """Refuse, or put a stream around the stream."""
        if attempt.target.provider == "upstream":
            raise UpstreamBroken("This answer will not do.")
        if answer.stream is None:
            return None
        return Answer(answer.status, answer.headers, stream=Marked(answer.stream))


class Denying(Hedged):
    """Refuses what was answered, as a guard does."""

    name = "denying"

    @hookimpl
    async def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """No."""
        raise Refused("This may not go out.")


class Marked:
    """A stream with a comment before it."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream
        self._mark = b": marked\n\n"

    async def read(self) -> bytes:
        """The next events."""
        mark, self._mark = self._mark, b""
        return mark or await self._stream.read()

    def close(self) -> None:
        """Close what is inside."""
        self._stream.close()


class Resuming(Again):
    """Asks the last target for the rest of what was cut."""

    name = "resuming"

    @hookimpl
    def on_stream_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Resume | None:
        """Once."""
        if len(exchange.attempts) > 1:
            return None
        rest = exchange.request.copy()
        rest.set("messages", [{"role": "user", "content": "the rest"}])
        return Resume(rest)


class Impatient(Again):
    """Gives every exchange three tenths of a second."""

    name = "impatient"

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """Say until when."""
        exchange.deadline_monotonic = exchange.started_monotonic + 0.3


class Asking(Plugin):
    """Asks for an embedding of every chat message before it goes on."""

    name = "asking"
    answers: ClassVar[list[Answer]]

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        """Ask as the gateway; its own question is let through."""
        if exchange.origin is None:
            document = {"model": "demo/embed", "input": "hello"}
            answer = await self.services.exchanges.send(exchange, Operation.EMBEDDINGS, document, origin="asking")
            type(self).answers = [answer]


async def test_a_slow_target_loses_to_its_hedge(proxy: StartProxy) -> None:
    """The first answer is the client's; the attempt that was given up is said to be, and is charged for."""
    async with proxy(Hedged, upstream=[hang()], config=TWO) as client:
        response = await client.chat("hello")
        rows = await client.rows()
    assert (response.status, response.headers["x-llmproxy-model"]) == (200, "demo/echo")
    assert response.headers["x-llmproxy-attempts"] == "2"
    assert [(row["model"], row["failure"]) for row in rows.attempts] == [("test-model", "superseded"), ("echo", None)]
    assert [(row["kind"], row["provider_name"]) for row in rows.ledger] == [
        ("exchange", "demo"),
        ("attempt", "upstream"),
    ]
    assert rows.ledger[1]["amount_usd"] > 0
    assert set(Hedged.ended.values()) == {1}


async def test_a_quick_target_needs_no_hedge(proxy: StartProxy) -> None:
    """A second attempt is made only when the first has no answer by then."""
    async with proxy(Hedged, upstream=[reply("quick")], config=TWO) as client:
        response = await client.chat("hello")
    assert (response.text, response.headers["x-llmproxy-attempts"]) == ("quick", "1")


async def test_when_the_hedge_fails_the_first_may_still_answer(proxy: StartProxy) -> None:
    """Only when all that run have failed is there no answer."""
    slow = [reply("late", delay_seconds=0.3)]
    broken = {"models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["demo/fail-503"]}}}
    async with proxy(Hedged, upstream=slow, config=broken) as client:
        response = await client.chat("hello")
        rows = await client.rows()
    assert (response.status, response.text) == (200, "late")
    assert response.headers["x-llmproxy-model"] == "upstream/test-model"
    assert {row["number"]: row["failure"] for row in rows.attempts} == {1: None, 2: "overloaded"}


async def test_who_refuses_an_answer_refuses_the_request(proxy: StartProxy) -> None:
    """A hedge is there for slow targets, not to get past a guard; nobody waits for it either."""
    hanging = {"models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["demo/hang"]}}}
    async with proxy(Denying, upstream=[reply("no", delay_seconds=0.2)], config=hanging) as client:
        response = await client.chat("hello")
        rows = await client.rows()
    assert (response.status, response.document["error"]["code"]) == (403, "refused")
    assert rows.requests[0]["duration_seconds"] < 3
    assert [row["failure"] for row in rows.attempts if row["model"] == "hang"] == ["superseded"]


async def test_an_answer_that_a_plugin_refuses_is_a_failed_attempt(proxy: StartProxy) -> None:
    """The loop goes on as if the provider had sent none, whole or streamed."""
    async with proxy(Picky, upstream=[reply("no"), stream("no")], config=TWO) as client:
        whole = await client.chat("hello")
        streamed = await client.chat("hello", stream=True)
        rows = await client.rows()
    assert [whole.headers["x-llmproxy-model"], streamed.headers["x-llmproxy-model"]] == ["demo/echo"] * 2
    assert streamed.body.startswith(b": marked\n\ndata: ")
    assert [row["failure"] for row in rows.attempts] == ["broken", None, "broken", None]
    assert Picky.errors == ["upstream_broken", None, "upstream_broken", None]


async def test_every_attempt_is_said_to_be_over_once(proxy: StartProxy) -> None:
    """Whole, streamed, failed, or left by a client that hung up."""
    script = [reply("one"), stream("two"), fail(500), reply("three"), hang()]
    config = {"models": {"test": {"targets": ["upstream/test-model", "upstream/other"]}}}
    async with proxy(Again, upstream=script, config=config) as client:
        await client.chat("a")
        await client.chat("b", stream=True)
        await client.chat("c")
        async with dial(client) as gone:
            await gone.send(request(STREAM))
            await wait_until(lambda: len(client.upstream.requests) == 5)
        rows = await client.rows()
    assert len(Again.ended) == len(rows.attempts) == 5
    assert set(Again.ended.values()) == {1}
    assert Again.errors == [None, None, "server_error", None, "upstream_superseded"]


async def test_a_stream_that_was_cut_goes_on_elsewhere(proxy: StartProxy) -> None:
    """What the second attempt brings follows what the client has, and both are in the ledger."""
    async with proxy(Resuming, upstream=[cut_after(3, stream("one ", "two ", "three"))], config=TWO) as client:
        response = await client.chat("hello", stream=True)
        rows = await client.rows()
    assert response.text == "one two the rest"
    assert response.is_done
    assert [(row["provider_name"], row["failure"]) for row in rows.attempts] == [("upstream", "cut"), ("demo", None)]
    assert {row["kind"] for row in rows.ledger} == {"exchange", "attempt"}
    assert rows.requests[0]["outcome"] == "succeeded"
    assert set(Resuming.ended.values()) == {1}


async def test_a_stream_that_cannot_go_on_ends_with_an_error(proxy: StartProxy) -> None:
    """When the rest fails as well, the client is told as ever."""
    nowhere = {"models": {"test": {"targets": ["upstream/test-model"], "fallbacks": ["demo/fail-503"]}}}
    cut = cut_after(3, stream("one ", "two ", "three"))
    async with proxy(Resuming, upstream=[cut, fail(503)], config=nowhere) as client:
        response = await client.chat("hello", stream=True)
        rows = await client.rows()
    assert "error" in response.events[-1]
    assert not response.is_done
    assert rows.requests[0]["outcome"] == "failed"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_nothing_outlives_the_deadline(proxy: StartProxy, *, is_stream: bool) -> None:
    """An attempt without an answer by then is over, and no other begins."""
    async with proxy(Impatient, upstream=[hang(), hang()], config=TWO) as client:
        response = await client.chat("hello", stream=is_stream)
        rows = await client.rows()
    assert (response.status, response.document["error"]["code"]) == (504, "upstream_total_timeout")
    assert len(rows.attempts) == 1
    assert rows.requests[0]["duration_seconds"] < 2


async def test_each_key_of_a_provider_is_a_target(proxy: StartProxy) -> None:
    """When one key is dead the next is used, and the row says which."""
    async with proxy(Again, upstream=[fail(401), reply("hi")], config=TWO_KEYS) as client:
        response = await client.chat("hello")
        rows = await client.rows()
    assert response.status == 200
    keys = [sent.headers["authorization"] for sent in client.upstream.requests]
    assert keys == ["Bearer sk-one", "Bearer sk-two"]
    assert [row["credential"] for row in rows.attempts] == ["1", "spare"]
    assert response.headers["x-llmproxy-model"] == "upstream/test-model"


async def test_a_plugin_may_ask_in_the_gateways_name(proxy: StartProxy) -> None:
    """Its exchange goes the way of a client's, answers to the plugin, and has a row that says whose it is."""
    async with proxy(Asking) as client:
        response = await client.chat("hello", model="demo/echo")
        rows = await client.rows()
    assert response.status == 200
    assert orjson.loads(Asking.answers[0].body)["object"] == "list"
    asked = next(row for row in rows.requests if row["origin"] == "asking")
    clients = next(row for row in rows.requests if row["origin"] is None)
    assert (asked["parent_id"], asked["operation_name"]) == (clients["id"], "embeddings")
    assert asked["workspace"] == clients["workspace"]


async def test_a_plugin_learns_that_its_own_question_failed(proxy: StartProxy) -> None:
    """The error is raised where the question was asked."""

    class Misspelt(Asking):
        name = "misspelt"

        @hookimpl
        async def pre_request(self, exchange: Exchange) -> None:
            """Ask a model that does not exist."""
            await self.services.exchanges.send(exchange, Operation.CHAT, {"model": "nobody/x"}, origin=self.name)

    async with proxy(Misspelt) as client:
        response = await client.chat("hello", model="demo/echo")
    assert (response.status, response.document["error"]["code"]) == (404, "model_not_found")


def test_a_request_can_be_copied_for_the_rest() -> None:
    """What `Resume` carries is edited on its own."""
    original = Request(Operation.CHAT, b'{"model":"m"}', {"model": "m"})
    rest = original.copy()
    rest.set("model", "n")
    assert (original.model, rest.model) == ("m", "n")
