"""Trap 43: clients that know functions and no tools get a function call back, whole and streamed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from llmproxy.dialects.chat_answer import AnsweredCall, AnswerIdentity, ChatAnswer, ChunkWriter
from llmproxy.dialects.chat_request import read_chat_request
from llmproxy.dialects.legacy_functions import function_call_events, uses_functions, with_function_calls
from llmproxy.sse import DONE, SSEDecoder, event_data
from llmproxy.testing import ProxyClient, Reply, StartProxy, document, events
from tests import bedrock
from tests.vendor_streams import sse

FUNCTION: Any = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
IDENTITY = AnswerIdentity("chatcmpl-1", "m", 1)
ARGUMENTS = '{"city":"Rome"}'


def chunks(pieces: list[bytes]) -> list[Any]:
    """The choices of the chunks of a stream."""
    data = [event_data(raw) or b"" for raw in SSEDecoder(1 << 20).feed(b"".join(pieces))]
    return [orjson.loads(each)["choices"][0] for each in data if not each.startswith(b"[DONE]")]


def test_a_whole_answer_holds_one_function_call() -> None:
    """Parallel calls are one for such a client, and what the vendor wants back travels with it."""
    calls = [AnsweredCall("a", "weather", ARGUMENTS, extra_content={"google": {"x": 1}}), AnsweredCall("b", "other")]
    answer = orjson.loads(ChatAnswer(IDENTITY, "tool_calls", tool_calls=calls).encode())
    turned = with_function_calls(answer)
    [choice] = ChatCompletion.model_validate(turned).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.tool_calls is None
    assert choice.message.function_call is not None
    assert (choice.message.function_call.name, choice.message.function_call.arguments) == ("weather", ARGUMENTS)
    [message] = read_chat_request({"messages": [turned["choices"][0]["message"]]}).messages
    assert message.tool_calls[0].extra_content == {"google": {"x": 1}}


def test_an_answer_without_a_call_is_left_alone() -> None:
    """Also one that has a function call already: it comes from a server that knows them."""
    said = orjson.loads(ChatAnswer(IDENTITY, text=["Hi"]).encode())
    called = {"choices": [{"message": {"function_call": {}, "tool_calls": None}, "finish_reason": "function_call"}]}
    for answer in (said, called, {}, {"choices": None}, {"choices": [{"message": None}]}):
        assert with_function_calls(answer) is answer


def test_a_stream_holds_one_function_call() -> None:
    """Name first, arguments in pieces; the pieces of other calls are left out, all else keeps its bytes."""
    writer = ChunkWriter(IDENTITY)
    pieces = [writer.text("So: "), writer.tool_start("a", "weather"), writer.tool_arguments(0, '{"city":')]
    pieces += [writer.tool_start("b", "other"), writer.tool_arguments(1, "{}"), writer.tool_arguments(0, '"Rome"}')]
    pieces += [writer.finish("tool_calls"), writer.end(None)]
    turned = list(function_call_events(pieces))
    assert turned[0] == pieces[0]
    assert turned[-1] == DONE
    deltas = [choice["delta"] for choice in chunks(turned)]
    assert [delta.get("function_call") for delta in deltas] == [
        None,
        {"name": "weather", "arguments": ""},
        {"arguments": '{"city":'},
        {"arguments": '"Rome"}'},
        None,
    ]
    assert not any("tool_calls" in delta for delta in deltas)
    assert chunks(turned)[-1]["finish_reason"] == "function_call"


def test_events_may_come_several_in_a_piece() -> None:
    """The role, the call and the end in one."""
    writer = ChunkWriter(IDENTITY)
    together = b"".join([writer.tool_start("a", "f"), writer.finish("tool_calls"), writer.end(None)])
    [piece] = function_call_events([together])
    assert [choice["finish_reason"] for choice in chunks([piece])] == [None, "function_call"]
    assert chunks([piece])[0]["delta"]["role"] == "assistant"
    assert piece.endswith(DONE)


@pytest.mark.parametrize(
    ("request_document", "is_legacy"),
    [({"functions": [FUNCTION]}, True), ({"functions": [FUNCTION], "tools": [{}]}, False), ({"functions": []}, False)],
)
def test_who_uses_tools_is_no_such_client(request_document: dict[str, Any], *, is_legacy: bool) -> None:
    """Tools win where both are there."""
    assert uses_functions(request_document) == is_legacy


# Through a whole gateway, for every vendor whose format is translated


def typed(*documents: dict[str, Any]) -> bytes:
    """A stream whose events are named as their documents' `type`."""
    return b"".join(b"event: %b\n" % str(each["type"]).encode() + sse(each, done=False) for each in documents)


USAGE = {"input_tokens": 1, "output_tokens": 1}
TOOL_USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
GEMINI_PARTS = [{"functionCall": {"name": "weather", "args": {"city": "Rome"}}}]
GEMINI = {"candidates": [{"content": {"parts": GEMINI_PARTS}, "finishReason": "STOP"}]}
MISTRAL_CALL = {"id": "abcdefghi", "index": 0, "function": {"name": "weather", "arguments": ARGUMENTS}}
MISTRAL_CHOICE = {"index": 0, "finish_reason": "tool_calls"}
BEDROCK_CALL = {"toolUseId": "t1", "name": "weather"}
COHERE_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
VENDORS: dict[str, tuple[dict[str, Any], Reply, Reply]] = {
    "anthropic": (
        {},
        document(
            {
                "type": "message",
                "content": [{**TOOL_USE, "input": {"city": "Rome"}}],
                "stop_reason": "tool_use",
                "usage": USAGE,
            }
        ),
        events(
            typed(
                {"type": "message_start", "message": {"id": "m", "usage": USAGE}},
                {"type": "content_block_start", "index": 0, "content_block": TOOL_USE},
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "input_json_delta", "partial_json": ARGUMENTS},
                },
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": USAGE},
                {"type": "message_stop"},
            )
        ),
    ),
    "gemini": ({}, document(GEMINI), events(sse(GEMINI, done=False))),
    "mistral": (
        {},
        document({"choices": [{**MISTRAL_CHOICE, "message": {"tool_calls": [MISTRAL_CALL]}}]}),
        events(sse({"choices": [{**MISTRAL_CHOICE, "delta": {"tool_calls": [MISTRAL_CALL]}}]})),
    ),
    "cohere": (
        {},
        document({"message": {"tool_calls": [COHERE_CALL]}, "finish_reason": "TOOL_CALL"}),
        events(
            sse(
                {"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": COHERE_CALL}}},
                {"type": "tool-call-end", "index": 0},
                {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL"}},
                done=False,
            )
        ),
    ),
    "bedrock": (
        {"region": "us-east-1"},
        document(bedrock.says({"toolUse": BEDROCK_CALL | {"input": {"city": "Rome"}}}, stop_reason="tool_use")),
        events(
            bedrock.role(),
            bedrock.start(0, toolUse=BEDROCK_CALL),
            bedrock.delta(0, toolUse={"input": ARGUMENTS}),
            bedrock.stop(0),
            bedrock.ending("tool_use"),
            content_type="application/vnd.amazon.eventstream",
        ),
    ),
}


def sdk(client: ProxyClient) -> AsyncOpenAI:
    """OpenAI's own SDK, which tries nothing twice."""
    return AsyncOpenAI(api_key=client.key, base_url=client.base_url, max_retries=0)


@pytest.mark.parametrize("kind", VENDORS)
async def test_every_vendor_answers_with_a_function_call(proxy: StartProxy, kind: str) -> None:
    """The SDK's older types are filled, whole and streamed, and the audit says how it ended."""
    section, whole, streamed = VENDORS[kind]
    asked: Any = {"model": "test", "messages": [{"role": "user", "content": "Rome?"}], "functions": [FUNCTION]}
    config = {"providers": {"upstream": {"kind": kind, **section}}}
    async with proxy(upstream=[whole, streamed], config=config) as client, sdk(client) as openai:
        answer = await openai.chat.completions.create(**asked)
        assert answer.choices[0].finish_reason == "function_call"
        call = answer.choices[0].message.function_call
        assert (call.name, orjson.loads(call.arguments)) == ("weather", {"city": "Rome"})
        assert answer.choices[0].message.tool_calls is None
        deltas, finish_reasons = [], []
        async for chunk in await openai.chat.completions.create(**asked, stream=True):
            deltas += [choice.delta for choice in chunk.choices]
            finish_reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        calls = [delta.function_call for delta in deltas if delta.function_call]
        assert [call.name for call in calls if call.name] == ["weather"]
        assert orjson.loads("".join(call.arguments or "" for call in calls)) == {"city": "Rome"}
        assert not any(delta.tool_calls for delta in deltas)
        assert finish_reasons == ["function_call"]
        rows = (await client.rows()).requests
        assert [row["finish_reasons"] for row in rows] == [["function_call"]] * 2


async def test_openais_own_answer_keeps_its_bytes(proxy: StartProxy) -> None:
    """A server that knows functions has answered as it was asked."""
    body = b'{"choices": [{"index":0,"message":{"function_call":{"name":"f","arguments":"{}"}},"finish_reason":"x"}] }'
    async with proxy(upstream=[events(body, content_type="application/json")]) as client:
        response = await client.chat(functions=[FUNCTION])
        assert response.body == body
