"""One chat completion out of the chunks of a streamed one, for clients that asked for no stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from llmproxy.dialects.objects import objects_in
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.dialects.upstream_events import ObjectEvents, cut_short
from llmproxy.request import Document

# Members of a delta that are pieces of one text, and those that are items of one list.
_TEXTS: Final = ("content", "refusal", "reasoning_content")
_LISTS: Final = ("thinking_blocks", "annotations", "images")
_TYPES: Final = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(("tool_calls", *_LISTS), list),
    "role": str,
    "extra_content": dict,
}
_REPEATED: Final = ("id", "created", "model", "system_fingerprint", "service_tier")


@dataclass(slots=True)
class _Choice:
    """One choice, as far as it has come."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    lists: dict[str, list[Any]] = field(default_factory=dict)  # items are whatever the provider's were
    calls: dict[int, Document] = field(default_factory=dict)
    extra_content: Document = field(default_factory=dict)
    ending: Document = field(default_factory=dict)


class ChunkCollector:
    """Collects the chunks of one answer.

    `feed` takes server-sent events in pieces of any size; `finish` gives the completion.

    Attributes:
        lost: The members of messages that had something in them and that a completion made here has no place for.
    """

    def __init__(self) -> None:
        self._events = ObjectEvents()
        self._head: Document = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Document | None = None
        self.lost: set[str] = set()

    def feed(self, data: bytes) -> None:
        """Some more of the stream. Raises UpstreamRefused for an error in it, UpstreamBroken for garbage."""
        for event in self._events.feed(data):
            self._take(event.document)

    def finish(self) -> bytes:
        """The completion. Raises UpstreamCut when there is none, or one that is not whole."""
        for event in self._events.finish():
            self._take(event.document)
        if not self._choices or not all(choice.ending.get("finish_reason") for choice in self._choices.values()):
            raise cut_short()
        completion = {**self._head, "object": "chat.completion"}
        completion["choices"] = [_finished(index, choice) for index, choice in sorted(self._choices.items())]
        if self._usage is not None:
            completion["usage"] = self._usage
        return orjson.dumps(completion)

    def _take(self, chunk: Document | None) -> None:
        if chunk is None:
            return
        if error := stated_error(chunk):
            raise error
        self._head |= {name: chunk[name] for name in _REPEATED if chunk.get(name) is not None}
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        for choice in objects_in(chunk.get("choices")):
            index = choice.get("index")
            _add(self._choices.setdefault(index if isinstance(index, int) else 0, _Choice()), choice)
            self._note_lost(choice.get("delta"))

    # The value is whatever the provider sent.
    def _note_lost(self, delta: Any) -> None:
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if value and not isinstance(value, _TYPES.get(name, ())):
                self.lost.add(name)


def _add(choice: _Choice, chunk: Document) -> None:
    for name in ("finish_reason", "native_finish_reason"):
        if chunk.get(name) is not None:
            choice.ending[name] = chunk[name]
    _add_logprobs(choice, chunk.get("logprobs"))
    delta = chunk.get("delta")
    if not isinstance(delta, dict):
        return
    for name in _TEXTS:
        if isinstance(delta.get(name), str):
            choice.texts.setdefault(name, []).append(delta[name])
    for name in _LISTS:
        if isinstance(delta.get(name), list):
            choice.lists.setdefault(name, []).extend(delta[name])
    if isinstance(delta.get("extra_content"), dict):
        choice.extra_content |= delta["extra_content"]
    for call in objects_in(delta.get("tool_calls")):
        _add_call(choice, call)


# The value is whatever the provider sent.
def _add_logprobs(choice: _Choice, logprobs: Any) -> None:
    if isinstance(logprobs, dict):
        kept: Document = choice.ending.setdefault("logprobs", {})
        for name, value in logprobs.items():
            kept[name] = [*(kept.get(name) or ()), *value] if isinstance(value, list) else kept.get(name)


def _add_call(choice: _Choice, piece: Document) -> None:
    index = piece.get("index")
    call = choice.calls.setdefault(index if isinstance(index, int) else 0, {})
    for name, value in piece.items():
        if name in ("function", "custom") and isinstance(value, dict):
            _add_texts(call.setdefault(name, {}), value)
        elif name != "index" and value is not None:
            call[name] = value


def _add_texts(inner: Document, piece: Document) -> None:
    """A name comes once; arguments and input come in pieces."""
    for name, value in piece.items():
        if isinstance(value, str):
            inner[name] = inner.get(name, "") + value


def _finished(index: int, choice: _Choice) -> Document:
    texts = {name: "".join(pieces) for name, pieces in choice.texts.items()}
    calls = [call for _, call in sorted(choice.calls.items())]
    is_wordless = bool(calls) or "refusal" in texts
    message: Document = {
        "role": "assistant",
        "content": texts.pop("content", "") or (None if is_wordless else ""),
        "refusal": None,
        **texts,
        **choice.lists,
    }
    if choice.extra_content:
        message["extra_content"] = choice.extra_content
    if calls:
        message["tool_calls"] = calls
    return {"index": index, "message": message, "logprobs": None, **choice.ending}
