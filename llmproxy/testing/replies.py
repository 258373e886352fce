"""The replies of an upstream that behaves: answers, streams, embeddings, errors."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from llmproxy.request import Document, Headers
from llmproxy.testing.chat import CREATED, DONE, ChatAnswer, ToolCall, error, event, model_of, tokens
from llmproxy.testing.messages import Framing, Message, RecordedRequest, Reply

DEFAULT_USAGE: Final = tokens()


def reply(
    text: str = "",
    *,
    model: str | None = None,
    usage: Document | None = DEFAULT_USAGE,
    tool_calls: Sequence[ToolCall] = (),
    finish_reason: str | None = None,
    delay_seconds: float = 0,
) -> Reply:
    """A complete chat answer after `delay_seconds`; as a stream to a request that asks for one."""
    texts = (text,) if text else ()
    answer = ChatAnswer(texts=texts, tool_calls=tool_calls, model=model, usage=usage, finish_reason=finish_reason)
    return _chat(answer, head_delay_seconds=delay_seconds)


def stream(
    *texts: str,
    model: str | None = None,
    usage: Document | None = DEFAULT_USAGE,
    finish_reason: str | None = None,
    delay_seconds: float = 0,
    include_role: bool = True,
) -> Reply:
    """A chat answer of one event per text, `delay_seconds` before each event; whole if no stream is asked for."""
    answer = ChatAnswer(texts=texts, model=model, usage=usage, finish_reason=finish_reason, include_role=include_role)
    return _chat(answer, piece_delay_seconds=delay_seconds)


def tools(*calls: ToolCall, usage: Document | None = DEFAULT_USAGE) -> Reply:
    """A chat answer that calls functions."""
    return reply(tool_calls=calls, usage=usage)


def reasoning(thought: str, text: str, *, usage: Document | None = None) -> Reply:
    """A chat answer with its thoughts in `reasoning_content`; three of its five output tokens are thoughts."""
    counted = tokens(reasoning_tokens=3) if usage is None else usage
    return _chat(ChatAnswer(texts=(text,), thoughts=(thought,), model=None, usage=counted, finish_reason=None))


def completion(
    *texts: str, usage: Document | None = DEFAULT_USAGE, finish_reason: str = "stop", model: str | None = None
) -> Reply:
    """An answer of the older completions endpoint, whole or as a stream of one event per text."""

    def document(request: RecordedRequest, text: str, reason: str | None) -> Document:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        kind = {"id": f"cmpl-{request.number}", "object": "text_completion", "created": CREATED}
        return {**kind, "model": model or model_of(request), "choices": [choice]}

    def events(request: RecordedRequest) -> Iterator[bytes]:
        includes_usage = request.includes_usage and usage is not None
        extra = {"usage": None} if includes_usage else {}
        for text in texts:
            yield event({**document(request, text, None), **extra})
        yield event({**document(request, "", finish_reason), **extra})
        if includes_usage:
            yield event({**document(request, "", None), "choices": [], "usage": usage})
        yield DONE

    def message(request: RecordedRequest) -> Message:
        if request.is_stream:
            return event_message(request, events(request))
        counted = {} if usage is None else {"usage": usage}
        return json_message(request, {**document(request, "".join(texts), finish_reason), **counted})

    return Reply(message)


def embeddings(*vectors: Sequence[float], input_tokens: int = 8, model: str | None = None) -> Reply:
    """One vector for each input, those given in turn; as base64 to a request that asks for it."""
    given = vectors or ((0.5, -0.25, 0.125),)

    def message(request: RecordedRequest) -> Message:
        encode = _base64 if request.document.get("encoding_format") == "base64" else list
        count = _input_count(request.document["input"])
        data = [
            {"object": "embedding", "index": index, "embedding": encode(given[index % len(given)])}
            for index in range(count)
        ]
        usage = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
        return json_message(
            request, {"object": "list", "data": data, "model": model or model_of(request), "usage": usage}
        )

    return Reply(message)


def fail(
    status: int,
    *,
    code: str | None = None,
    message: str = "The upstream cannot serve this.",
    type_: str | None = None,
    param: str | None = None,
    retry_after: float | None = None,
    headers: Headers = (),
) -> Reply:
    """An error as OpenAI words it, with `retry-after` in seconds if one is given."""
    kind = type_ or _error_type(status)
    waiting = () if retry_after is None else (("Retry-After", f"{retry_after:g}"),)
    return document(error(message, type_=kind, code=code, param=param), status=status, headers=(*waiting, *headers))


def document(content: object, *, status: int = 200, headers: Headers = ()) -> Reply:
    """Any JSON at all: another vendor's answer or error."""
    return Reply(lambda request: json_message(request, content, status=status, headers=headers))


def events(*pieces: bytes, content_type: str = "text/event-stream", headers: Headers = ()) -> Reply:
    """Any stream at all, one piece at a time: another vendor's events."""
    return Reply(lambda request: event_message(request, pieces, content_type=content_type, headers=headers))


def json_message(request: RecordedRequest, content: object, *, status: int = 200, headers: Headers = ()) -> Message:
    """A whole JSON body."""
    own = (("Content-Type", "application/json"), ("X-Request-Id", f"req-{request.number}"))
    return Message(pieces=(json.dumps(content).encode(),), status=status, headers=(*own, *headers))


def event_message(
    request: RecordedRequest,
    pieces: Iterable[bytes],
    *,
    content_type: str = "text/event-stream",
    headers: Headers = (),
) -> Message:
    """A chunked stream of events."""
    own = (("Content-Type", content_type), ("X-Request-Id", f"req-{request.number}"))
    return Message(pieces=pieces, headers=(*own, *headers), framing=Framing.CHUNKED)


def _chat(answer: ChatAnswer, *, head_delay_seconds: float = 0, piece_delay_seconds: float = 0) -> Reply:
    def message(request: RecordedRequest) -> Message:
        made = (
            event_message(request, answer.events(request))
            if request.is_stream
            else json_message(request, answer.document(request))
        )
        return replace(made, head_delay_seconds=head_delay_seconds, piece_delay_seconds=piece_delay_seconds)

    return Reply(message)


def _error_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _input_count(given: object) -> int:
    """How many inputs there are: a list of numbers is one input, already cut into tokens."""
    if isinstance(given, list) and not all(isinstance(item, int) for item in given):
        return len(given)
    return 1


def _base64(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
