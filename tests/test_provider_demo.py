"""The demo provider: deterministic answers in the vendor's own format, and failures on request."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import orjson
import pytest

from llmproxy.exchange import Target
from llmproxy.pricing import PriceBook
from llmproxy.providers.demo_models import STORY, tokens
from llmproxy.request import Operation
from llmproxy.usage import Usage
from tests.demo_provider import NOW, demo, read_all, send

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
            "required": ["city", "days"],
        },
    },
}


async def ask(model: str, operation: Operation = Operation.CHAT, **members: Any) -> dict[str, Any]:
    """A whole answer, decoded."""
    response = await send(model, operation, **members)
    document: dict[str, Any] = orjson.loads(b"".join(await read_all(response)))
    assert response.status == 200, document
    return document


async def stream(model: str, operation: Operation = Operation.CHAT, **members: Any) -> list[dict[str, Any]]:
    """A streamed answer's chunks, decoded; it must end as one does."""
    response = await send(model, operation, stream=True, **members)
    assert response.headers["Content-Type"] == "text/event-stream"
    *events, done = await read_all(response)
    assert done == b"data: [DONE]\n\n"
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


def said(chunks: list[dict[str, Any]], name: str = "content", index: int = 0) -> str:
    """What the deltas of one choice add up to."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(name) or "" for choice in choices)


async def test_echo_answers_the_last_user_message() -> None:
    """The echo model says back what the user said last, parts of text included."""
    messages = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two "}, {"type": "text", "text": "three"}]},
        {"role": "assistant", "content": "four"},
    ]
    answer = await ask("echo", messages=messages)
    assert answer["choices"][0]["message"]["content"] == "two three"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (answer["object"], answer["model"]) == ("chat.completion", "echo")


@pytest.mark.parametrize("model", ["echo", "story", "tools", "json", "reasoning", "slow", "slow-first-byte"])
async def test_answers_are_deterministic(model: str) -> None:
    """The same request gets the same answer, id and usage included."""
    assert await ask(model, tools=[TOOL]) == await ask(model, tools=[TOOL])
    assert await stream(model) == await stream(model)


@pytest.mark.parametrize("model", ["echo", "story", "tools", "json", "reasoning", "slow", "slow-first-byte"])
async def test_streams_say_what_whole_answers_say(model: str) -> None:
    """Streamed or not, an answer has the same text, reasoning, tool calls, finish reason and usage."""
    whole = await ask(model, tools=[TOOL])
    chunks = await stream(model, tools=[TOOL], stream_options={"include_usage": True})
    message = whole["choices"][0]["message"]
    assert said(chunks) == (message["content"] or "")
    assert said(chunks, "reasoning_content") == message.get("reasoning_content", "")
    calls = [call for chunk in chunks[:-1] for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    wanted = message.get("tool_calls", [{"function": {"arguments": ""}}])[0]["function"]["arguments"]
    assert "".join(call["function"]["arguments"] for call in calls) == wanted
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert reasons == [whole["choices"][0]["finish_reason"]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]


async def test_usage_is_streamed_only_when_asked_for() -> None:
    """Without `include_usage` no chunk holds usage; with it all but the last hold null."""
    assert all("usage" not in chunk for chunk in await stream("echo"))
    *chunks, last = await stream("echo", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["usage"]["completion_tokens"] > 0


async def test_a_streams_first_delta_has_the_role() -> None:
    """Each choice of a stream begins with its role and ends with one finish reason."""
    chunks = await stream("echo", n=2)
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in choices].count("stop") == 1
    assert said(chunks, index=1) == "Say hello to the world."


async def test_usage_adds_up_and_has_its_classes() -> None:
    """Tokens add up to the total; the reasoning model also shows cached and reasoning tokens."""
    usage = demo().usage(await ask("reasoning"))
    assert isinstance(usage, Usage)
    assert usage.cache_read_input_tokens > 0
    assert usage.uncached_input_tokens > 0
    assert usage.reasoning_output_tokens > 0
    assert usage.text_output_tokens == len(tokens("Say hello to the world."))
    assert usage.total_tokens == (await ask("reasoning"))["usage"]["total_tokens"]


async def test_choices_are_as_many_as_asked() -> None:
    """`n` gives as many choices, each of them paid for."""
    one, three = await ask("echo"), await ask("echo", n=3)
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]


@pytest.mark.parametrize("limit", [{"max_tokens": 4}, {"max_completion_tokens": 4}])
async def test_a_token_limit_is_kept(limit: dict[str, Any]) -> None:
    """A limited answer has that many tokens and says why it ended."""
    answer = await ask("story", **limit)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4
    assert STORY.startswith(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize("stop", ["hello", ["nothing", "hello", "world"]])
async def test_a_stop_sequence_ends_the_answer(stop: object) -> None:
    """An answer ends before the first stop sequence in it."""
    answer = await ask("echo", stop=stop)
    assert answer["choices"][0]["message"]["content"] == "Say "
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_tools_calls_the_first_tool_with_fitting_arguments() -> None:
    """The tools model calls a tool with arguments made from its schema."""
    answer = await ask("tools", tools=[TOOL])
    call = answer["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["name"] == "get_weather"
    assert orjson.loads(call["function"]["arguments"]) == {"city": "text", "days": 2}
    assert answer["choices"][0]["message"]["content"] is None
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


async def test_tools_answers_when_the_tool_has_spoken() -> None:
    """After a tool's result the tools model answers in words, so that an agent's loop ends."""
    messages = [{"role": "user", "content": "?"}, {"role": "tool", "tool_call_id": "c", "content": "rain"}]
    answer = await ask("tools", tools=[TOOL], messages=messages)
    assert answer["choices"][0]["message"]["content"] == "The tool said: rain"


@pytest.mark.parametrize("choice", ["none", {"type": "function", "function": {"name": "no_such"}}])
async def test_tools_keeps_to_the_tool_choice(choice: object) -> None:
    """No tool is called that the client did not allow."""
    answer = await ask("tools", tools=[TOOL], tool_choice=choice)
    assert "tool_calls" not in answer["choices"][0]["message"]


async def test_json_follows_the_schema() -> None:
    """The json model answers with an object that fits the schema asked for, or any object without one."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    answer = await ask("json", response_format=wanted)
    assert orjson.loads(answer["choices"][0]["message"]["content"]) == {"ok": True, "kind": "a"}
    plain = await ask("json", response_format={"type": "json_object"})
    assert orjson.loads(plain["choices"][0]["message"]["content"]) == {"answer": "Say hello to the world."}


async def test_text_completions_are_served_too() -> None:
    """A text completion answers each prompt, streamed or not."""
    answer = await ask("echo", Operation.TEXT_COMPLETION, prompt=["a b", "c"])
    assert [choice["text"] for choice in answer["choices"]] == ["a b", "c"]
    assert answer["object"] == "text_completion"
    chunks = await stream("story", Operation.TEXT_COMPLETION)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == STORY
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_embeddings_are_unit_vectors_of_the_text() -> None:
    """Equal texts have equal vectors of length 1, others have others, in as many dimensions as asked."""
    answer = await ask("embed", Operation.EMBEDDINGS, input=["a", "b", "a"], dimensions=7)
    first, second, third = (item["embedding"] for item in answer["data"])
    assert first == third != second
    assert len(first) == 7
    assert math.isclose(math.hypot(*first), 1)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_embeddings_in_base64_are_the_same_numbers() -> None:
    """`encoding_format: base64` gives the vector as little-endian float32."""
    plain = await ask("embed", Operation.EMBEDDINGS)
    packed = await ask("embed", Operation.EMBEDDINGS, encoding_format="base64")
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(plain["data"][0]["embedding"])


async def test_the_demo_is_free_and_listed() -> None:
    """The demo provider lists its models, and what they cost is known to be nothing."""
    provider = demo()
    assert {"echo", "story", "hang", "fail-429"} <= set(provider.model_names())
    prices = PriceBook(()).prices(Target("demo", "echo"), provider.price_provider, NOW)
    cost = PriceBook.cost(provider.usage(await ask("echo")) or Usage(), prices)
    assert cost.amount_usd == 0
    assert cost.provenance == "measured"
