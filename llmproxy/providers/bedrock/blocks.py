"""Content as Converse's blocks: texts, images, sounds, documents, cache points."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from llmproxy.dialects.chat_request import Part
from llmproxy.dialects.media import Kind, Media
from llmproxy.errors import BadRequest
from llmproxy.providers.bedrock.models import ModelRules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

# Where a block is needed and there is nothing to say.
FILLER: Final = "."
MAX_CACHE_POINTS: Final = 4
_S3: Final = "s3://"
_BLOCKS: Final[Mapping[Kind, str]] = {"image": "image", "audio": "audio", "file": "document"}
_FORMATS: Final[Mapping[Kind, Mapping[str, str]]] = {
    "image": {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"},
    "audio": {"audio/wav": "wav", "audio/mpeg": "mp3"},
    "file": {
        "application/pdf": "pdf",
        "text/csv": "csv",
        "application/msword": "doc",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
        "application/vnd.ms-excel": "xls",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
        "text/html": "html",
        "text/plain": "txt",
        "text/markdown": "md",
    },
}
# What a name may end in where the media type says nothing.
_ENDINGS: Final[Mapping[str, str]] = {"jpg": "jpeg", "htm": "html", "markdown": "md"}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9\s\-()\[\]]+")
_MAX_NAME_CHARACTERS: Final = 190


class BlockWriter:
    """Translates the content of one request: names of documents must not repeat in it.

    Attributes:
        has_cache_points: Whether any was made.
    """

    def __init__(self, rules: ModelRules, omissions: Omissions) -> None:
        self.has_cache_points = False
        self._rules = rules
        self._omissions = omissions
        self._names: set[str] = set()

    def blocks(self, parts: Iterable[Part]) -> list[Document]:
        """Each part as a block, with the cache point behind it; blank texts, which are refused, are left out.

        Raises BadRequest for media that Bedrock cannot be sent.
        """
        blocks: list[Document] = []
        for part in parts:
            if part.media is not None:
                blocks.append(self._media(part, part.media))
            elif part.text and not part.text.isspace():
                blocks.append({"text": part.text})
            else:
                continue
            if part.cache_control is not None:
                blocks += self.cache_point("messages", part.cache_control)
        return blocks

    def cache_point(self, section: str, mark: Document) -> tuple[Document, ...]:
        """The cache point for a mark, where the model takes one."""
        if section not in self._rules.cache_sections:
            self._omissions.hint("cache_control")
            return ()
        self.has_cache_points = True
        point: Document = {"type": "default"}
        if mark.get("ttl") == "1h" and self._rules.has_cache_hour:
            point["ttl"] = "1h"
        return ({"cachePoint": point},)

    def _media(self, part: Part, media: Media) -> Document:
        if media.detail is not None:
            self._omissions.hint("messages.image_url.detail")
        kind = _format(part, media)
        block: Document = {"format": kind, "source": _source(part, media)}
        if media.kind == "file":
            block = {"format": kind, "name": self._name(media), "source": block["source"]}
        return {_BLOCKS[media.kind]: block}

    def _name(self, media: Media) -> str:
        """The file's name without its ending, in the characters that are allowed."""
        stem = (media.filename or "").rpartition(".")[0] or media.filename or "document"
        plain = " ".join(_NOT_IN_NAMES.sub(" ", stem).split())[:_MAX_NAME_CHARACTERS] or "document"
        numbered = (plain if count == 1 else f"{plain} {count}" for count in range(1, len(self._names) + 2))
        name = next(name for name in numbered if name not in self._names)
        self._names.add(name)
        return name


def _format(part: Part, media: Media) -> str:
    formats = _FORMATS[media.kind]
    ending = (media.filename or media.url or media.file_id or "").rpartition(".")[2].lower()
    ending = _ENDINGS.get(ending, ending)
    if media.media_type in formats:
        # Every document that is text calls itself plain text; its name may say more.
        is_more = formats[media.media_type] == "txt" and ending in ("csv", "html", "md")
        return ending if is_more else formats[media.media_type]
    if ending in formats.values() and not media.media_type.startswith("image/"):
        return ending
    known = ", ".join(sorted(formats.values()))
    raise BadRequest(
        f"'{part.path}' is of a type that Bedrock does not take; it takes {known}.",
        code="unsupported_value",
        param=part.path,
    )


def _source(part: Part, media: Media) -> Document:
    if media.data:
        return {"bytes": media.base64}
    address = media.url or media.file_id or ""
    if address.startswith(_S3):
        return {"s3Location": {"uri": address}}
    raise BadRequest(
        f"'{part.path}' is not in the request itself, and Bedrock reads s3:// addresses only; send it as a data URL.",
        code="unsupported_value",
        param=part.path,
    )


def limit_cache_points(sections: Iterable[list[Document]]) -> bool:
    """Take out all cache points but the last four, which reach furthest; True when there were more."""
    points = [(blocks, block) for blocks in sections for block in blocks if "cachePoint" in block]
    surplus = points[:-MAX_CACHE_POINTS]
    for blocks, point in surplus:
        blocks[:] = [block for block in blocks if block is not point]
    return bool(surplus)
