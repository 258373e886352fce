"""Answers as they are kept, and as they are given again."""

from __future__ import annotations

from typing import Any

import orjson

from llmproxy.api import (
    Answer,
    AnswerStream,
    Attempt,
    ChunkCollector,
    Document,
    Exchange,
    LLMProxyError,
    WholeEvents,
    completion_events,
)
from llmproxy_plugins.semantic_cache.store import Entry


class RecordedStream:
    """A provider's stream on its way to the client, recorded as it is read; nothing in it is decoded.

    Args:
        max_bytes: What is kept of it; a longer one is not kept at all.
    """

    def __init__(self, stream: AnswerStream, max_bytes: int) -> None:
        self._stream = stream
        self._room = max_bytes
        self._pieces: list[bytes] = []
        self._has_ended = False

    @property
    def recorded(self) -> bytes | None:
        """All of it; None when it has not ended, or was too long."""
        return b"".join(self._pieces) if self._has_ended and self._room >= 0 else None

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises an UpstreamError when it was cut."""
        piece = await self._stream.read()
        self._has_ended = not piece
        self._room -= len(piece)
        if self._room >= 0:
            self._pieces.append(piece)
        else:
            self._pieces.clear()
        return piece

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()


def collected(events: bytes, attempt: Attempt) -> bytes | None:
    """The whole answer that a stream was; None when it cannot be told without losing some of it."""
    collector = ChunkCollector()
    try:
        collector.feed(events)
        body = collector.finish()
    except LLMProxyError:
        return None
    if collector.lost:
        return None
    usage = attempt.progress.usage if attempt.progress is not None else None
    # Hidden from clients that did not ask for it, and others may.
    return orjson.dumps({**orjson.loads(body), "usage": usage["usage"]}) if usage else body


def text_of(body: bytes) -> str | None:
    """The text of a whole answer that is one text and nothing else; None when it is anything else."""
    try:
        (choice,) = orjson.loads(body)["choices"]
        message: Document = choice["message"]
        is_whole = choice["finish_reason"] == "stop"
        others: list[Any] = [message.get(name) for name in ("refusal", "tool_calls", "function_call", "audio")]
        text = message["content"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return text if is_whole and not any(others) and isinstance(text, str) and text.strip() else None


def replayed(entry: Entry, exchange: Exchange, age_seconds: float) -> Answer:
    """A kept answer as the answer to a request, whole or as a stream, whichever it asks for."""
    headers = [
        ("x-llmproxy-provider", entry.provider),
        ("x-llmproxy-model", entry.target),
        ("age", str(int(max(age_seconds, 0)))),
    ]
    if not exchange.request.is_stream:
        return Answer(200, [("content-type", "application/json"), *headers], entry.body, cache="semantic")
    options = exchange.request.document.get("stream_options")
    show_usage = isinstance(options, dict) and options.get("include_usage") is True
    events = list(completion_events(orjson.loads(entry.body), show_usage=show_usage))
    return Answer(200, headers, stream=WholeEvents(events), cache="semantic")
