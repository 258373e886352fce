"""Images, sounds and files in a chat request, by their size: what says nothing of its tokens by being text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from llmproxy.request import Document

MediaKind = Literal["image", "audio", "video", "file"]
_KINDS: Final[Mapping[str, MediaKind]] = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "audio": "audio",
    "video_url": "video",
    "video": "video",
    "file": "file",
    "input_file": "file",
    "document": "file",
}
# Deep enough for every part there is.
_MAX_DEPTH: Final = 4


class EmbeddedMedia(NamedTuple):
    """One part of a message. `size_bytes` is that of its data as base64, or of the address in its place."""

    kind: MediaKind
    size_bytes: int


def embedded_media(document: Document) -> list[EmbeddedMedia]:
    """What is not text in the messages of a request, whatever a client wrote into it."""
    messages = document.get("messages")
    if not isinstance(messages, list):
        return []
    found: list[EmbeddedMedia] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        # Most are a string: those that have parts are few, and looked at more closely.
        if isinstance(content, list):
            found += _in_parts(content)
    return found


# The part is whatever the client sent.
def media_kind(part: Any) -> MediaKind | None:
    """What a part of a message is, if it is not text."""
    kind = part.get("type") if isinstance(part, dict) else None
    return _KINDS.get(kind) if isinstance(kind, str) else None


# The parts are whatever the client sent.
def _in_parts(parts: list[Any]) -> Iterator[EmbeddedMedia]:
    for part in parts:
        if (kind := media_kind(part)) is not None:
            yield EmbeddedMedia(kind, _text_size(part, _MAX_DEPTH))


# The value is whatever the client sent.
def _text_size(value: Any, depth: int) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict) and depth:
        return sum(_text_size(inner, depth - 1) for inner in value.values())
    return 0
