"""The walk as a whole: what is kept, told and charged when parts of it refuse, fail or are left alone."""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar

import pytest

from llmproxy.api import Answer, Attempt, Exchange, RateLimited, Retry, Section, Services, UpstreamError, hookimpl
from llmproxy.testing import StartProxy, cut_after, fail, hang, reply, stream, wait_until, with_headers
from tests.wire import CHAT, STREAM, dial, head, request

SECRET = "my card is 4111 1111 1111 1111"


class Plugin:
    """What every plugin is made with, and these do not need."""

    def __init__(self, config: Section, services: Services) -> None:
        """Nothing to configure."""


class Guard(Plugin):
    """Refuses by failing."""

    name = "guard"

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """Fail in the middle of the work, with the prompt in a local variable."""
        prompt = str(exchange.request.document["messages"])
        raise RuntimeError(len(prompt))


class Again(Plugin):
    """Tries once more, whatever happened."""

    name = "again"

    @hookimpl
    def on_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Retry | None:
        """One more."""
        return Retry() if attempt.number == 1 else None


class Instead(Plugin):
    """Answers in the provider's place."""

    name = "instead"

    @hookimpl
    def on_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Answer:
        """Something kind."""
        return Answer(body=b'{"choices": []}')


class Gatekeeper(Plugin):
    """Refuses every attempt before it is made."""

    name = "gatekeeper"

    @hookimpl
    def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """No."""
        raise RateLimited("Not now.", retry_after_seconds=5)


class Spoiler(Plugin):
    """Leaves something on some requests that no row can be made of."""

    name = "spoiler"

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """A decision that is none."""
        if "spoil" in str(exchange.request.document):
            exchange.decisions.append(None)  # type: ignore[arg-type]


class Door(Plugin):
    """Answers or refuses without a provider, and looks up what the journal has of it before the client is told."""

    name = "door"
    services: ClassVar[Services]
    written: ClassVar[list[bool]]

    def __init__(self, config: Section, services: Services) -> None:
        Door.services, Door.written = services, []

    @hookimpl
    def pre_request(self, exchange: Exchange) -> Answer:
        """Something known by heart."""
        if "no" in str(exchange.request.document):
            raise RateLimited("Not now.")
        return Answer(body=b'{"choices": []}')

    @hookimpl
    def on_response_head(self, exchange: Exchange) -> None:
        """Right before the first byte."""
        journals = self.services.state_directory.rglob("journal/*.log")
        self.written.append(any(exchange.id.encode() in journal.read_bytes() for journal in journals))


class Listener:
    """Notes what it is told after the answer."""

    name = "listener"
    heard: list[str]

    def __init__(self, config: Section, services: Services) -> None:
        Listener.heard = []

    @hookimpl
    async def post_response(self, exchange: Exchange) -> None:
        """A complete answer."""
        Listener.heard.append("complete")

    @hookimpl
    def on_complete(self, exchange: Exchange) -> None:
        """The end."""
        Listener.heard.append(str(exchange.outcome))


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_prompt_a_guard_failed_on_is_kept_nowhere(
    proxy: StartProxy, capfd: pytest.CaptureFixture[str], log_format: str
) -> None:
    """Neither in the stored body nor in the log, whose traceback shows no local variables."""
    config = {"audit": {"bodies": "all"}, "logging": {"format": log_format}}
    async with proxy(Guard, config=config) as client:
        assert (await client.chat(SECRET)).status == 500
        await client.rows()
        kept = await client.app.services.database.fetch("SELECT request FROM request_bodies")
    assert [bytes(row["request"]) for row in kept] == [b""]
    log = capfd.readouterr().err
    assert "RuntimeError" in log
    assert "4111" not in log


async def test_each_charged_attempt_has_a_ledger_row_of_its_own(proxy: StartProxy) -> None:
    """The one that answered stands on the exchange's row, the others beside it, and together they are the cost."""
    async with proxy(Again, upstream=[hang(), reply("hi")], config={"timeouts": {"first_byte_seconds": 0.3}}) as client:
        assert (await client.chat("hello")).status == 200
        rows = await client.rows()
    assert [(row["kind"], row["entry"]) for row in rows.ledger] == [("exchange", 0), ("attempt", 1)]
    assert {row["cost_provenance"] for row in rows.ledger} == {"measured", "assumed"}
    amounts = [row["amount_usd"] for row in rows.ledger]
    assert all(amount > 0 for amount in amounts)
    assert sum(amounts, Decimal(0)) == rows.requests[0]["cost_usd"]


async def test_a_request_that_was_never_sent_costs_nothing(proxy: StartProxy) -> None:
    """A provider without a key cannot have charged."""
    async with proxy(config={"providers": {"openai": {}}}) as client:
        assert (await client.chat("hello", model="openai/gpt-4o")).status == 502
        rows = await client.rows()
    assert (rows.ledger[0]["amount_usd"], rows.ledger[0]["usage_provenance"]) == (None, None)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_no_provider_was_sent_is_no_attempt(proxy: StartProxy, *, is_stream: bool) -> None:
    """Refused before it was sent, a request has made no attempt, and neither head nor explanation name a provider."""
    async with proxy(Gatekeeper) as client:
        response = await client.chat("hello", stream=is_stream)
        (row,) = (await client.rows()).requests
        told = await client.request("GET", f"/admin/v1/requests/{row['id']}/explain", key=client.admin_key)
        assert client.upstream.requests == []
    assert (response.status, response.headers["x-llmproxy-attempts"]) == (429, "0")
    assert {"x-llmproxy-provider", "x-llmproxy-model"} & response.headers.keys() == set()
    assert (told.document["summary"], told.document["served_by"]) == ("Refused at once: Not now.", None)
    assert [attempt["is_sent"] for attempt in told.document["attempts"]] == [False]


async def test_an_answer_in_a_providers_place_names_no_provider(proxy: StartProxy) -> None:
    """The head says how often was tried, not that the one that failed has answered."""
    async with proxy(Instead, upstream=[fail(503)]) as client:
        response = await client.chat("hello")
    assert (response.status, response.headers["x-llmproxy-attempts"]) == (200, "1")
    assert "x-llmproxy-provider" not in response.headers


@pytest.mark.parametrize(("prompt", "status"), [("yes", 200), ("no", 429)])
async def test_nobody_is_answered_of_whom_nothing_is_written(proxy: StartProxy, prompt: str, status: int) -> None:
    """Were the worker killed right after the answer, the request would still have its row."""
    async with proxy(Door) as client:
        assert (await client.chat(prompt)).status == status
    assert Door.written == [True]


async def test_who_hangs_up_after_the_last_byte_has_had_its_answer(proxy: StartProxy) -> None:
    """The stream counts as delivered, and who listens for complete answers hears of it."""
    async with proxy(Listener, upstream=[stream("a", "b")]) as client:
        async with dial(client) as connection:
            await connection.send(request(STREAM))
            await connection.read_until(b"[DONE]")
            connection.reset()
        await wait_until(lambda: len(Listener.heard) == 2)
        rows = await client.rows()
    assert Listener.heard == ["complete", "succeeded"]
    assert rows.requests[0]["outcome"] == "succeeded"


async def test_a_cut_stream_is_no_complete_answer(proxy: StartProxy) -> None:
    """Who listens for complete answers hears nothing of it."""
    async with proxy(Listener, upstream=[cut_after(3)]) as client:
        await client.chat("hello", stream=True)
        await wait_until(lambda: bool(Listener.heard))
    assert Listener.heard == ["failed"]


async def test_a_body_still_on_its_way_keeps_the_configuration_in_use(proxy: StartProxy) -> None:
    """From the key check on, plugins are not shut down under an exchange."""
    async with proxy(upstream=[reply("hi")]) as client, dial(client) as connection:
        pipeline = client.app.gateway.pipeline
        await connection.send(head(b"Content-Length: %d" % len(CHAT)) + CHAT[:10])
        await wait_until(lambda: not pipeline.is_idle)
        await connection.send(CHAT[10:])
        assert (await connection.read_head()).status == 200
        await wait_until(lambda: pipeline.is_idle)


async def test_requests_stay_in_the_workspaces_region(proxy: StartProxy) -> None:
    """A model whose provider lies elsewhere, or says nothing of it, is refused before anything is sent."""
    async with proxy(upstream=[reply("hi")], config={"workspaces": {"default": {"region": "eu"}}}) as client:
        refused = await client.chat("hello")
        assert (refused.status, refused.document["error"]["code"]) == (403, "region_not_allowed")
        assert client.upstream.requests == []


async def test_a_provider_in_the_region_serves(proxy: StartProxy) -> None:
    """In the vendor's own word for the place."""
    config = {"workspaces": {"default": {"region": "eu"}}, "providers": {"upstream": {"region": "eu-west-1"}}}
    async with proxy(upstream=[reply("hi")], config=config) as client:
        assert (await client.chat("hello")).status == 200


async def test_the_models_to_fall_back_to_are_few(proxy: StartProxy) -> None:
    """A list that would keep the gateway busy is a bad request."""
    async with proxy() as client:
        response = await client.chat("hello", fallbacks=["upstream/a"] * 11)
    assert (response.status, response.document["error"]["param"]) == (400, "fallbacks")


async def test_whose_account_pays_is_not_told(proxy: StartProxy) -> None:
    """Rate limits and ids of the provider reach the client, the operator's organization does not."""
    told = with_headers(
        reply("hi"), ("openai-organization", "org-1"), ("openai-project", "p"), ("x-ratelimit-limit-requests", "9")
    )
    async with proxy(upstream=[told]) as client:
        headers = (await client.chat("hello")).headers
    assert headers["x-ratelimit-limit-requests"] == "9"
    assert not {"openai-organization", "openai-project"} & set(headers)


async def test_a_whole_answer_nobody_reads_is_given_up(proxy: StartProxy) -> None:
    """A client that has stopped reading does not keep its answer in memory for ever."""
    config = {"server": {"write_seconds": 0.3}}
    async with proxy(upstream=[reply("word " * 4_000_000)], config=config) as client, dial(client) as connection:
        await connection.send(request())
        await connection.read_head()
        rows = await client.rows()
    assert rows.requests[0]["outcome"] == "disconnected"
