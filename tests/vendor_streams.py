"""What tests of translated streams share: decoding them in pieces, and reading the outcome as a client's SDK does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import UpstreamError
from llmproxy.providers import StreamDecoder
from llmproxy.sse import SSEDecoder, event_data

_CREATED = re.compile(rb'"(created":\d+|id":"chatcmpl-[^"]*)')


@dataclass
class Heard:
    """A streamed answer put together again, as a client would."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: list[Any] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    usage: Any = None
    is_done: bool = False


def sse(*documents: object, done: bool = True) -> bytes:
    """A vendor's stream."""
    events = b"".join(b"data: " + orjson.dumps(document) + b"\n\n" for document in documents)
    return events + b"data: [DONE]\n\n" if done else events


def decoded(decoder: StreamDecoder, pieces: Sequence[bytes]) -> bytes:
    """All events that come out for some pieces and their end. Raises an UpstreamError."""
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return b"".join([*events, *decoder.finish()])


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    """A stream in pieces, cut at some places."""
    bounds = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def heard(events: bytes, index: int = 0) -> Heard:
    """One choice of an answer, every chunk of it judged by the SDK's types."""
    answer = Heard()
    for raw in SSEDecoder(1 << 24).feed(events):
        data = event_data(raw) or b""
        if data.startswith(b"[DONE]"):
            answer.is_done = True
            continue
        assert not answer.is_done
        chunk = _chunk(data)
        answer.usage = chunk.usage or answer.usage
        assert not (chunk.usage and chunk.choices)
        for choice in chunk.choices:
            if choice.index == index:
                _hear(answer, choice)
    return answer


def _chunk(data: bytes) -> ChatCompletionChunk:
    # The SDK's type of a streamed call has no custom tools yet; like all else it does not know, it lets them pass.
    if b'"type":"custom"' in data:
        return ChatCompletionChunk.construct(**orjson.loads(data))
    return ChatCompletionChunk.model_validate_json(data, strict=True)


def _hear(answer: Heard, choice: Any) -> None:
    delta = choice.delta.model_dump(exclude_none=True)
    answer.text += delta.get("content", "")
    answer.reasoning += delta.get("reasoning_content", "")
    answer.roles += [delta["role"]] if "role" in delta else []
    answer.annotations += delta.get("annotations", [])
    answer.finish_reasons += [choice.finish_reason] if choice.finish_reason else []
    for piece in delta.get("tool_calls", []):
        call = answer.calls.setdefault(piece["index"], {"arguments": ""})
        function = piece.get("function", {})
        call["arguments"] += function.get("arguments", "")
        call.update({name: piece[name] for name in ("id", "type", "custom") if name in piece})
        call.update({"name": function["name"]} if "name" in function else {})


def without_chance(events: bytes) -> bytes:
    """The events without what differs from one decoding to the next."""
    return _CREATED.sub(b"", events)


def outcome(make: Callable[[], StreamDecoder], pieces: Sequence[bytes]) -> str:
    """How a stream ends for the client: `complete`, or the error's class. Never anything else."""
    facts = StreamFacts(hide_usage=False)
    try:
        facts.feed(decoded(make(), pieces))
    except UpstreamError as error:
        return type(error).__name__
    if facts.error is not None:
        return type(facts.error).__name__
    return "complete" if facts.is_complete else "cut"


def mutated(stream: bytes) -> st.SearchStrategy[bytes]:
    """A stream with some bytes overwritten, taken out or put in."""
    edit = st.tuples(st.integers(0, len(stream)), st.integers(0, 4), st.binary(max_size=4))
    return st.lists(edit, min_size=1, max_size=4).map(lambda edits: _edited(stream, edits))


def _edited(stream: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    for place, length, new in edits:
        stream = stream[:place] + new + stream[place + length :]
    return stream
