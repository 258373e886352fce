"""Answers that a gateway has decoded and written anew: what counts in them, whatever else has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from benchmarks.traffic import Order

_EVENT: Final = b"data: "
_DONE: Final = b"[DONE]"
# A JSON object, of which any part may be missing or another than it should be.
_Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RewrittenOrder(Order):
    """An order to a gateway that writes answers anew.

    The answer's id, in which the order's number stands, its texts as they are divided into events, its reasons to
    finish and the tokens used have to be the upstream's; the model's name, the time and what is added need not.
    """

    def is_answer(self, body: bytes) -> bool:
        """Whether that is in the body of its whole answer."""
        return _counting(orjson.loads(body)) == _counting(orjson.loads(self.answer()))

    def is_stream(self, body: bytes) -> bool:
        """Whether that is in the body of its streamed answer."""
        return list(_events(body)) == list(_events(self.stream()))


def _events(body: bytes) -> Iterator[object]:
    for line in body.splitlines():
        data = line.removeprefix(_EVENT)
        if line:
            yield data if data in {_DONE, line} else _counting(orjson.loads(data))


def _counting(document: _Document) -> object:
    # An event with the usage may have no choice, or one without a text: both say the same.
    texts = [text for choice in document.get("choices", ()) if (text := _text(choice)) != (None, None)]
    usage = document.get("usage") or {}
    return document.get("id"), texts, [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion", "total")]


def _text(choice: _Document) -> tuple[object, object]:
    said = choice.get("message") or choice.get("delta") or {}
    return said.get("content"), choice.get("finish_reason")
