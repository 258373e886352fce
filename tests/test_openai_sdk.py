"""The official OpenAI SDK for Python, unchanged but for its base URL, against the running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from llmproxy.testing import (
    ProxyClient,
    StartProxy,
    ToolCall,
    completion,
    embeddings,
    reasoning,
    reply,
    stream,
    tokens,
    tools,
)

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@asynccontextmanager
async def sdk_of(client: ProxyClient, **options: Any) -> AsyncIterator[AsyncOpenAI]:  # options are the SDK's own
    """The SDK as an application makes it; it does not retry unless told to."""
    given = {"base_url": client.base_url, "api_key": client.key, "max_retries": 0, **options}
    async with AsyncOpenAI(**given) as sdk:
        yield sdk


async def texts_of(sdk: AsyncOpenAI, model: str = "test") -> Sequence[str]:
    """What each event of a streamed chat says."""
    events = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    return [event.choices[0].delta.content or "" async for event in events]


# Chat


async def test_a_chat_is_answered(proxy: StartProxy) -> None:
    """The answer is the provider's, usage with all its details included."""
    async with proxy(upstream=[reply("hi", usage=tokens(7, 3, cached_tokens=2))]) as client, sdk_of(client) as sdk:
        answer = await sdk.chat.completions.create(model="test", messages=MESSAGES)
        assert answer.choices[0].message.content == "hi"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert (answer.usage.total_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (10, 2)


async def test_a_stream_arrives_event_by_event(proxy: StartProxy) -> None:
    """Each event of the provider is an event for the application."""
    async with proxy(upstream=[stream("one ", "two ", "three")]) as client, sdk_of(client) as sdk:
        assert await texts_of(sdk) == ["", "one ", "two ", "three", ""]


async def test_the_synchronous_sdk_is_served_alike(proxy: StartProxy) -> None:
    """Whole and streamed answers through the blocking client."""

    def use(client: ProxyClient) -> tuple[str | None, list[str | None]]:
        with OpenAI(base_url=client.base_url, api_key=client.key, max_retries=0) as sdk:
            whole = sdk.chat.completions.create(model="test", messages=MESSAGES)
            events = sdk.chat.completions.create(model="test", messages=MESSAGES, stream=True)
            return whole.choices[0].message.content, [event.choices[0].delta.content for event in events]

    async with proxy(upstream=[reply("hi"), stream("a", "b")]) as client:
        assert await asyncio.to_thread(use, client) == ("hi", ["", "a", "b", None])


async def test_usage_in_a_stream_comes_only_to_those_who_ask(proxy: StartProxy) -> None:
    """The gateway always asks the provider for usage, and keeps the event from clients that did not."""
    async with proxy(upstream=[stream("a"), stream("a")]) as client, sdk_of(client) as sdk:
        events = await sdk.chat.completions.create(model="test", messages=MESSAGES, stream=True)
        assert [event.usage async for event in events] == [None, None, None]
        events = await sdk.chat.completions.create(
            model="test", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        *_, last = [event async for event in events]
        assert last.usage is not None
        assert (last.choices, last.usage.total_tokens) == ([], 15)
        assert [row["amount_usd"] for row in (await client.rows()).ledger] == [Decimal("0.000020")] * 2


async def test_thoughts_are_passed_on(proxy: StartProxy) -> None:
    """A member that the SDK does not know, such as `reasoning_content`, is there for those who do."""
    async with proxy(upstream=[reasoning("so be it", "yes")] * 2) as client, sdk_of(client) as sdk:
        answer = await sdk.chat.completions.create(model="test", messages=MESSAGES)
        assert answer.choices[0].message.model_extra == {"reasoning_content": "so be it"}
        events = await sdk.chat.completions.create(model="test", messages=MESSAGES, stream=True)
        extras = [event.choices[0].delta.model_extra async for event in events]
        assert {"reasoning_content": "so be it"} in extras


async def test_a_stream_can_be_left_early(proxy: StartProxy) -> None:
    """An application that stops reading ends the provider's work, and leaves one row that says so."""
    endless = stream(*map(str, range(2000)), delay_seconds=0.01)
    async with proxy(upstream=[endless]) as client:
        async with sdk_of(client) as sdk:
            events = await sdk.chat.completions.create(model="test", messages=MESSAGES, stream=True)
            assert (await anext(aiter(events))).choices[0].delta.role == "assistant"
            await events.close()
        await client.upstream.wait_for(lambda: bool(client.upstream.cancelled))
        [row] = (await client.rows()).requests
        assert (row["outcome"], row["usage_provenance"]) == ("disconnected", "estimated")


# Tools and structured output


async def test_tools_make_their_round_trip(proxy: StartProxy) -> None:
    """The model's calls reach the application, and its results the model."""
    call = ToolCall("get_weather", {"city": "Oslo"}, id="call_7")
    async with proxy(upstream=[tools(call), reply("4 °C")]) as client, sdk_of(client) as sdk:
        first = await sdk.chat.completions.create(model="test", messages=MESSAGES, tools=[WEATHER])
        message = first.choices[0].message
        assert message.tool_calls is not None
        assert message.tool_calls[0].type == "function"
        assert message.tool_calls[0].function.arguments == '{"city": "Oslo"}'
        asked: list[Any] = [*MESSAGES, message, {"role": "tool", "tool_call_id": "call_7", "content": "4"}]
        second = await sdk.chat.completions.create(model="test", messages=asked, tools=[WEATHER])
        assert second.choices[0].message.content == "4 °C"
        sent = client.upstream.requests[1].document
        assert sent["tools"] == [WEATHER]
        assert sent["messages"][1]["tool_calls"][0]["function"]["name"] == "get_weather"
        assert sent["messages"][2] == {"role": "tool", "tool_call_id": "call_7", "content": "4"}


async def test_streamed_tool_calls_can_be_put_together(proxy: StartProxy) -> None:
    """The SDK's own accumulation of a stream finds every call whole."""
    calls = [ToolCall("get_weather", {"city": "Oslo"}), ToolCall("get_weather", {"city": "Rome"})]
    async with proxy(upstream=[tools(*calls)]) as client, sdk_of(client) as sdk:
        async with sdk.chat.completions.stream(model="test", messages=MESSAGES, tools=[WEATHER]) as events:
            message = (await events.get_final_completion()).choices[0].message
        assert message.tool_calls is not None
        assert [call.function.arguments for call in message.tool_calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']
        assert [call.id for call in message.tool_calls] == ["call_1", "call_2"]


class Person(BaseModel):
    """What a structured answer is to be."""

    name: str
    age: int


async def test_structured_output_is_parsed(proxy: StartProxy) -> None:
    """The schema reaches the provider as the SDK wrote it, and the answer becomes the model it describes."""
    async with proxy(upstream=[reply('{"name": "Ada", "age": 36}')]) as client, sdk_of(client) as sdk:
        answer = await sdk.chat.completions.parse(model="test", messages=MESSAGES, response_format=Person)
        assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
        schema = client.upstream.requests[0].document["response_format"]["json_schema"]
        assert (schema["name"], schema["strict"]) == ("Person", True)


# The other endpoints


async def test_embeddings_come_as_numbers(proxy: StartProxy) -> None:
    """The SDK asks for base64 unless told otherwise, and both forms arrive."""
    vectors = ([0.5, -0.25], [1.0, 2.0])
    async with proxy(upstream=[embeddings(*vectors)] * 2) as client, sdk_of(client) as sdk:
        encoded = await sdk.embeddings.create(model="test", input=["a", "b"])
        plain = await sdk.embeddings.create(model="test", input=["a", "b"], encoding_format="float")
        assert [item.embedding for item in encoded.data] == [item.embedding for item in plain.data] == list(vectors)
        sent = [request.document for request in client.upstream.requests]
        assert [document.get("encoding_format") for document in sent] == ["base64", "float"]
        assert [row["operation_name"] for row in (await client.rows()).requests] == ["embeddings"] * 2


async def test_text_completions_are_served(proxy: StartProxy) -> None:
    """The older endpoint, whole and streamed."""
    async with proxy(upstream=[completion("once"), completion("once ", "upon")]) as client, sdk_of(client) as sdk:
        whole = await sdk.completions.create(model="test", prompt="tell")
        assert whole.choices[0].text == "once"
        events = await sdk.completions.create(model="test", prompt="tell", stream=True)
        assert "".join([event.choices[0].text async for event in events]) == "once upon"
        assert {request.path for request in client.upstream.requests} == {"/v1/completions"}


async def test_models_are_listed_and_found(proxy: StartProxy) -> None:
    """Aliases and `provider/model` names alike; a slash in a name is no other path."""
    async with proxy() as client, sdk_of(client) as sdk:
        names = [model.id async for model in sdk.models.list()]
        assert {"test", "upstream/test-model", "demo/echo"} <= set(names)
        assert (await sdk.models.retrieve("demo/echo")).owned_by == "demo"
        assert (await sdk.models.retrieve("test")).id == "test"


# The wire


async def test_response_headers_tell_who_served(proxy: StartProxy) -> None:
    """What the gateway knows of a request stands in its headers, on streams as well, but for the cost."""
    async with proxy(upstream=[reply("hi"), stream("hi")]) as client, sdk_of(client) as sdk:
        whole = await sdk.chat.completions.with_raw_response.create(model="test", messages=MESSAGES)
        assert whole.parse().choices[0].message.content == "hi"
        assert whole.headers["x-llmproxy-provider"] == "upstream"
        assert whole.headers["x-llmproxy-model"] == "upstream/test-model"
        assert whole.headers["x-llmproxy-attempts"] == "1"
        assert whole.headers["x-llmproxy-cost-usd"] == "0.000020"
        assert float(whole.headers["x-llmproxy-overhead-ms"]) >= 0
        streamed = await sdk.chat.completions.with_raw_response.create(model="test", messages=MESSAGES, stream=True)
        assert "x-llmproxy-cost-usd" not in streamed.headers
        assert [event async for event in streamed.parse()]
        ids = [str(row["id"]) for row in (await client.rows()).requests]
        assert [answer.headers["x-llmproxy-request-id"] for answer in (whole, streamed)] == ids
        assert [answer.headers["x-request-id"] for answer in (whole, streamed)] == ["req-1", "req-2"]


async def test_unknown_fields_reach_the_provider(proxy: StartProxy) -> None:
    """What the gateway does not know is the provider's business."""
    extra = {"top_k": 40, "nested": {"a": [1, None, 2.5]}}
    async with proxy(upstream=[reply("hi")]) as client, sdk_of(client) as sdk:
        await sdk.chat.completions.create(model="test", messages=MESSAGES, seed=1, extra_body=extra)
        sent = client.upstream.requests[0].document
        assert {name: sent[name] for name in ("seed", "top_k", "nested")} == {"seed": 1, **extra}


async def test_attribution_lands_in_the_row_and_nowhere_else(proxy: StartProxy) -> None:
    """`x-llmproxy-*` headers are the gateway's: they end in the row, and the provider never sees them."""
    headers = {
        "x-llmproxy-feature": "search",
        "x-llmproxy-user": "ann",
        "x-llmproxy-session": "s1",
        "x-llmproxy-prompt-version": "v2",
        "x-llmproxy-tags": "a, b",
        "x-llmproxy-metadata": '{"team": "core"}',
    }
    async with proxy(upstream=[reply("hi")]) as client, sdk_of(client, default_headers=headers) as sdk:
        await sdk.chat.completions.create(model="test", messages=MESSAGES)
        rows = await client.rows()
        [row] = rows.requests
        assert (row["feature"], row["user_id"], row["session_id"]) == ("search", "ann", "s1")
        assert (row["prompt_version"], row["tags"], row["metadata"]) == ("v2", ["a", "b"], {"team": "core"})
        assert (rows.ledger[0]["feature"], rows.ledger[0]["user_id"]) == ("search", "ann")
        assert b"x-llmproxy" not in client.upstream.requests[0].raw_head.lower()


UNUSUAL = (
    b'{ "model" :"%b", "messages":[{"role":"user","content":"\\u00e9\\/ \xc3\xa9 \\ud83d\\ude00"}],\r\n'
    b' "temperature": 1.0, "seed": 123456789012345678901234567890, "top_p":1E-2, '
    b'"metadata": {"a": 1, "a": 2, "model": "inner"}, "logit_bias" : {} }\n'
)


@pytest.mark.parametrize("model", ["test-model", "test", "upstream/test-model"])
async def test_bodies_are_forwarded_byte_for_byte(proxy: StartProxy, model: str) -> None:
    """Spacing, number spelling, escapes and repeated keys are the client's own; only the model's name is replaced."""
    async with proxy(upstream=[reply("hi")]) as client:
        response = await client.request("POST", "/v1/chat/completions", body=UNUSUAL % model.encode())
        assert response.text == "hi"
        assert client.upstream.requests[0].body == UNUSUAL % b"test-model"


# The demo provider


async def test_the_demo_provider_serves_every_feature(proxy: StartProxy) -> None:
    """What the first `curl` of a new installation shows works with the SDK as well, and costs nothing."""
    async with proxy() as client, sdk_of(client) as sdk:
        assert "hello" in "".join(await texts_of(sdk, "demo/echo"))
        assert "".join(await texts_of(sdk, "demo/story"))
        parsed = await sdk.chat.completions.parse(model="demo/json", messages=MESSAGES, response_format=Person)
        assert isinstance(parsed.choices[0].message.parsed, Person)
        called = await sdk.chat.completions.create(model="demo/tools", messages=MESSAGES, tools=[WEATHER])
        assert called.choices[0].finish_reason == "tool_calls"
        vectors = await sdk.embeddings.create(model="demo/embed", input="hello")
        assert vectors.data[0].embedding
        rows = await client.rows()
        assert {row["outcome"] for row in rows.requests} == {"succeeded"}
        assert {row["amount_usd"] for row in rows.ledger} == {Decimal(0)}
