"""The demo models' answers in the OpenAI format: whole documents and streams."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from llmproxy.errors import BadRequest
from llmproxy.providers.demo_models import Speech, input_tokens_of, tokens, whole_number
from llmproxy.request import Document
from llmproxy.sse import DONE, encode_event

_ARGUMENT_PIECE: Final = 12
_DEFAULT_DIMENSIONS: Final = 256
_MAX_DIMENSIONS: Final = 4096
_MAX_INPUTS: Final = 2048
_INTEGER_RANGE: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a chat or a text completion."""

    is_chat: bool
    id: str
    created: int
    model: str
    speeches: list[Speech]
    usage: Document

    def whole(self) -> bytes:
        """The answer as one body."""
        choice = _chat_choice if self.is_chat else _text_choice
        choices = [choice(index, speech) for index, speech in enumerate(self.speeches)]
        return orjson.dumps({**self._head(""), "choices": choices, "usage": self.usage})

    def events(self, *, include_usage: bool) -> Iterator[bytes]:
        """The answer as server-sent events, `[DONE]` included."""
        head = self._head(".chunk") if self.is_chat else self._head("")
        tail = {"usage": None} if include_usage else {}
        pieces = _chat_pieces if self.is_chat else _text_pieces
        for index, speech in enumerate(self.speeches):
            for piece in pieces(speech):
                choice = {"index": index, "logprobs": None, **piece}
                yield encode_event(orjson.dumps({**head, "choices": [choice], **tail}))
        if include_usage:
            yield encode_event(orjson.dumps({**head, "choices": [], "usage": self.usage}))
        yield DONE

    def _head(self, suffix: str) -> Document:
        kind = f"chat.completion{suffix}" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(document: Document, speeches: list[Speech], *, is_cached: bool) -> Document:
    """OpenAI usage; a cached prompt counts half of its tokens as read from a cache."""
    prompt, completion = input_tokens_of(document), sum(speech.output_tokens for speech in speeches)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": prompt // 2 if is_cached else 0},
        "completion_tokens_details": {"reasoning_tokens": sum(len(speech.reasoning) for speech in speeches)},
    }


def _chat_choice(index: int, speech: Speech) -> Document:
    message: Document = {"role": "assistant", "content": "".join(speech.text), "refusal": None}
    if speech.reasoning:
        message["reasoning_content"] = "".join(speech.reasoning)
    if speech.tool_call:
        message |= {"content": None, "tool_calls": [_call(*speech.tool_call)]}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": speech.finish_reason}


def _text_choice(index: int, speech: Speech) -> Document:
    return {"index": index, "text": "".join(speech.text), "logprobs": None, "finish_reason": speech.finish_reason}


def _call(name: str, arguments: str) -> Document:
    call_id = hashlib.blake2b(f"{name} {arguments}".encode(), digest_size=8).hexdigest()
    return {"id": f"call_{call_id}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _chat_pieces(speech: Speech) -> Iterator[Document]:
    for delta in _deltas(speech):
        yield {"delta": delta, "finish_reason": None}
    yield {"delta": {}, "finish_reason": speech.finish_reason}


def _deltas(speech: Speech) -> Iterator[Document]:
    yield {"role": "assistant", "content": None if speech.tool_call else ""}
    yield from ({"reasoning_content": token} for token in speech.reasoning)
    yield from ({"content": token} for token in speech.text)
    if speech.tool_call:
        name, arguments = speech.tool_call
        call = _call(name, arguments)
        yield {"tool_calls": [{"index": 0, **call, "function": {"name": name, "arguments": ""}}]}
        for start in range(0, len(arguments), _ARGUMENT_PIECE):
            piece = arguments[start : start + _ARGUMENT_PIECE]
            yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _text_pieces(speech: Speech) -> Iterator[Document]:
    yield from ({"text": token, "finish_reason": None} for token in speech.text)
    yield {"text": "", "finish_reason": speech.finish_reason}


def embeddings(model: str, document: Document) -> bytes:
    """Unit vectors that depend on the text alone. Raises BadRequest as a vendor would."""
    dimensions = whole_number(document, "dimensions", _DEFAULT_DIMENSIONS, at_most=_MAX_DIMENSIONS)
    inputs = _inputs(document.get("input"))
    is_base64 = document.get("encoding_format") == "base64"
    vectors = [_vector(text, dimensions) for text in inputs]
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if is_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    count = sum(len(tokens(text)) for text in inputs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})


# `input` is whatever the client sent.
def _inputs(given: Any) -> list[str]:
    if isinstance(given, list) and given and not isinstance(given[0], int):
        texts = [each if isinstance(each, str) else orjson.dumps(each).decode() for each in given]
    else:
        texts = [given if isinstance(given, str) else orjson.dumps(given).decode()]
    if given in (None, "", []) or len(texts) > _MAX_INPUTS:
        raise BadRequest(f"'input' must hold 1 to {_MAX_INPUTS} texts.", param="input", code="invalid_value")
    return texts


def _vector(text: str, dimensions: int) -> list[float]:
    digest = hashlib.shake_256(text.encode()).digest(4 * dimensions)
    numbers = [number / _INTEGER_RANGE for number in struct.unpack(f"<{dimensions}i", digest)]
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
