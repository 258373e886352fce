"""What tests of the Messages format share: requests judged by the vendor's own types, answers made with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest
from anthropic.types import Message, MessageCreateParams, RawMessageStreamEvent
from hypothesis import settings
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from llmproxy.dialects.chat_collect import ChunkCollector
from llmproxy.errors import BadRequest
from llmproxy.providers.anthropic.messages_format import MessagesFormat
from llmproxy.providers.anthropic.request import NativeRequest
from llmproxy.providers.anthropic.rules import load_models
from llmproxy.providers.anthropic.thinking import Limits

NEW = "claude-opus-4-8"
OLD = "claude-3-7-sonnet-20250219"
BUDGET = "claude-sonnet-4-5-20250929"
NEWEST = "claude-fable-5-2"
CREATED = 1_790_000_000
USER = {"role": "user", "content": "Hi"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
SIGNED = {"type": "thinking", "thinking": "Let me\n  see…", "signature": "EqQBCkYIAxgCKkDx=="}
REDACTED = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/"}
SETTINGS = settings(deadline=None, max_examples=60)

_Judge = create_model("_Judge", __config__=ConfigDict(extra="forbid"), body=(MessageCreateParams, ...))
_EVENTS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def messages_format(*, drop_params: bool = False, **limits: Any) -> MessagesFormat:
    """The format with the table that comes with the gateway."""
    return MessagesFormat(load_models(), Limits(**limits), drop_params=drop_params)


def translate(model: str = NEW, *, drop_params: bool = False, **members: Any) -> NativeRequest:
    """A chat completions request, translated; it asks "Hi" unless told otherwise."""
    document = {"model": model, "messages": [USER], **members}
    # What a client sends has been text.
    return messages_format(drop_params=drop_params).request(orjson.loads(orjson.dumps(document)), model)


def native(model: str = NEW, *, drop_params: bool = False, **members: Any) -> dict[str, Any]:
    """The body for a chat completions request, once the vendor's SDK has found nothing wrong with it."""
    encoded = translate(model, drop_params=drop_params, **members).encode(model=model, stream=False)
    body: dict[str, Any] = orjson.loads(encoded)
    judge(body)
    return body


def judge(body: dict[str, Any]) -> None:
    """Hold a request against the types of the vendor's SDK, which know every member."""
    _consume(_Judge.model_validate({"body": body}).__dict__["body"])


# Whatever the SDK's types are made of.
def _consume(value: Any) -> None:
    """Make the SDK's lazy validators run. What only fits an answer's model has members that no request has."""
    assert not isinstance(value, BaseModel), value
    if isinstance(value, dict):
        for inner in value.values():
            _consume(inner)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for inner in value:
            _consume(inner)


def message(*content: dict[str, Any], stop_reason: str = "end_turn", **members: Any) -> dict[str, Any]:
    """A whole answer, as the SDK's types have it."""
    made = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": NEW,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
        **members,
    }
    document: dict[str, Any] = orjson.loads(Message.model_validate(made).to_json())
    return document


def whole(answer: dict[str, Any], model: str = NEW, **members: Any) -> ChatCompletion:
    """The chat completion that a whole answer becomes, as the openai SDK reads it."""
    return ChatCompletion.model_validate_json(whole_bytes(answer, model, **members))


def whole_bytes(answer: dict[str, Any], model: str = NEW, **members: Any) -> bytes:
    """The same as bytes."""
    return messages_format().answer({"messages": [USER], **members}, model, answer, CREATED)


def events_of(answer: dict[str, Any], piece: int = 3) -> list[dict[str, Any]]:
    """A whole answer as the events of a stream, in pieces of some characters."""
    start = {**answer, "content": [], "stop_reason": None, "stop_details": None}
    start["usage"] = {**answer["usage"], "output_tokens": 1}
    made: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(answer["content"]):
        begun, deltas = _pieces(block, piece)
        made.append({"type": "content_block_start", "index": index, "content_block": begun})
        made += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        made.append({"type": "content_block_stop", "index": index})
    ending = {name: answer.get(name) for name in ("stop_reason", "stop_sequence", "stop_details")}
    usage = {"output_tokens": answer["usage"]["output_tokens"]}
    if details := answer["usage"].get("output_tokens_details"):
        usage["output_tokens_details"] = details
    made += [{"type": "message_delta", "delta": ending, "usage": usage}, {"type": "message_stop"}]
    for event in made:
        if event["type"] != "ping":
            _EVENTS.validate_python(event)
    return made


def _pieces(block: dict[str, Any], size: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block["type"]:
        case "text":
            cited = [{"type": "citations_delta", "citation": each} for each in block.get("citations") or ()]
            texts = [{"type": "text_delta", "text": text} for text in _cut(block["text"], size)]
            return {**block, "text": "", "citations": None}, [*texts, *cited]
        case "thinking":
            texts = [{"type": "thinking_delta", "thinking": text} for text in _cut(block["thinking"], size)]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {"type": "thinking", "thinking": "", "signature": ""}, [*texts, signed]
        case "tool_use":
            text = orjson.dumps(block["input"]).decode() if block["input"] else ""
            pieces = [{"type": "input_json_delta", "partial_json": each} for each in ["", *_cut(text, size)]]
            return {**block, "input": {}}, pieces
        case _:
            return block, []


def _cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def sse(events: Sequence[dict[str, Any]]) -> bytes:
    """Events as the vendor sends them."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (each["type"].encode(), orjson.dumps(each)) for each in events)


def decode(data: bytes, size: int | None = None, model: str = NEW, **members: Any) -> bytes:
    """What a stream becomes when it arrives in pieces of some bytes. Raises what the decoder raises."""
    decoder = messages_format().stream_decoder({"messages": [USER], **members}, model, CREATED)
    step = size or max(len(data), 1)
    out = [b"".join(decoder.feed(data[start : start + step])) for start in range(0, len(data), step)]
    return b"".join([*out, *decoder.finish()])


def chunks(out: bytes) -> list[ChatCompletionChunk]:
    """The chunks of a stream, as the openai SDK reads them; it has to end in [DONE]."""
    *events, done, rest = out.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [ChatCompletionChunk.model_validate_json(event.removeprefix(b"data: ")) for event in events]


def collected(out: bytes) -> dict[str, Any]:
    """A stream as the one completion it amounts to."""
    collector = ChunkCollector()
    collector.feed(out)
    completion: dict[str, Any] = orjson.loads(collector.finish())
    return completion


def text(words: str, **members: Any) -> dict[str, Any]:
    """A text block, or a text part: they are the same."""
    return {"type": "text", "text": words, **members}


def call(call_id: str, arguments: str = '{"city":"Bonn"}', name: str = "weather") -> dict[str, Any]:
    """A tool call."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: object = "sunny") -> dict[str, Any]:
    """A tool's result."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def refused(model: str = NEW, **members: Any) -> BadRequest:
    """The error for a request that the model cannot take."""
    with pytest.raises(BadRequest) as caught:
        translate(model, **members)
    return caught.value
