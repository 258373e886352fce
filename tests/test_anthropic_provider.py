"""The anthropic kind: where requests go and with which headers, and answers over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from llmproxy.attempt import Attempts
from llmproxy.config import Timeouts
from llmproxy.errors import BadRequest, Failure, UpstreamCut, UpstreamError, UpstreamRefused
from llmproxy.exchange import Answer, Attempt, Target
from llmproxy.providers.anthropic import Anthropic, AnthropicConfig
from llmproxy.request import Operation
from llmproxy.services import SystemClock, UpstreamRequest
from llmproxy.testing import ScriptedUpstream, document, events, make_exchange
from llmproxy.upstream import HTTPTransport
from tests.anthropic_messages import BUDGET, NEW, USER, chunks, events_of, message, sse, text
from tests.providers import header, request, services
from tests.test_anthropic_answer import THINKING, USAGE, error, tool_use

KEY = "sk-ant-test-1234567890"
ANSWER = message(THINKING, text("So"), tool_use(city="Bonn"), stop_reason="tool_use", usage=USAGE)


def provider(**section: Any) -> Anthropic:
    """A configured provider."""
    return Anthropic("anthropic", AnthropicConfig(**section), services())


def prepare(
    client: dict[str, str] | None = None, section: dict[str, Any] | None = None, **members: Any
) -> UpstreamRequest:
    """What would be sent for a request."""
    asked = request({"model": NEW, "max_tokens": 100, "messages": [USER], **members})
    made = provider(**{"api_key": KEY, **(section or {})})
    return made.prepare(asked, Target("anthropic", NEW), CIMultiDict(client or {}))


# Addressing


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        (None, "https://api.anthropic.com/v1/messages"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1/v1/messages"),
        ("http://127.0.0.1:1/v1/", "http://127.0.0.1:1/v1/messages"),
        ("https://api.z.ai/api/anthropic", "https://api.z.ai/api/anthropic/v1/messages"),
    ],
)
def test_the_address(base_url: str | None, url: str) -> None:
    """Requests go to /v1/messages below the base, whether or not the base names the version."""
    assert prepare(section={"base_url": base_url}).url == url


def test_the_headers_are_the_gateways_own() -> None:
    """Trap 41: the configured key and the version go out; the client's own credentials never do."""
    client = {"x-api-key": "client", "Authorization": "Bearer client", "anthropic-version": "1", "User-Agent": "app/1"}
    assert dict(prepare(client).headers) == {
        "accept": "application/json",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "x-api-key": KEY,
        "user-agent": "app/1",
        "anthropic-version": "2026-10-21",
    }


def test_a_token_is_a_bearer() -> None:
    """Where the section says so the key goes out as a bearer token, and not twice."""
    prepared = prepare(section={"auth": "bearer"})
    assert header(prepared, "authorization") == f"Bearer {KEY}"
    assert header(prepared, "x-api-key") is None


def test_a_missing_key_is_named() -> None:
    """Without a key the vendor's own address is not asked; another address may need none."""
    asked = request({"model": NEW, "messages": [USER]})
    with pytest.raises(UpstreamError, match="ANTHROPIC_API_KEY") as caught:
        provider().prepare(asked, Target("anthropic", NEW), CIMultiDict())
    assert (caught.value.failure, caught.value.error_code) == (Failure.AUTH, "upstream_auth_error")
    local = provider(base_url="http://127.0.0.1:1").prepare(asked, Target("anthropic", NEW), CIMultiDict())
    assert header(local, "x-api-key") is None


def test_betas_of_client_and_section() -> None:
    """Trap 12: the client's features and the section's are one list; what cannot be a header is no feature."""
    section = {"betas": ["b", "c"], "headers": {"Anthropic-Beta": "d"}}
    assert header(prepare({"anthropic-beta": "a,b"}, section), "anthropic-beta") == "a,b,d,c"
    assert header(prepare(), "anthropic-beta") is None
    assert header(prepare({"anthropic-beta": "a\r\nx-evil: 1"}), "anthropic-beta") is None


def test_a_configured_version_wins() -> None:
    """A version in the section's headers stands in place of the model's, once."""
    assert (
        header(prepare(section={"headers": {"Anthropic-Version": "2023-06-01"}}), "anthropic-version") == "2023-06-01"
    )


def test_older_models_are_asked_under_the_older_version() -> None:
    """The version header follows the model of the target, not the name the client used."""
    asked = request({"model": "alias", "messages": [USER], "temperature": 0.5})
    prepared = provider(api_key=KEY).prepare(asked, Target("anthropic", BUDGET), CIMultiDict())
    assert header(prepared, "anthropic-version") == "2023-06-01"
    body = orjson.loads(prepared.body)
    assert (body["model"], body["temperature"]) == (BUDGET, 0.5)


def test_only_chat_is_offered() -> None:
    """There are no embeddings to be had."""
    asked = request({"model": NEW, "input": "x"}, Operation.EMBEDDINGS)
    with pytest.raises(BadRequest, match="embeddings"):
        provider(api_key=KEY).prepare(asked, Target("anthropic", NEW), CIMultiDict())


def test_a_request_nested_too_deep_is_refused() -> None:
    """What can be read and not written again is the client's mistake."""
    nested: Any = {}
    for _ in range(300):
        nested = {"a": nested}
    tool = {"type": "function", "function": {"name": "f", "parameters": nested}}
    body = orjson.dumps({"model": NEW, "messages": [USER], "tools": []})
    asked = request(orjson.loads(body))
    asked.set("tools", [tool])
    with pytest.raises(BadRequest, match="nested"):
        provider(api_key=KEY).prepare(asked, Target("anthropic", NEW), CIMultiDict())


@pytest.mark.parametrize(
    "section", [{"thinking_budgets": {"extreme": 1}}, {"auth": "basic"}, {"default_max_tokens": 0}]
)
def test_mistakes_in_a_section_are_found(section: dict[str, Any]) -> None:
    """Unknown efforts, unknown ways to send a key and impossible limits are mistakes of the configuration."""
    with pytest.raises(ValidationError):
        provider(**section)


def test_the_sections_numbers_hold() -> None:
    """Default limit and budgets are the operator's, the rest stays the house's."""
    section = {"api_key": KEY, "default_max_tokens": 9000, "thinking_budgets": {"high": 3000}}
    asked = request({"model": BUDGET, "messages": [USER], "reasoning_effort": "high"})
    body = orjson.loads(provider(**section).prepare(asked, Target("anthropic", BUDGET), CIMultiDict()).body)
    assert (body["max_tokens"], body["thinking"]["budget_tokens"]) == (9000, 3000)


# Over the wire


@pytest.fixture
async def transport() -> AsyncIterator[HTTPTransport]:
    """Core's engine."""
    engine = HTTPTransport()
    yield engine
    await engine.close()


async def attempt_at(upstream: ScriptedUpstream, transport: HTTPTransport, **members: Any) -> tuple[Attempt, Answer]:
    """One attempt of core's at a scripted upstream."""
    made = provider(api_key=KEY, base_url=upstream.origin)
    attempts = Attempts({("anthropic", None): made}, transport, Timeouts(), SystemClock())
    exchange = make_exchange(**{"model": f"anthropic/{NEW}", **members})
    attempt = attempts.begin(exchange, exchange.request, Target("anthropic", NEW))
    return attempt, await attempts.answer(exchange, attempt)


async def test_a_whole_answer(transport: HTTPTransport) -> None:
    """A short answer is asked for whole, and its usage is known in every class."""
    async with ScriptedUpstream([document(ANSWER)]) as upstream:
        attempt, answer = await attempt_at(upstream, transport, max_tokens=100, temperature=1)
    assert not upstream.requests[0].is_stream
    completion = ChatCompletion.model_validate_json(answer.body)
    assert completion.choices[0].finish_reason == "tool_calls"
    assert attempt.finish_reasons == ("tool_calls",)
    assert attempt.usage is not None
    assert attempt.usage.cache_write_1h_input_tokens == 7
    assert attempt.dropped == ("temperature",)


async def test_a_long_answer_is_streamed_and_given_whole(transport: HTTPTransport) -> None:
    """Trap 37: what may take long is streamed upstream, and a client that wanted no stream sees no difference."""
    stream = [sse([event]) for event in events_of(ANSWER)]
    async with ScriptedUpstream([document(ANSWER), events(*stream)]) as upstream:
        short, whole = await attempt_at(upstream, transport, max_tokens=100)
        long, aggregated = await attempt_at(upstream, transport, max_tokens=100_000)
    assert [asked.is_stream for asked in upstream.requests] == [False, True]
    assert upstream.requests[1].headers["accept"] == "text/event-stream"
    one, other = orjson.loads(whole.body), orjson.loads(aggregated.body)
    assert {**one, "created": 0} == {**other, "created": 0}
    assert short.usage == long.usage
    assert dict(aggregated.headers)["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("sent", "raised"),
    [(events_of(ANSWER)[:-1], UpstreamCut), ([*events_of(ANSWER)[:5], error("overloaded_error")], UpstreamRefused)],
)
async def test_a_long_answer_that_breaks_off_is_an_error(
    transport: HTTPTransport, sent: list[dict[str, Any]], raised: type[UpstreamError]
) -> None:
    """Half a stream is never given out as a whole answer."""
    async with ScriptedUpstream([events(*(sse([event]) for event in sent))]) as upstream:
        with pytest.raises(raised):
            await attempt_at(upstream, transport)


async def test_a_streamed_answer(transport: HTTPTransport) -> None:
    """A streaming client gets the chunks, with usage when it asked, and the record has the usage either way."""
    stream = [sse([event]) for event in events_of(ANSWER)]
    async with ScriptedUpstream([events(*stream)]) as upstream:
        attempt, answer = await attempt_at(upstream, transport, stream=True)
        out = b""
        assert answer.stream is not None
        while data := await answer.stream.read():
            out += data
    assert chunks(out)[-1].choices[0].finish_reason == "tool_calls"
    assert attempt.progress is not None
    usage = provider(api_key=KEY).usage(attempt.progress.usage or {})
    assert usage is not None
    assert (usage.input_tokens, usage.cache_write_1h_input_tokens) == (19, 7)


async def test_an_overload_after_the_start_can_still_be_failed_over(transport: HTTPTransport) -> None:
    """Trap 23: an error event before any content is an attempt that failed, not an answer."""
    stream = [sse([event]) for event in (*events_of(ANSWER)[:2], error("overloaded_error"))]
    async with ScriptedUpstream([events(*stream)]) as upstream:
        with pytest.raises(UpstreamRefused) as caught:
            await attempt_at(upstream, transport, stream=True)
    assert caught.value.failure is Failure.OVERLOADED
