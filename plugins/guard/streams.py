"""Streams, let out window by window: nothing of a window goes out before there is a verdict on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import orjson

from llmproxy.api import AnswerStream, Document, SSEDecoder, encode_event, event_data
from llmproxy_plugins.guard.texts import Path, rewritten, without_tokens

# Gets the texts of a window and what went out before each; gives what to put in their place, None for nothing.
Ask = Callable[[Sequence[str], Sequence[str]], Awaitable[Sequence[str] | None]]

# Of events that hold next to no text, so much is held back at most.
_MAX_HELD_BYTES: Final = 1_048_576
_MAX_EVENT_BYTES: Final = 16_777_216


class Window:
    """Events that are held back, and the texts in them, by where they stand in which choice."""

    def __init__(self) -> None:
        self.characters = 0
        self.size_bytes = 0
        self.texts: dict[Path, str] = {}
        self.is_last = False
        self._events: list[tuple[bytes, Document | None]] = []

    def add(self, raw: bytes) -> None:
        """Hold an event back."""
        data = event_data(raw)
        self.is_last = self.is_last or (data is not None and data.startswith(b"[DONE]"))
        document = _object(data)
        self._events.append((raw, document))
        self.size_bytes += len(raw)
        if document is not None:
            rewritten(without_tokens(document["choices"]), self._take)

    def _take(self, text: str, path: Path) -> str:
        self.texts[path] = self.texts.get(path, "") + text
        self.characters += len(text)
        return text

    def encoded(self, texts: Sequence[str] | None) -> bytes:
        """The events: as they came, or with other texts, each in the first event that had a part of it."""
        if texts is None:
            return b"".join(raw for raw, _ in self._events)
        left = dict(zip(self.texts, texts, strict=True))
        return b"".join(_encoded(raw, document, left) for raw, document in self._events)


class GuardedStream:
    """A provider's stream of which only what may go out goes out.

    Args:
        ask: Judges a window; what it raises ends the stream.
        window_characters: How much is judged at a time, at least.
        heard: What the client has of streams that this one goes on for, by place; what it reads of this one is added.
    """

    def __init__(
        self, stream: AnswerStream, ask: Ask, window_characters: int, heard: dict[Path, str] | None = None
    ) -> None:
        self._stream = stream
        self._ask = ask
        self._window_characters = window_characters
        self._decoder = SSEDecoder(_MAX_EVENT_BYTES)
        self._heard = {} if heard is None else heard
        self._before = dict(self._heard)
        self._ready = b""
        self._has_ended = False

    async def begin(self) -> None:
        """Have the first window judged, while an error can still be a status of its own."""
        self._ready = await self._next()

    async def read(self) -> bytes:
        """The next window; b"" at the end. Raises an UpstreamError when it was cut, or what `ask` raises."""
        ready, self._ready = self._ready or await self._next(), b""
        # Only now: of attempts that race, one is read.
        self._heard.update(self._before)
        return ready

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()

    async def _next(self) -> bytes:
        window = Window()
        while not self._has_ended and not self._is_full(window):
            piece = await self._stream.read()
            self._has_ended = not piece
            for raw in self._decoder.feed(piece) if piece else self._decoder.finish():
                window.add(raw)
        if not window.texts:
            return window.encoded(None)
        before = [self._before.get(path, "") for path in window.texts]
        texts = await self._ask(list(window.texts.values()), before)
        for path, text in zip(window.texts, texts or window.texts.values(), strict=True):
            self._before[path] = (self._before.get(path, "") + text)[-self._window_characters :]
        return window.encoded(texts)

    def _is_full(self, window: Window) -> bool:
        is_large = window.characters >= self._window_characters or window.size_bytes >= _MAX_HELD_BYTES
        return is_large or window.is_last


def _object(data: bytes | None) -> Document | None:
    """An event that has choices; None when it is any other."""
    try:
        document = orjson.loads(data) if data else None
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("choices"), list) else None


def _encoded(raw: bytes, document: Document | None, left: dict[Path, str]) -> bytes:
    if document is None:
        return raw
    choices = rewritten(without_tokens(document["choices"]), lambda _text, path: _taken(left, path))
    return encode_event(orjson.dumps({**document, "choices": choices}))


def _taken(left: dict[Path, str], path: Path) -> str:
    text, left[path] = left[path], ""
    return text
