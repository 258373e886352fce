"""Images, sounds and files in chat content: from a data URL, bare base64, or an address elsewhere."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from llmproxy.errors import BadRequest
from llmproxy.request import Document

Kind = Literal["image", "audio", "file"]
_DATA_URL: Final = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),(.*)", re.DOTALL | re.IGNORECASE)
# How a file of each type begins: what clients declare is wrong often enough.
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
)
_ISO_BRANDS: Final[Mapping[bytes, str]] = {
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"avif": "image/avif",
}
_SAME_TYPE: Final[Mapping[str, str]] = {
    "image/jpg": "image/jpeg",
    "audio/mp3": "audio/mpeg",
    "audio/x-wav": "audio/wav",
}
_AUDIO_TYPES: Final[Mapping[str, str]] = {"wav": "audio/wav", "mp3": "audio/mpeg"}


@dataclass(frozen=True, slots=True)
class Media:
    """One image, sound or file: its `data`, or the `url` or vendor's `file_id` it is to be had under."""

    kind: Kind
    media_type: str = ""
    data: bytes | None = None
    url: str | None = None
    file_id: str | None = None
    filename: str | None = None
    detail: str | None = None

    @property
    def base64(self) -> str:
        """The data as standard base64."""
        return base64.b64encode(self.data or b"").decode()


def media_of(part: Document, path: str) -> Media:
    """The media of a content part. Raises BadRequest when it is of no known kind or cannot be decoded."""
    kind = part.get("type")
    inner = part.get(kind) if isinstance(kind, str) else None
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise BadRequest(f"'{path}' is a content part of an unknown type.", param=path)
    if kind == "image_url" and isinstance(inner, str):
        inner = {"url": inner}
    if not isinstance(inner, dict):
        raise BadRequest(f"'{path}.{kind}' must be an object.", param=f"{path}.{kind}")
    return reader(inner, f"{path}.{kind}")


def _image(image: Document, path: str) -> Media:
    url, detail = image.get("url"), image.get("detail")
    if not isinstance(url, str):
        raise BadRequest(f"'{path}.url' must be a data URL or an http address.", param=f"{path}.url")
    detail = detail if isinstance(detail, str) else None
    if url[:5].lower() != "data:":
        return Media("image", url=url, detail=detail)
    media_type, data = decode_data_url(url, f"{path}.url")
    return Media("image", media_type, data, detail=detail)


def _audio(audio: Document, path: str) -> Media:
    media_type, data = _AUDIO_TYPES.get(str(audio.get("format"))), audio.get("data")
    if media_type is None or not isinstance(data, str):
        raise BadRequest(f"'{path}' must hold base64 'data' and a 'format' of wav or mp3.", param=path)
    return Media("audio", media_type, _decoded(data, f"{path}.data"))


def _file(file: Document, path: str) -> Media:
    filename = file.get("filename")
    filename = filename if isinstance(filename, str) else None
    if isinstance(file.get("file_id"), str):
        return Media("file", file_id=file["file_id"], filename=filename)
    data = file.get("file_data")
    if not isinstance(data, str):
        raise BadRequest(f"'{path}' must hold 'file_data' or a 'file_id'.", param=path)
    if data[:5].lower() != "data:":
        decoded = _decoded(data, f"{path}.file_data")
        return Media("file", sniffed(decoded) or "application/octet-stream", decoded, filename=filename)
    media_type, decoded = decode_data_url(data, f"{path}.file_data")
    return Media("file", media_type, decoded, filename=filename)


_READERS: Final[Mapping[str, Callable[[Document, str], Media]]] = {
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
}


def image_addresses(document: Document) -> Mapping[str, str]:
    """The http addresses of images in a chat request, each with where it stands first."""
    found: dict[str, str] = {}
    for path, part in _image_parts(document.get("messages")):
        url = _address(part)
        if url is not None and url[:8].lower().startswith(("http://", "https://")):
            found.setdefault(url, path)
    return found


def with_images(document: Document, data_urls: Mapping[str, str]) -> list[object]:
    """The messages of a chat request with data URLs in place of addresses."""
    messages: list[object] = []
    for message in document["messages"]:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            messages.append({**message, "content": [_embedded(part, data_urls) for part in content]})
        else:
            messages.append(message)
    return messages


# Messages are whatever the client sent.
def _image_parts(messages: Any) -> Iterator[tuple[str, Document]]:
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") == "image_url":
                yield f"messages[{number}].content[{place}].image_url", part


def _address(part: Document) -> str | None:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) else None


def _embedded(part: object, data_urls: Mapping[str, str]) -> object:
    if not isinstance(part, dict) or (url := _address(part)) not in data_urls or url is None:
        return part
    image = part["image_url"]
    return {**part, "image_url": {**(image if isinstance(image, dict) else {}), "url": data_urls[url]}}


def decode_data_url(url: str, path: str) -> tuple[str, bytes]:
    """Media type and data of a data URL; what the data itself shows wins over what is declared.

    Raises BadRequest.
    """
    match = _DATA_URL.fullmatch(url)
    if match is None or ";base64" not in match[2].lower():
        raise BadRequest(f"'{path}' is not a base64 data URL.", param=path)
    data = _decoded(match[3], path)
    declared = match[1].strip().lower()
    return sniffed(data) or _SAME_TYPE.get(declared, declared), data


def sniffed(data: bytes) -> str | None:
    """The media type that the first bytes show, None when they show none."""
    if data[4:8] == b"ftyp":
        return _ISO_BRANDS.get(data[8:12])
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12])
    return next((media_type for magic, media_type in _MAGIC if data.startswith(magic)), None)


def _decoded(text: str, path: str) -> bytes:
    """Base64 in any of the forms seen: url-safe, unpadded, with line breaks."""
    compact = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"'{path}' is not valid base64.", param=path) from error
