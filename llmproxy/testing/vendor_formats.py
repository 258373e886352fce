"""Every vendor's own words for a plain text answer and for a failure, chosen by the path that a request came by.

One scripted upstream can so stand in for any vendor: what is asked for in a vendor's format is answered in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llmproxy.request import Document, Headers
from llmproxy.testing import aws_frames
from llmproxy.testing.chat import ChatAnswer, error, event, tokens
from llmproxy.testing.messages import Message, RecordedRequest, Reply
from llmproxy.testing.replies import event_message, json_message

INPUT_TOKENS: Final = 10

_OVERLOADED: Final = "The model is overloaded."


@dataclass(frozen=True, slots=True)
class VendorFormat:
    """How one API says things.

    Attributes:
        path: What its paths end with.
        is_stream: Whether a request asks for a stream.
        whole: A whole answer with a text.
        events: The same as a stream, with one event for each piece of the text.
        opening_count: How many events come before the first piece.
        refusal: The body of an error with a status.
        error_event: An error inside a stream.
    """

    path: re.Pattern[str]
    is_stream: Callable[[RecordedRequest], bool]
    whole: Callable[[RecordedRequest, Sequence[str]], Document]
    events: Callable[[RecordedRequest, Sequence[str]], Sequence[bytes]]
    opening_count: int
    refusal: Callable[[int], Document]
    error_event: bytes
    content_type: str = "text/event-stream"
    error_headers: Headers = ()


def say(*texts: str) -> Callable[[RecordedRequest], Reply]:
    """A script that says a text in the format it is asked in, as a stream in these pieces."""

    def script(request: RecordedRequest) -> Reply:
        spoken = format_of(request)
        return Reply(lambda _: _answer(request, spoken, texts)) if spoken else _unknown(request)

    return script


def refuse(status: int, *, headers: Headers = ()) -> Callable[[RecordedRequest], Reply]:
    """A script that refuses with an HTTP status, in the format it is asked in."""

    def script(request: RecordedRequest) -> Reply:
        spoken = format_of(request)
        if spoken is None:
            return _unknown(request)
        fields = (*spoken.error_headers, *headers)
        return Reply(lambda _: json_message(request, spoken.refusal(status), status=status, headers=fields))

    return script


def fail_inside() -> Callable[[RecordedRequest], Reply]:
    """A script that begins a good response, with status 200, and has an error in it."""

    def script(request: RecordedRequest) -> Reply:
        spoken = format_of(request)
        if spoken is None:
            return _unknown(request)
        if not spoken.is_stream(request):
            return Reply(lambda _: json_message(request, spoken.refusal(503)))
        return Reply(lambda _: event_message(request, [spoken.error_event], content_type=spoken.content_type))

    return script


def format_of(request: RecordedRequest) -> VendorFormat | None:
    """The format that a request is in; None when it is none of those known here."""
    return next((each for each in FORMATS if each.path.search(request.path)), None)


def _answer(request: RecordedRequest, spoken: VendorFormat, texts: Sequence[str]) -> Message:
    if spoken.is_stream(request):
        return event_message(request, spoken.events(request, texts), content_type=spoken.content_type)
    return json_message(request, spoken.whole(request, texts))


def _unknown(request: RecordedRequest) -> Reply:
    told = error(f"This upstream knows no such path: {request.path}", type_="invalid_request_error")
    return Reply(lambda _: json_message(request, told, status=501))


def _asked_in_body(request: RecordedRequest) -> bool:
    return request.is_stream


def _asked_by_path(request: RecordedRequest) -> bool:
    # `converse-stream`, `streamRawPredict`, `streamGenerateContent`.
    return "stream" in request.path


# OpenAI, and all who speak its format


def _openai(texts: Sequence[str]) -> ChatAnswer:
    return ChatAnswer(texts=texts, model=None, usage=tokens(INPUT_TOKENS, len(texts)), finish_reason="stop")


_OPENAI: Final = VendorFormat(
    path=re.compile(r"/chat/completions$"),
    is_stream=_asked_in_body,
    whole=lambda request, texts: _openai(texts).document(request),
    events=lambda request, texts: list(_openai(texts).events(request)),
    opening_count=1,
    refusal=lambda status: error(_OVERLOADED, type_="rate_limit_error" if status == 429 else "server_error"),
    error_event=event(error(_OVERLOADED, type_="server_error")),
)


# Anthropic, also on Vertex AI


def _claude_error(kind: str) -> Document:
    return {"type": "error", "error": {"type": kind, "message": _OVERLOADED}}


def _claude(texts: Sequence[str]) -> Document:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "".join(texts)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": len(texts)},
    }


def _claude_events(texts: Sequence[str]) -> list[bytes]:
    started = {**_claude([]), "content": [], "stop_reason": None}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts
    ]
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    documents: list[Document] = [
        {"type": "message_start", "message": started},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": {"output_tokens": len(texts)}},
        {"type": "message_stop"},
    ]
    return [_named_event(document) for document in documents]


def _named_event(document: Document) -> bytes:
    return f"event: {document['type']}\n".encode() + event(document)


def _claude_format(path: str, is_stream: Callable[[RecordedRequest], bool]) -> VendorFormat:
    return VendorFormat(
        path=re.compile(path),
        is_stream=is_stream,
        whole=lambda _request, texts: _claude(texts),
        events=lambda _request, texts: _claude_events(texts),
        opening_count=2,
        refusal=lambda status: _claude_error("rate_limit_error" if status == 429 else "overloaded_error"),
        error_event=_named_event(_claude_error("overloaded_error")),
    )


# Google


def _google_error(status: int) -> Document:
    name = "RESOURCE_EXHAUSTED" if status == 429 else "UNAVAILABLE"
    return {"error": {"code": status, "message": _OVERLOADED, "status": name}}


def _google(text: str, output_tokens: int, finish: str | None) -> Document:
    ending = {} if finish is None else {"finishReason": finish}
    usage = {
        "promptTokenCount": INPUT_TOKENS,
        "candidatesTokenCount": output_tokens,
        "totalTokenCount": INPUT_TOKENS + output_tokens,
    }
    candidate = {"index": 0, "content": {"role": "model", "parts": [{"text": text}]}, **ending}
    return {"candidates": [candidate], "usageMetadata": usage, "responseId": "r1"}


def _google_events(texts: Sequence[str]) -> list[bytes]:
    made = [_google(text, number, None) for number, text in enumerate(texts, start=1)]
    return [event(document) for document in (*made, _google("", len(texts), "STOP"))]


_GOOGLE: Final = VendorFormat(
    path=re.compile(r":(streamG|g)enerateContent$"),
    is_stream=_asked_by_path,
    whole=lambda _request, texts: _google("".join(texts), len(texts), "STOP"),
    events=lambda _request, texts: _google_events(texts),
    opening_count=0,
    refusal=_google_error,
    error_event=event(_google_error(503)),
)


# Bedrock


def _converse_usage(output_tokens: int) -> Document:
    used = {"inputTokens": INPUT_TOKENS, "outputTokens": output_tokens, "totalTokens": INPUT_TOKENS + output_tokens}
    return {"usage": used, "metrics": {"latencyMs": 1}}


def _converse(texts: Sequence[str]) -> Document:
    message = {"role": "assistant", "content": [{"text": "".join(texts)}]}
    return {"output": {"message": message}, "stopReason": "end_turn", **_converse_usage(len(texts))}


def _converse_events(texts: Sequence[str]) -> list[bytes]:
    deltas = [
        aws_frames.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}) for text in texts
    ]
    return [
        aws_frames.event("messageStart", {"role": "assistant"}),
        *deltas,
        aws_frames.event("contentBlockStop", {"contentBlockIndex": 0}),
        aws_frames.event("messageStop", {"stopReason": "end_turn"}),
        aws_frames.event("metadata", _converse_usage(len(texts))),
    ]


_BEDROCK: Final = VendorFormat(
    path=re.compile(r"/converse(-stream)?$"),
    is_stream=_asked_by_path,
    whole=lambda _request, texts: _converse(texts),
    events=lambda _request, texts: _converse_events(texts),
    opening_count=1,
    refusal=lambda _status: {"message": _OVERLOADED},
    error_event=aws_frames.exception("serviceUnavailableException", _OVERLOADED),
    content_type="application/vnd.amazon.eventstream",
    error_headers=(("x-amzn-ErrorType", "ServiceUnavailableException"),),
)


# Cohere


def _cohere_usage(output_tokens: int) -> Document:
    used = {"input_tokens": INPUT_TOKENS, "output_tokens": output_tokens}
    return {"usage": {"billed_units": used, "tokens": used}}


def _cohere(texts: Sequence[str]) -> Document:
    message = {"role": "assistant", "content": [{"type": "text", "text": "".join(texts)}]}
    return {"id": "c1", "finish_reason": "COMPLETE", "message": message, **_cohere_usage(len(texts))}


def _cohere_events(texts: Sequence[str]) -> list[bytes]:
    def piece(kind: str, content: Document) -> Document:
        return {"type": kind, "index": 0, "delta": {"message": {"content": content}}}

    documents: list[Document] = [
        {"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant", "content": []}}},
        piece("content-start", {"type": "text", "text": ""}),
        *(piece("content-delta", {"text": text}) for text in texts),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", **_cohere_usage(len(texts))}},
    ]
    return [_named_event(document) for document in documents]


_COHERE: Final = VendorFormat(
    path=re.compile(r"/v2/chat$"),
    is_stream=_asked_in_body,
    whole=lambda _request, texts: _cohere(texts),
    events=lambda _request, texts: _cohere_events(texts),
    opening_count=2,
    refusal=lambda _status: {"message": _OVERLOADED},
    error_event=_named_event({"type": "message-end", "delta": {"finish_reason": "ERROR", "error": _OVERLOADED}}),
)

FORMATS: Final = (
    _OPENAI,
    _claude_format(r"/v1/messages$", _asked_in_body),
    _claude_format(r":(streamR|r)awPredict$", _asked_by_path),
    _GOOGLE,
    _BEDROCK,
    _COHERE,
)
