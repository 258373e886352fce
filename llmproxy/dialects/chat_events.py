"""A whole completion as the events of a streamed one, for clients that asked for a stream where there was none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from llmproxy.request import Document
from llmproxy.sse import DONE, encode_event


class WholeEvents:
    """A stream that is already there, such as a cache's: an AnswerStream over finished events."""

    def __init__(self, events: Iterable[bytes]) -> None:
        self._events = iter(events)

    async def read(self) -> bytes:
        """The next event, b"" at the end."""
        return next(self._events, b"")

    def close(self) -> None:
        """Nothing is held open."""


def completion_events(completion: Document, *, show_usage: bool) -> Iterator[bytes]:
    """Every choice whole, then its end, then usage if it is to be shown, and the end mark."""
    shared = {name: value for name, value in completion.items() if name not in ("choices", "usage")}
    if shared.get("object") == "chat.completion":
        shared["object"] = "chat.completion.chunk"
    for choice in completion.get("choices") or ():
        for part in _parts(choice):
            yield encode_event(orjson.dumps({**shared, "choices": [part]}))
    if show_usage and completion.get("usage"):
        yield encode_event(orjson.dumps({**shared, "choices": [], "usage": completion["usage"]}))
    yield DONE


def _parts(choice: Document) -> Iterator[Document]:
    message = choice.get("message")
    if not isinstance(message, dict):
        # A text completion's choice is the same in a stream.
        yield choice
        return
    kept = {name: value for name, value in choice.items() if name not in ("message", "finish_reason")}
    yield {**kept, "delta": _delta(message), "finish_reason": None}
    yield {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason")}


def _delta(message: Document) -> Document:
    calls: Any = message.get("tool_calls")  # whatever the provider sent
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [{"index": number, **call} for number, call in enumerate(calls)]}
