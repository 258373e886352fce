"""What tests of the Responses bridge share: requests judged by the vendor's own types, answers made with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from hypothesis import settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from llmproxy.dialects.chat_collect import ChunkCollector
from llmproxy.providers.responses import ResponsesBridge
from llmproxy.providers.responses.request import ResponsesRequest
from tests.vendor_streams import cut, decoded

MODEL = "gpt-5.6-sol"
ISSUER = "openai"
CREATED = 1_790_000_000
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": SCHEMA}}
SQL = {
    "type": "custom",
    "custom": {
        "name": "sql",
        "description": "A query.",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: WORD"}},
    },
}
USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 150,
}
SETTINGS = settings(deadline=None, max_examples=60)
# Any value, small.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "role"]), inner),
    max_leaves=6,
)

_EVENTS: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
_FORBID = ConfigDict(extra="forbid")
_JUDGES = {
    False: create_model("_Whole", __config__=_FORBID, body=(ResponseCreateParamsNonStreaming, ...)),
    True: create_model("_Streamed", __config__=_FORBID, body=(ResponseCreateParamsStreaming, ...)),
}
# Of each kind of text: what its events are called, the members for its text and its place, and what else they have.
_DELTAS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "output_text": ("response.output_text", "text", "content_index", {"logprobs": []}),
    "refusal": ("response.refusal", "refusal", "content_index", {}),
    "summary_text": ("response.reasoning_summary_text", "text", "summary_index", {}),
    "reasoning_text": ("response.reasoning_text", "text", "content_index", {}),
}


# Requests


def translate(**members: Any) -> ResponsesRequest:
    """A chat completions request, translated; it asks "Hi" unless told otherwise."""
    document = {"model": MODEL, "messages": [USER], **members}
    # What a client sends has been text.
    return ResponsesBridge(ISSUER, "always").request(orjson.loads(orjson.dumps(document)), document["model"])


def native(**members: Any) -> dict[str, Any]:
    """The body for a chat completions request, once the vendor's SDK has found nothing wrong with it."""
    body: dict[str, Any] = orjson.loads(translate(**members).encode())
    judge(body)
    return body


def judge(body: dict[str, Any]) -> None:
    """Hold a request against the types of the vendor's SDK, which know every member."""
    _consume(_JUDGES[body["stream"]].model_validate({"body": body}).__dict__["body"])


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


# Answers


def message(*parts: dict[str, Any], **members: Any) -> dict[str, Any]:
    """A message in an answer."""
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": list(parts),
        **members,
    }


def text(said: str, **members: Any) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": [], **members}


def call(name: str, arguments: str = "{}", number: int = 1) -> dict[str, Any]:
    """A call of a function; its own id is not the one its result will name."""
    named = {"id": f"fc_{number}", "call_id": f"call_{number}", "name": name}
    return {"type": "function_call", **named, "arguments": arguments, "status": "completed"}


def custom_call(name: str, given: str, number: int = 1) -> dict[str, Any]:
    """A call of a custom tool."""
    return {
        "type": "custom_tool_call",
        "id": f"ctc_{number}",
        "call_id": f"call_{number}",
        "name": name,
        "input": given,
    }


def reasoning(*thoughts: str, encrypted: str | None = "gAAA=", number: int = 1, **members: Any) -> dict[str, Any]:
    """An item of reasoning with the summary that was asked for."""
    summary = [{"type": "summary_text", "text": thought} for thought in thoughts]
    return {"type": "reasoning", "id": f"rs_{number}", "summary": summary, "encrypted_content": encrypted, **members}


def response(*output: dict[str, Any], status: str = "completed", **members: Any) -> dict[str, Any]:
    """A whole answer, as the SDK's types have it."""
    made = {
        "id": "resp_1",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": MODEL,
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": USAGE,
        **members,
    }
    Response.model_validate(made)
    document: dict[str, Any] = orjson.loads(orjson.dumps(made))
    return document


def whole(answer: dict[str, Any]) -> ChatCompletion:
    """The chat completion that a whole answer becomes, as the openai SDK reads it."""
    return ChatCompletion.model_validate_json(whole_bytes(answer))


def whole_bytes(answer: dict[str, Any]) -> bytes:
    """The same as bytes."""
    return ResponsesBridge(ISSUER, "always").answer(answer, MODEL, 1)


# Streams


def events_of(answer: dict[str, Any], piece: int = 3, *, deltas: bool = True) -> list[dict[str, Any]]:
    """The events in which an answer is streamed, each as the SDK's types have it.

    Args:
        piece: How many characters a delta has.
        deltas: Whether there are any.
    """
    events = list(_numbered(_events(answer, piece, deltas=deltas)))
    for event in events:
        _EVENTS.validate_python(event)
    return events


def _numbered(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


def _events(answer: dict[str, Any], piece: int, *, deltas: bool) -> Iterator[dict[str, Any]]:
    begun = {**answer, "status": "in_progress", "output": [], "usage": None, "error": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(answer["output"]):
        empty: dict[str, Any] = {name: [] for name in ("content", "summary") if name in item}
        empty |= {name: "" for name in ("arguments", "input", "encrypted_content") if name in item}
        yield {"type": "response.output_item.added", "output_index": index, "item": {**item, **empty}}
        if deltas:
            yield from _pieces(item, index, piece)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{answer['status']}", "response": answer}


def _pieces(item: dict[str, Any], index: int, piece: int) -> Iterator[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": index}
    for member, kind, named in (
        ("arguments", "response.function_call_arguments", {"name": item.get("name")}),
        ("input", "response.custom_tool_call_input", {}),
    ):
        for part in _cut(item.get(member, ""), piece):
            yield {"type": f"{kind}.delta", **place, "delta": part}
        if member in item:
            yield {"type": f"{kind}.done", **place, member: item[member], **named}
    for member in ("summary", "content"):
        for number, part in enumerate(item.get(member, ())):
            yield from _part(part, {**place}, number, piece)


def _part(part: dict[str, Any], place: dict[str, Any], number: int, piece: int) -> Iterator[dict[str, Any]]:
    kind, member, index, extra = _DELTAS[part["type"]]
    place = {**place, index: number}
    for said in _cut(part[member], piece):
        yield {"type": f"{kind}.delta", **place, "delta": said, **extra}
    for annotation_index, annotation in enumerate(part.get("annotations", ())):
        noted = {"annotation": annotation, "annotation_index": annotation_index}
        yield {"type": "response.output_text.annotation.added", **place, **noted}
    yield {"type": f"{kind}.done", **place, member: part[member], **extra}


def _cut(said: str, piece: int) -> Iterator[str]:
    yield from (said[start : start + piece] for start in range(0, len(said), piece))


def sse(events: Iterable[dict[str, Any]]) -> bytes:
    """A stream on the wire: each event is named by its type, and no mark ends it."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)


def decode(data: bytes, places: Iterable[int] = ()) -> bytes:
    """The OpenAI events for a stream that is cut at some places."""
    decoder = ResponsesBridge(ISSUER, "always").stream_decoder(MODEL, 1)
    return decoded(decoder, cut(data, list(places)))


def collected(events: bytes) -> Any:
    """What a streamed answer amounts to."""
    collector = ChunkCollector()
    collector.feed(events)
    return orjson.loads(collector.finish())


# Mutations


def mutate(value: Any, place: int, new: Any) -> Any:
    """A document in which one value, counted through all of it, is another."""
    count = iter(range(1_000_000))

    def walk(node: Any) -> Any:
        if next(count) == place:
            return new
        if isinstance(node, dict):
            return {name: walk(inner) for name, inner in node.items()}
        return [walk(inner) for inner in node] if isinstance(node, list) else node

    return walk(value)
