"""Messages as Gemini's contents: turns of `user` and `model`, made of parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from llmproxy.dialects.chat_request import Message, Part, leading_instructions
from llmproxy.dialects.media import Media
from llmproxy.dialects.tool_calls import ToolCall
from llmproxy.errors import BadRequest
from llmproxy.providers.gemini.models import Rules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

Issuer = Literal["gemini", "vertex"]
# Google accepts this in place of a signature that a client has lost.
LOST_SIGNATURE: Final = "skip_thought_signature_validator"
FILE_API: Final = "https://generativelanguage.googleapis.com/v1beta/"
# Where the Gemini API reads files from by itself.
_READ_BY_GOOGLE: Final = (FILE_API.removesuffix("v1beta/"), "gs://", "https://www.youtube.com/", "https://youtu.be/")
# A conversation must not begin with the model's own turn.
_OPENING: Final = "(The conversation begins with your answer.)"
_MEDIA_TYPES: Final[Mapping[str, str]] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "gif": "image/gif",
    "pdf": "application/pdf",
    "txt": "text/plain",
    "mp3": "audio/mp3",
    "wav": "audio/wav",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
}
# Google's own name, which all of its endpoints know.
_GOOGLE_TYPES: Final[Mapping[str, str]] = {"audio/mpeg": "audio/mp3"}
_RESOLUTIONS: Final[Mapping[str, str]] = {"low": "MEDIA_RESOLUTION_LOW", "high": "MEDIA_RESOLUTION_HIGH"}


@dataclass(slots=True)
class Conversation:
    """The system instruction, which may be empty, and the turns.

    Arguments of calls in them are JSON text already, which only orjson can write.
    """

    system: Sequence[Document]
    turns: Sequence[Document]


class Contents:
    """Translates the messages of one request.

    Args:
        issuer: Which of Google's endpoints it goes to: neither takes the other's signatures, and only Vertex fetches
            files from anywhere.
    """

    def __init__(self, rules: Rules, issuer: Issuer, omissions: Omissions) -> None:
        self._rules = rules
        self._issuer = issuer
        self._omissions = omissions
        self._turns: list[Document] = []
        # Where each call stands in its turn, and the name of its function.
        self._calls: dict[str, tuple[int, str]] = {}

    def translate(self, messages: Sequence[Message]) -> Conversation:
        """The conversation. Raises BadRequest naming the message at fault."""
        leading = leading_instructions(messages)
        system = [part for message in messages[:leading] for part in self._parts(message)]
        if system and (not self._rules.system or leading == len(messages)):
            self._add("user", system)
            system = []
        results: list[Message] = []
        for message in messages[leading:]:
            if message.role == "tool":
                results.append(message)
                continue
            if results:
                self._add_results(results)
                results = []
            self._add_message(message)
        self._add_results(results)
        return Conversation(system, self._checked(messages))

    def _checked(self, messages: Sequence[Message]) -> Sequence[Document]:
        if not self._turns:
            raise BadRequest("'messages' must hold some content.", param="messages")
        if self._turns[0]["role"] == "model":
            self._turns.insert(0, {"role": "user", "parts": [{"text": _OPENING}]})
        if self._turns[-1]["role"] == "model" and not self._rules.prefill:
            raise BadRequest(
                "This model does not continue its own last message; end with a user message.",
                code="unsupported_value",
                param=f"messages[{len(messages) - 1}]",
            )
        return self._turns

    def _add(self, role: Literal["user", "model"], parts: list[Document]) -> None:
        if not parts:
            return
        if self._turns and self._turns[-1]["role"] == role:
            self._turns[-1]["parts"] += parts
        else:
            self._turns.append({"role": role, "parts": parts})

    def _add_message(self, message: Message) -> None:
        if message.role != "assistant":
            return self._add("user", self._parts(message))
        said = self._parts(message)
        signature = self._signature(message.extra_content)
        if signature and not message.tool_calls:
            texts = [part for part in said if "text" in part] or [{"text": ""}]
            texts[-1]["thoughtSignature"] = signature
            said = said or texts
        if message.tool_calls:
            said += self._function_calls(message.tool_calls)
        return self._add("model", said)

    def _function_calls(self, calls: Sequence[ToolCall]) -> Iterator[Document]:
        for position, call in enumerate(calls):
            self._calls[call.id] = (position, call.name)
            part: Document = {"functionCall": {"id": call.id, "name": call.name, "args": orjson.Fragment(call.json)}}
            signature = self._signature(call.extra_content)
            # Of parallel calls only the first has one.
            if signature is None and position == 0 and self._rules.signatures:
                signature = LOST_SIGNATURE
            if signature is not None:
                part["thoughtSignature"] = signature
            yield part

    def _signature(self, extra_content: Document) -> str | None:
        """The signature a client has kept, when it is one that this endpoint will take."""
        if not extra_content:
            return None
        match extra_content.get("google"):
            case {"thought_signature": str(signature), **rest} if rest.get("issuer", self._issuer) == self._issuer:
                return signature
            case _:
                return None

    def _add_results(self, results: Sequence[Message]) -> None:
        """Results in the order of their calls, which is how calls without ids are told apart; media after them."""
        if not results:
            return
        found = [(self._call(result), result) for result in results]
        found.sort(key=lambda pair: pair[0][0])
        self._add("user", [_function_response(result, name) for (_, name), result in found])
        self._add("user", [part for _, result in found for part in self._parts(result) if "text" not in part])

    def _call(self, result: Message) -> tuple[int, str]:
        call = self._calls.get(result.tool_call_id or "")
        if call is not None:
            return call
        if result.name is not None:
            return (len(self._calls), result.name)
        raise BadRequest(
            f"'{result.tool_call_id}' is the id of no call in the messages before it.", param="messages.tool_call_id"
        )

    def _parts(self, message: Message) -> list[Document]:
        parts = []
        for part in message.parts:
            if part.media is not None:
                parts.append(self._media(part, part.media))
            elif part.text:
                parts.append({"text": part.text})
        return parts

    def _media(self, part: Part, media: Media) -> Document:
        if media.data is not None:
            media_type = _GOOGLE_TYPES.get(media.media_type, media.media_type)
            document: Document = {"inlineData": {"mimeType": media_type, "data": media.base64}}
        else:
            document = {"fileData": self._file(part, media)}
        if (level := _RESOLUTIONS.get(media.detail or "")) is None:
            return document
        if not self._rules.media_resolution:
            self._omissions.hint("messages.image_url.detail")
            return document
        return {**document, "mediaResolution": {"level": level}}

    def _file(self, part: Part, media: Media) -> Document:
        address = media.url or media.file_id or ""
        if self._issuer == "gemini" and address.startswith("files/"):
            address = FILE_API + address
        media_type = _type_of(address)
        if not self._reads(address) or (self._issuer == "vertex" and media_type is None):
            raise BadRequest(self._unread(address), code="unsupported_value", param=part.path)
        return {"fileUri": address} if media_type is None else {"mimeType": media_type, "fileUri": address}

    def _reads(self, address: str) -> bool:
        if self._issuer == "vertex":
            return address.startswith(("gs://", "https://", "http://"))
        return address.startswith(_READ_BY_GOOGLE)

    def _unread(self, address: str) -> str:
        if self._reads(address):
            return "Vertex AI must be told a file's type, which its address does not end in; send a data URL instead."
        known = "gs:// or http addresses" if self._issuer == "vertex" else "files of its File API and gs:// addresses"
        return f"This provider reads {known} only; send the content itself as a data URL."


def is_read_by_google(address: str, issuer: Issuer) -> bool:
    """Whether Google's endpoint reads what is at an http address by itself, as far as one can tell.

    Vertex AI reads anything whose type it is told; the Gemini API only what lies with Google.
    """
    return _type_of(address) is not None if issuer == "vertex" else address.startswith(_READ_BY_GOOGLE)


def _function_response(result: Message, name: str) -> Document:
    return {"functionResponse": {"id": result.tool_call_id, "name": name, "response": {"output": result.text}}}


def _type_of(address: str) -> str | None:
    path = address.partition("?")[0].partition("#")[0]
    return _MEDIA_TYPES.get(path.rpartition("/")[2].rpartition(".")[2].lower())
