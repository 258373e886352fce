"""The way back of one exchange: placeholders become values again, and what the model makes up is dealt with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from llmproxy.api import Chunk, Document
from llmproxy_plugins.redaction.document import Inspection, Path
from llmproxy_plugins.redaction.lenses import AnswerLens
from llmproxy_plugins.redaction.rewriting import Window, rewrite
from llmproxy_plugins.redaction.vault import Form

_JSON_FORMATS: Final = ("json_object", "json_schema")
# Where a message's own text stands, of which the client may have asked that it be JSON.
_CONTENT: Final = ("content", "text")


def asks_for_json(request: Document) -> bool:
    """Whether the client wants an answer that is JSON."""
    wanted = request.get("response_format")
    return isinstance(wanted, dict) and wanted.get("type") in _JSON_FORMATS


class WholeAnswer:
    """Rewrites answers that are there as a whole."""

    def __init__(self, lens: AnswerLens, *, hides_tokens: bool) -> None:
        self._lens = lens
        self._hides_tokens = hides_tokens

    def body(self, body: bytes) -> bytes:
        """The answer's body; the same object when nothing changes."""
        document: Document = orjson.loads(body)
        new = Inspection(lambda text, form, _path: rewrite(self._lens, text, form)).value(document)
        if self._hides_tokens:
            new = without_tokens(new)
        return body if new is document else orjson.dumps(new)


class StreamedAnswer:
    """Rewrites a stream's events; for each text in each choice, what is unfinished waits for the next event."""

    def __init__(self, lens: AnswerLens, *, hides_tokens: bool, is_json: bool) -> None:
        self._lens = lens
        self._hides_tokens = hides_tokens
        self._is_json = is_json
        self._windows: dict[int, dict[Path, Window]] = {}
        self._latest: Document = {}

    def chunks(self, chunk: Chunk) -> Sequence[Chunk] | None:
        """What an event becomes; None when it stays as it is."""
        if chunk.last:
            return [*self._flushed(list(self._windows)), chunk]
        document = chunk.document
        choices = document.get("choices") if document is not None else None
        if document is None or not isinstance(choices, list) or not choices:
            return None
        self._latest = document
        new = [self._choice(choice) if isinstance(choice, dict) else choice for choice in choices]
        ended = [_index(choice) for choice in choices if isinstance(choice, dict) and choice.get("finish_reason")]
        before = self._flushed(ended)
        is_same = all(one is other for one, other in zip(choices, new, strict=True))
        if is_same and not before:
            return None
        return [*before, chunk if is_same else Chunk(document={**document, "choices": new})]

    def _choice(self, choice: Document) -> Document:
        windows = self._windows.setdefault(_index(choice), {})
        is_last = bool(choice.get("finish_reason"))

        def visit(text: str, form: Form, path: Path) -> str:
            if form is Form.NAME or _is_key(path):
                return rewrite(self._lens, text, form)
            window = windows.get(path)
            if window is None:
                window = windows[path] = Window(self._lens, self._form(text, path))
            return window.feed(text, is_last=is_last)

        new: Document = Inspection(visit).value(choice)
        return without_tokens(new) if self._hides_tokens else new

    def _form(self, text: str, path: Path) -> Form:
        is_json = path[-1] == "arguments" or (self._is_json and path[-1] in _CONTENT) or text.startswith("{")
        return Form.JSON if is_json else Form.TEXT

    def _flushed(self, indexes: Sequence[int]) -> list[Chunk]:
        """What was held back in these choices, in events like the latest one."""
        events = []
        for index in indexes:
            for path, window in self._windows.pop(index, {}).items():
                if window.is_holding and (text := window.feed("", is_last=True)):
                    events.append(Chunk(document=self._event(index, path, text)))
        return events

    def _event(self, index: int, path: Path, text: str) -> Document:
        shared = {name: value for name, value in self._latest.items() if name != "usage"}
        choice = {"index": index, "finish_reason": None, **_nested(path, text)}
        return {**shared, "choices": [choice]}


def without_tokens(value: Any) -> Any:  # any decoded JSON
    """A value without `logprobs`, whose tokens would spell out what is hidden in the text; the same if it had none."""
    if isinstance(value, list):
        new = [without_tokens(item) for item in value]
        return value if all(one is other for one, other in zip(value, new, strict=True)) else new
    if not isinstance(value, dict):
        return value
    cleaned = {
        name: None if name == "logprobs" else without_tokens(inner) if name == "choices" else inner
        for name, inner in value.items()
    }
    return value if all(cleaned[name] is value[name] for name in value) else cleaned


def _index(choice: Document) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _is_key(path: Path) -> bool:
    return path[-1] == -1


def _nested(path: Path, text: str) -> Any:  # the objects and lists that the path leads through
    """A text with what stands around it, as deltas have it."""
    if not path:
        return text
    step, inner = path[0], _nested(path[1:], text)
    if isinstance(step, str):
        return {step: inner}
    return [{"index": step, **inner} if isinstance(inner, dict) else inner]
