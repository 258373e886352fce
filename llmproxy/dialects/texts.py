"""The text in requests and answers, without the JSON around it: what a tokenizer is asked about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from llmproxy.dialects.embedded_media import media_kind
from llmproxy.dialects.objects import objects_in
from llmproxy.dialects.upstream_events import object_or_none
from llmproxy.request import Document
from llmproxy.sse import event_data

# What models are shown of these is made from their JSON.
_SCHEMAS: Final = ("tools", "functions", "response_format")
_PROMPTS: Final = ("prompt", "input", "instructions")
_AROUND_MESSAGE: Final = 4
_BEFORE_ANSWER: Final = 3
# Members that say what something is, not what it says.
_NAMES: Final = frozenset({"type", "id", "tool_call_id", "cache_control"})


def request_texts(document: Document) -> Iterator[str]:
    """All that the model is given to read, whatever a client wrote into it; no images, sounds and files."""
    for message in objects_in(document.get("messages")):
        yield from _message_texts(message)
    for name in _PROMPTS:
        yield from _strings(document.get(name))
    for name in _SCHEMAS:
        if schema := document.get(name):
            yield orjson.dumps(schema).decode()


def answer_texts(document: Document) -> Iterator[str]:
    """All that the model has written of a whole answer."""
    for choice in objects_in(document.get("choices")):
        yield from _choice_texts(choice, "message")


def streamed_texts(events: bytes) -> Iterator[str]:
    """The same of whole events of a stream, the pieces of each choice put together."""
    pieces: dict[object, list[str]] = {}
    for event in events.split(b"\n\n"):
        document = object_or_none(event_data(event) or b"") or {}
        for choice in objects_in(document.get("choices")):
            pieces.setdefault(str(choice.get("index")), []).extend(_choice_texts(choice, "delta"))
    yield from map("".join, pieces.values())


def tokens_beside_text(document: Document) -> int:
    """What OpenAI's template puts around messages (by its cookbook), and tokens that stand there as numbers."""
    messages = objects_in(document.get("messages"))
    around = sum(_AROUND_MESSAGE + ("name" in message) for message in messages) + (_BEFORE_ANSWER if messages else 0)
    return around + sum(isinstance(each, int) for name in _PROMPTS for each in _leaves(document.get(name)))


def _choice_texts(choice: Document, name: str) -> Iterator[str]:
    yield from _strings(choice.get("text"))
    message = choice.get(name)
    if isinstance(message, dict):
        yield from _message_texts(message)


def _message_texts(message: Document) -> Iterator[str]:
    for name in ("content", "refusal", "name", "function_call"):
        yield from _strings(message.get(name))
    # Some vendors say it twice.
    yield from _strings(message.get("reasoning_content") or message.get("reasoning"))
    for call in objects_in(message.get("tool_calls")):
        yield from _strings(call)


def _strings(value: object) -> Iterator[str]:
    return (each for each in _leaves(value) if isinstance(each, str))


# The value is whatever somebody sent: as deep as it likes, so that nothing may call itself here.
def _leaves(value: Any) -> Iterator[object]:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += reversed(found)
        elif not isinstance(found, dict):
            yield found
        elif media_kind(found) is None:
            waiting += [each for name, each in reversed(found.items()) if name not in _NAMES]
