"""OpenAI documents for tests: chat answers whole and as events, token counts, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmproxy.request import Document
from llmproxy.testing.messages import RecordedRequest

CREATED: Final = 1_767_268_800
DONE: Final = b"data: [DONE]\n\n"


def tokens(
    input_tokens: int = 10, output_tokens: int = 5, *, cached_tokens: int = 0, reasoning_tokens: int = 0
) -> Document:
    """Usage as OpenAI reports it; cached and reasoning tokens are part of the input and output given."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens, "audio_tokens": 0},
    }


def event(document: Document) -> bytes:
    """A document as one server-sent event."""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def error(message: str, *, type_: str, code: str | None = None, param: str | None = None) -> Document:
    """An error as OpenAI words it."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def model_of(request: RecordedRequest) -> str:
    """The model the request names."""
    return str(request.document.get("model", "unnamed"))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function call by the model. An `id` left empty is made from its place."""

    name: str
    # A tool's arguments are whatever JSON its schema allows; a string is sent as it is, even if it is no JSON.
    arguments: Mapping[str, Any] | str
    id: str = ""

    def document(self, index: int) -> Document:
        """The call as it stands in a whole answer."""
        return {
            "id": self.id or f"call_{index + 1}",
            "type": "function",
            "function": {"name": self.name, "arguments": self.encoded_arguments},
        }

    def deltas(self, index: int) -> Iterator[Document]:
        """The call as a stream sends it: its name first, then its arguments in two halves."""
        whole = self.document(index)
        yield {"index": index, **whole, "function": {"name": self.name, "arguments": ""}}
        half = len(self.encoded_arguments) // 2
        for part in (self.encoded_arguments[:half], self.encoded_arguments[half:]):
            yield {"index": index, "function": {"arguments": part}}

    @property
    def encoded_arguments(self) -> str:
        """The arguments as the string OpenAI sends."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """A chat answer that can be sent whole or as a stream.

    Attributes:
        model: None to answer with the model asked for.
        usage: None for an upstream that never reports any.
        include_role: Whether a stream begins with an event that holds only the role.
    """

    texts: Sequence[str] = ()
    thoughts: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    model: str | None
    usage: Document | None
    finish_reason: str | None
    include_role: bool = True

    def document(self, request: RecordedRequest) -> Document:
        """The whole answer."""
        choice = {
            "index": 0,
            "message": self._message(),
            "logprobs": None,
            "finish_reason": self._finish_reason,
        }
        usage = {} if self.usage is None else {"usage": self.usage}
        return {**self._envelope(request, "chat.completion"), "choices": [choice], **usage}

    def events(self, request: RecordedRequest) -> Iterator[bytes]:
        """The answer as events; with usage as OpenAI sends it, if the request asks for it."""
        envelope = self._envelope(request, "chat.completion.chunk")
        includes_usage = request.includes_usage and self.usage is not None
        usage = {"usage": None} if includes_usage else {}
        for delta in self._deltas():
            yield event({**envelope, "choices": [_choice(delta)], **usage})
        yield event({**envelope, "choices": [_choice({}, self._finish_reason)], **usage})
        if includes_usage:
            yield event({**envelope, "choices": [], "usage": self.usage})
        yield DONE

    @property
    def _finish_reason(self) -> str:
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    def _envelope(self, request: RecordedRequest, kind: str) -> Document:
        model = self.model or model_of(request)
        return {"id": f"chatcmpl-{request.number}", "object": kind, "created": CREATED, "model": model}

    def _message(self) -> Document:
        text = "".join(self.texts)
        message: Document = {"role": "assistant", "content": None if self.tool_calls and not text else text}
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
        if self.tool_calls:
            message["tool_calls"] = [call.document(index) for index, call in enumerate(self.tool_calls)]
        return {**message, "refusal": None}

    def _deltas(self) -> Iterator[Document]:
        if self.include_role:
            yield {"role": "assistant", "content": ""}
        for thought in self.thoughts:
            yield {"reasoning_content": thought}
        for text in self.texts:
            yield {"content": text}
        for index, call in enumerate(self.tool_calls):
            for delta in call.deltas(index):
                yield {"tool_calls": [delta]}


def _choice(delta: Document, finish_reason: str | None = None) -> Document:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
