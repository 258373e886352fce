"""Where texts stand in requests and answers: every string, but for those that say what is what."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from llmproxy.api import BadRequest

# Keys, and places in lists.
Path = tuple[str | int, ...]
Visit = Callable[[str, Path], str]
# A decoded JSON value.
Value = Any

_MAX_DEPTH: Final = 200
# Names and marks of the protocol; with others than those it knows, a vendor refuses the request.
_NOT_TEXTS: Final = frozenset(
    {
        *("model", "models", "fallbacks", "role", "type", "object", "id", "tool_call_id", "call_id", "file_id"),
        *("service_tier", "reasoning_effort", "verbosity", "encoding_format", "finish_reason", "system_fingerprint"),
    }
)
_OPAQUE: Final = frozenset({"signature", "thought_signature", "encrypted_content"})
_PAYLOADS: Final = frozenset({"url", "data", "file_data", "image_url", "video_url", "file_url", "b64_json"})
_MAX_NAME_CHARACTERS: Final = 128


def rewritten(value: Value, visit: Visit, path: Path = ()) -> Value:
    """A value with each text in it replaced by what `visit` gives for it; the same object when none is.

    Raises BadRequest when it is nested too deep.
    """
    if isinstance(value, str):
        return visit(value, path) if value and not _is_mark(path[-1] if path else "", value) else value
    if not isinstance(value, dict | list):
        return value
    if len(path) > _MAX_DEPTH:
        raise BadRequest(f"The request is nested too deep to be checked; keep it within {_MAX_DEPTH} levels.")
    if isinstance(value, list):
        new_items = [
            # Of numbers there may be thousands.
            item if isinstance(item, float | int) else rewritten(item, visit, (*path, _place(item, place)))
            for place, item in enumerate(value)
        ]
        return value if all(map(operator.is_, value, new_items)) else new_items
    new = {name: rewritten(member, visit, (*path, name)) for name, member in value.items()}
    return value if all(new[name] is member for name, member in value.items()) else new


def texts_in(value: Value) -> Sequence[str]:
    """The texts of a value, in order."""
    texts: list[str] = []

    def collect(text: str, _path: Path) -> str:
        texts.append(text)
        return text

    rewritten(value, collect)
    return texts


def with_texts(value: Value, texts: Sequence[str]) -> Value:
    """A value with other texts, as many and in the same order as `texts_in` gives them."""
    following: Iterator[str] = iter(texts)
    return rewritten(value, lambda _text, _path: next(following))


def without_tokens(choices: Sequence[Value]) -> list[Value]:
    """Choices without `logprobs`, which repeat the text token by token."""
    return [
        {**choice, "logprobs": None} if isinstance(choice, dict) and choice.get("logprobs") else choice
        for choice in choices
    ]


def _is_mark(key: str | int, text: str) -> bool:
    if key in _PAYLOADS:
        return text.startswith("data:") or not any(map(str.isspace, text))
    return key in _OPAQUE or (key in _NOT_TEXTS and len(text) <= _MAX_NAME_CHARACTERS)


def _place(item: Value, place: int) -> int:
    """Parts of streamed lists say themselves where they belong."""
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) else place
