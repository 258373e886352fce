"""Chat completions answers, whole and streamed: what every translation from another vendor's format ends in.

Sources: the chat completion object and chunk object of the OpenAI API reference; `reasoning_content` and
`native_finish_reason` are the de-facto extensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import urandom
from typing import Final, Literal, NamedTuple

import orjson

from llmproxy.dialects.tool_calls import decode_arguments
from llmproxy.errors import Failure, UpstreamRefused
from llmproxy.request import Document
from llmproxy.sse import DONE, encode_event
from llmproxy.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class AnswerIdentity(NamedTuple):
    """What every chunk of an answer repeats. `created` is in Unix seconds."""

    id: str
    model: str
    created: int


@dataclass(slots=True)
class AnsweredCall:
    """A tool call in an answer; `arguments` is JSON text, never empty."""

    id: str
    name: str
    arguments: str = "{}"
    is_custom: bool = False
    extra_content: Document = field(default_factory=dict)


@dataclass(slots=True)
class ChatAnswer:
    """A whole answer, one choice, to be filled by a translation.

    `thinking_blocks` and `extra_content` are kept as the vendor gave them, signatures included, for the client to send
    back. `images` are `image_url` parts. `extra` are further members of the completion itself.
    """

    identity: AnswerIdentity
    finish_reason: FinishReason = "stop"
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    thinking_blocks: list[Document] = field(default_factory=list)
    tool_calls: list[AnsweredCall] = field(default_factory=list)
    annotations: list[Document] = field(default_factory=list)
    images: list[Document] = field(default_factory=list)
    extra_content: Document = field(default_factory=dict)
    refusal: str | None = None
    native_finish_reason: str | None = None
    usage: Usage | None = None
    logprobs: Document | None = None
    extra: Document = field(default_factory=dict)

    def encode(self) -> bytes:
        """The chat completion object."""
        return encode_choices([self])

    def choice(self, index: int) -> Document:
        """The answer as one of the choices of a completion."""
        choice: Document = {
            "index": index,
            "message": self._message(),
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        }
        if self.native_finish_reason is not None:
            choice["native_finish_reason"] = self.native_finish_reason
        return choice

    def _message(self) -> Document:
        text = "".join(self.text)
        message: Document = {"role": "assistant", "content": text or None, "refusal": self.refusal}
        if not text and not self.tool_calls and self.refusal is None:
            message["content"] = ""
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.thinking_blocks:
            message["thinking_blocks"] = self.thinking_blocks
        if self.extra_content:
            message["extra_content"] = self.extra_content
        if self.annotations:
            message["annotations"] = self.annotations
        if self.images:
            message["images"] = self.images
        if self.tool_calls:
            message["tool_calls"] = [_call(call) for call in self.tool_calls]
        return message


def encode_choices(answers: Sequence[ChatAnswer]) -> bytes:
    """The chat completion object of several answers to one request; all that is not a choice is the first one's."""
    first = answers[0]
    completion: Document = {
        "id": first.identity.id,
        "object": "chat.completion",
        "created": first.identity.created,
        "model": first.identity.model,
        "choices": [answer.choice(index) for index, answer in enumerate(answers)],
    }
    if first.usage is not None:
        completion |= _usage_members(first.usage)
    if first.extra:
        completion |= first.extra
    return orjson.dumps(completion)


class ChunkWriter:
    """Writes the chunks of one choice of a streamed answer, in the order the OpenAI stream grammar asks for."""

    __slots__ = ("_base", "_index", "_opened", "tool_count")

    def __init__(self, identity: AnswerIdentity, index: int = 0) -> None:
        self._index = index
        self._base: Final = {
            "id": identity.id,
            "object": "chat.completion.chunk",
            "created": identity.created,
            "model": identity.model,
        }
        self._opened = False
        # Tools are counted from 0 whatever else stands between them.
        self.tool_count = 0

    def delta(self, **members: object) -> bytes:
        """A chunk with these delta members; the first one of all also carries the role."""
        if not self._opened:
            self._opened = True
            members = {"role": "assistant", "content": None, **members}
        return self._chunk(members, None)

    def text(self, text: str) -> bytes:
        """A piece of content."""
        return self.delta(content=text)

    def reasoning(self, text: str) -> bytes:
        """A piece of reasoning."""
        return self.delta(reasoning_content=text)

    def tool_start(self, call_id: str, name: str, extra_content: Mapping[str, object] | None = None) -> bytes:
        """The start of the next tool call."""
        call: Document = {
            "index": self.tool_count,
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        if extra_content:
            call["extra_content"] = extra_content
        self.tool_count += 1
        return self.delta(tool_calls=[call])

    def custom_call(self, call_id: str, name: str, text: str) -> bytes:
        """The next tool call, whole, of a custom tool."""
        call = {"index": self.tool_count, "id": call_id, "type": "custom", "custom": {"name": name, "input": text}}
        self.tool_count += 1
        return self.delta(tool_calls=[call])

    def tool_arguments(self, index: int, fragment: str) -> bytes:
        """A piece of a tool call's arguments."""
        return self.delta(tool_calls=[{"index": index, "function": {"arguments": fragment}}])

    def finish(
        self, reason: FinishReason, native: str | None = None, extra: Mapping[str, object] | None = None
    ) -> bytes:
        """The one chunk with a finish reason; `extra` are members of the chunk itself, known only at the end."""
        opening = b"" if self._opened else self.delta()
        return opening + self._chunk({}, reason, native, extra=extra)

    def logprobs(self, logprobs: Document) -> bytes:
        """A chunk with the log probabilities of what was written before it."""
        return self._chunk({}, None, logprobs=logprobs)

    def end(self, usage: Usage | None) -> bytes:
        """The usage chunk, when usage is known, and the end mark."""
        if usage is None:
            return DONE
        return encode_event(orjson.dumps({**self._base, "choices": [], **_usage_members(usage)})) + DONE

    def _chunk(
        self,
        delta: Mapping[str, object],
        reason: FinishReason | None,
        native: str | None = None,
        logprobs: Document | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> bytes:
        choice: Document = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if native is not None:
            choice["native_finish_reason"] = native
        return encode_event(orjson.dumps({**self._base, "choices": [choice], **(extra or {})}))


def usage_document(usage: Usage) -> Document:
    """Usage as the OpenAI API reports it: totals, with the classes inside them as details."""
    # The OpenAI form knows one class of cache writes; those kept for an hour cost more.
    written_1h, cached_audio = usage.cache_write_1h_input_tokens, usage.cache_read_audio_input_tokens
    inside_prompt = {
        "cached_tokens": usage.cache_read_input_tokens + cached_audio,
        "cache_write_tokens": usage.cache_write_5m_input_tokens + written_1h,
        **({"cache_write_1h_tokens": written_1h} if written_1h else {}),
        "audio_tokens": usage.audio_input_tokens,
    }
    if cached_audio:
        inside_prompt["cached_audio_tokens"] = cached_audio
    if usage.image_input_tokens:
        inside_prompt["image_tokens"] = usage.image_input_tokens
    inside_completion = {"reasoning_tokens": usage.reasoning_output_tokens, "audio_tokens": usage.audio_output_tokens}
    if usage.image_output_tokens:
        inside_completion["image_tokens"] = usage.image_output_tokens
    prompt, completion = usage.input_tokens, usage.output_tokens
    document: Document = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": inside_prompt,
        "completion_tokens_details": inside_completion,
    }
    if usage.web_searches:
        document["server_tool_use"] = {"web_search_requests": usage.web_searches}
    if usage.region:
        document["inference_geo"] = usage.region
    return document


def _usage_members(usage: Usage) -> Document:
    """The members of an answer, or of the chunk that ends a stream, that tell usage and what decides its price."""
    document = usage_document(usage)
    return {"service_tier": usage.service_tier, "usage": document} if usage.service_tier else {"usage": document}


def settled_reason(reason: FinishReason, *, has_calls: bool) -> FinishReason:
    """A finish reason that agrees with the answer: it stopped for its calls if there are any, and for none if not."""
    if reason in ("stop", "tool_calls"):
        return "tool_calls" if has_calls else "stop"
    return reason


def model_failed(
    message: str = "The model failed while it answered; try again.", *, native_type: str | None = None
) -> UpstreamRefused:
    """The error for an answer with status 200 that says itself that it is none."""
    return UpstreamRefused(
        message, failure=Failure.BROKEN, upstream_status=200, status=502, native_type=native_type, code="server_error"
    )


def custom_input(arguments: str) -> str:
    """The text for a custom tool, out of the function's arguments it came in (see CUSTOM_TOOL_SCHEMA)."""
    text = decode_arguments(arguments).get("input")
    return text if isinstance(text, str) else arguments


def new_identity(model: str, created: int) -> AnswerIdentity:
    """The identity of an answer whose vendor gave it none; `created` is in Unix seconds."""
    return AnswerIdentity(new_answer_id(), model, created)


def new_answer_id() -> str:
    """An id for an answer whose vendor gave none."""
    return f"chatcmpl-{urandom(12).hex()}"


def new_call_id() -> str:
    """An id for a tool call whose vendor gave none."""
    return f"call_{urandom(12).hex()}"


def url_citation(start_index: int, end_index: int, title: str, url: str) -> Document:
    """A citation as an annotation; indices count characters of the joined text."""
    citation = {"start_index": start_index, "end_index": end_index, "title": title, "url": url}
    return {"type": "url_citation", "url_citation": citation}


def _call(call: AnsweredCall) -> Document:
    if call.is_custom:
        custom = {"name": call.name, "input": custom_input(call.arguments)}
        return {"id": call.id, "type": "custom", "custom": custom}
    document: Document = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    if call.extra_content:
        document["extra_content"] = call.extra_content
    return document
