"""A provider's server-sent events as JSON objects: what the decoder of every vendor's stream begins with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

import orjson

from llmproxy.errors import UpstreamBroken, UpstreamCut
from llmproxy.request import Document
from llmproxy.sse import SSEDecoder, event_data

MAX_EVENT_BYTES: Final = 16_777_216
_DONE: Final = b"[DONE]"


class ObjectEvent(NamedTuple):
    """One event: its own bytes, and the object in it; None for `[DONE]`, which marks the end."""

    raw: bytes
    document: Document | None


class ObjectEvents:
    """Decodes a stream that comes in pieces of any size; comments and empty events are left out."""

    def __init__(self) -> None:
        self._events = SSEDecoder(MAX_EVENT_BYTES)

    def feed(self, data: bytes) -> Iterator[ObjectEvent]:
        """The events that are whole now. Raises UpstreamBroken, after those before it, for one that is no object."""
        for raw in self._events.feed(data):
            yield from _read(raw)

    def finish(self) -> Iterator[ObjectEvent]:
        """The last event when only its blank line was missing; half an event is as good as none."""
        for raw in self._events.finish():
            if is_whole(raw):
                yield from _read(raw)


def is_whole(event: bytes) -> bool:
    """Whether an event that the stream's end has cut off lacks nothing but its blank line."""
    try:
        return any(_read(event))
    except UpstreamBroken:
        return False


def object_or_none(data: bytes) -> Document | None:
    """The object that some JSON is; None when it is anything else."""
    try:
        return decode_object(data)
    except UpstreamBroken:
        return None


def decode_object(data: bytes, what: str = "an event") -> Document:
    """The object that some JSON is. Raises UpstreamBroken.

    Args:
        what: What the provider sent it as, for the error.
    """
    return _object(_decoded(data, what), what)


def cut_short() -> UpstreamCut:
    """The error for a stream that ended, and the answer in it had not."""
    return UpstreamCut("The provider's stream ended before the answer was complete.")


def _read(raw: bytes) -> Iterator[ObjectEvent]:
    data = event_data(raw)
    if not data or data.isspace():
        return
    if data.startswith(_DONE):
        yield ObjectEvent(raw, None)
        return
    decoded = _decoded(data, "an event")
    # Google puts errors into a list of one.
    alone = decoded[0] if isinstance(decoded, list) and len(decoded) == 1 else decoded
    yield ObjectEvent(raw, _object(alone, "an event"))


def _object(decoded: object, what: str) -> Document:
    if not isinstance(decoded, dict):
        raise UpstreamBroken(f"The provider sent {what} that is not a JSON object.")
    return decoded


def _decoded(data: bytes, what: str) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _decoded_leniently(data, what)


def _decoded_leniently(data: bytes, what: str) -> object:
    """JSON in which a character may have been cut in half, such as one half of a surrogate pair."""
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False)
        return orjson.loads(text.encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise UpstreamBroken(f"The provider sent {what} that is not valid JSON.") from error
