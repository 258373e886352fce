"""Azure, Mistral and Cohere behind a whole gateway: the client's SDK on one side, the vendor's wire on the other."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError

from llmproxy.testing import ProxyClient, StartProxy, document, events, stream
from tests.test_azure_provider import BLOCKED
from tests.test_cohere_answer import CALLS, TEXTS, VECTORS
from tests.test_cohere_request import WEATHER
from tests.test_mistral_answer import THOUGHTS
from tests.vendor_streams import sse

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [WEATHER]


def sdk(client: ProxyClient) -> AsyncOpenAI:
    """OpenAI's own SDK, which tries nothing twice."""
    return AsyncOpenAI(api_key=client.key, base_url=client.base_url, max_retries=0)


def vendor(kind: str, **section: object) -> dict[str, Any]:
    """The gateway's upstream as a vendor."""
    return {"providers": {"upstream": {"kind": kind, **section}}}


async def streamed(client: ProxyClient, **fields: Any) -> list[Any]:
    """The chunks of a streamed answer."""
    async with sdk(client) as openai:
        chunks = await openai.chat.completions.create(model="test", messages=MESSAGES, stream=True, **fields)
        return [chunk async for chunk in chunks]


async def test_a_cohere_stream_reaches_the_sdk(proxy: StartProxy) -> None:
    """Text, finish and usage arrive in OpenAI's form, and what Cohere bills is what is charged."""
    async with proxy(upstream=[events(TEXTS[:200], TEXTS[200:])], config=vendor("cohere")) as client:
        chunks = await streamed(client)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hé, Rome."
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
        assert client.upstream.requests[0].document["stream"] is True
        ledger = (await client.rows()).ledger
        assert [row["amount_usd"] for row in ledger] == [Decimal("0.00002")]


async def test_cohere_calls_tools(proxy: StartProxy) -> None:
    """Calls in a stream come with whole arguments, and the usage chunk is there for who asked for it."""
    async with proxy(upstream=[events(CALLS)], config=vendor("cohere")) as client:
        chunks = await streamed(client, tools=TOOLS, stream_options={"include_usage": True})
        assert chunks[-1].usage.prompt_tokens == 10
        pieces = [piece for chunk in chunks[:-1] for piece in chunk.choices[0].delta.tool_calls or []]
        assert "".join(piece.function.arguments for piece in pieces if piece.index == 0) == '{"city": 1.0}'


async def test_a_cohere_stream_that_breaks_off_is_an_error(proxy: StartProxy) -> None:
    """Trap 24, as the client's SDK sees it."""
    broken = TEXTS[: TEXTS.find(b'{"type":"message-end"') - 6]
    async with proxy(upstream=[events(broken)], config=vendor("cohere")) as client:
        with pytest.raises(Exception, match="ended before the answer was complete"):
            await streamed(client)


async def test_cohere_embeds_for_the_sdk(proxy: StartProxy) -> None:
    """The SDK asks for base64 on its own, and reads the vectors that Cohere gave as numbers."""
    async with proxy(upstream=[document(VECTORS)], config=vendor("cohere")) as client, sdk(client) as openai:
        answer = await openai.embeddings.create(model="test", input=["a", "b"])
        assert [item.embedding for item in answer.data] == [[0.5, -1.0], [1.0, 0.0]]


async def test_a_mistral_stream_reaches_the_sdk(proxy: StartProxy) -> None:
    """Thinking is told from text, and a parameter that was left out is named."""
    async with proxy(upstream=[events(THOUGHTS)], config=vendor("mistral")) as client:
        chunks = await streamed(client, user="ann")
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(delta.content or "" for delta in deltas) == "Yes."
        assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "Hm, so."
        assert "user" not in client.upstream.requests[0].document


async def test_an_error_before_the_first_content_is_a_status(proxy: StartProxy) -> None:
    """Trap 22: an error in a 200 stream that nobody has seen anything of is a real error."""
    failed = sse({"object": "error", "message": "x", "type": "internal_error", "code": "1000"})
    async with proxy(upstream=[events(failed)], config=vendor("mistral")) as client:
        with pytest.raises(APIStatusError) as caught:
            await streamed(client)
        assert caught.value.status_code == 502


async def test_azure_is_asked_by_deployment(proxy: StartProxy) -> None:
    """The dated form has the deployment in its path, the key in its own header, and OpenAI's answer."""
    config = vendor("azure", api_version="2024-10-21")
    async with proxy(upstream=[stream("Hi", " there")], config=config) as client:
        chunks = await streamed(client)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hi there"
        asked = client.upstream.requests[0]
        assert asked.target.endswith("/openai/deployments/test-model/chat/completions?api-version=2024-10-21")
        assert asked.headers.get("api-key")
        assert asked.headers.get("authorization") is None


async def test_only_azures_own_deployments_are_listed(proxy: StartProxy) -> None:
    """Deployments are called what the customer likes: what Azure's models are called elsewhere means nothing here."""
    config = vendor("azure", models=[], base_models={"test-model": "gpt-4o"})
    async with proxy(config=config) as client, sdk(client) as openai:
        names = [model.id async for model in await openai.models.list()]
        assert [name for name in names if not name.startswith("demo/")] == ["test", "upstream/test-model"]


async def test_azures_filter_reaches_the_client(proxy: StartProxy) -> None:
    """A blocked prompt is a 400 with Azure's code."""
    async with proxy(upstream=[document(BLOCKED, status=400)], config=vendor("azure")) as client:
        with pytest.raises(BadRequestError) as caught:
            await streamed(client)
        assert caught.value.code == "content_filter"
