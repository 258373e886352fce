"""The messages of a conversation as the input items of the Responses API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import orjson

from llmproxy.dialects.legacy_functions import FunctionCalls
from llmproxy.errors import BadRequest
from llmproxy.providers.omissions import Omissions
from llmproxy.providers.responses.reasoning import reasoning_item
from llmproxy.request import Document

_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_CALL_ID_CHARACTERS: Final = 64


# The messages are whatever the client sent.
def input_items(messages: object, issuer: str, omissions: Omissions) -> list[Document]:
    """The items for a client's messages. Raises BadRequest naming the member that is wrong."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list with at least one message.", param="messages")
    conversation = _Conversation(issuer, omissions)
    return [
        item for number, message in enumerate(messages) for item in conversation.items(message, f"messages[{number}]")
    ]


class _Conversation:
    """The messages so far, as much of them as later ones depend on."""

    def __init__(self, issuer: str, omissions: Omissions) -> None:
        self._issuer = issuer
        self._omissions = omissions
        self._functions = FunctionCalls()
        self._custom_calls: set[str] = set()

    def items(self, message: object, path: str) -> list[Document]:
        """The items for the next message, mostly one."""
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict) or role not in _ROLES:
            raise BadRequest(f"'{path}' must be a message with a known role.", param=path)
        message = self._functions.as_tool_calls(message)
        if role in ("tool", "function"):
            return [self._result(message, path)]
        for name in ("name", "cache_control"):
            if message.get(name):
                self._omissions.hint(f"messages.{name}")
        if role == "assistant":
            return self._assistant(message, path)
        return [{"type": "message", "role": role, "content": self._content(message, path)}]

    # What the model is told

    def _content(self, message: Document, path: str) -> str | list[Document]:
        content = message.get("content")
        if content is None or isinstance(content, str):
            return content or ""
        if not isinstance(content, list):
            raise BadRequest(f"'{path}.content' must be text or a list of parts.", param=f"{path}.content")
        return [self._part(part, f"{path}.content[{number}]") for number, part in enumerate(content)]

    # A part is whatever the client sent.
    def _part(self, part: Any, path: str) -> Document:
        match part:
            case str():
                return {"type": "input_text", "text": part}
            case {"type": "text", "text": str(text)}:
                native: Document = {"type": "input_text", "text": text}
            case {"type": "image_url", "image_url": str(url)}:
                native = {"type": "input_image", "image_url": url, "detail": "auto"}
            case {"type": "image_url", "image_url": {"url": str(url), **rest}}:
                native = {"type": "input_image", "image_url": url, "detail": rest.get("detail") or "auto"}
            case {"type": "file", "file": dict(file)}:
                given = {name: file.get(name) for name in ("file_id", "file_data", "filename")}
                native = {"type": "input_file", **{name: value for name, value in given.items() if value is not None}}
            case {"type": "input_audio"}:
                sentence = f"'{path}' is a sound, which this model cannot hear beside tools; send its transcript."
                raise BadRequest(sentence, code="unsupported_parameter", param=path)
            case _:
                raise BadRequest(f"'{path}' must be a content part of a known type.", param=path)
        return self._marked(native, part)

    def _marked(self, native: Document, part: Document) -> Document:
        if "cache_control" in part:
            self._omissions.hint("messages.cache_control")
        mark = part.get("prompt_cache_breakpoint")
        return native if mark is None else {**native, "prompt_cache_breakpoint": mark}

    # What the model said

    def _assistant(self, message: Document, path: str) -> list[Document]:
        if message.get("audio"):
            sentence = f"'{path}.audio' names an earlier answer's sound; send its transcript instead."
            raise BadRequest(sentence, code="unsupported_parameter", param=f"{path}.audio")
        items: list[Document] = []
        if text := "".join(_said(message, path)):
            items.append({"type": "message", "role": "assistant", "content": text, **_phase(message)})
        calls = message.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else []):
            items.append(self._call(call, f"{path}.tool_calls[{number}]"))
        self._put_back_reasoning(message, items)
        return items

    def _put_back_reasoning(self, message: Document, items: list[Document]) -> None:
        """Each item of reasoning goes back to where it stood, as what follows it is bound to it."""
        blocks = message.get("thinking_blocks")
        found = [reasoning_item(block, self._issuer) for block in blocks] if isinstance(blocks, list) else []
        for position, item in sorted((each for each in found if each is not None), key=lambda each: each[0]):
            items.insert(position, item)
        if None in found:
            self._omissions.hint("messages.thinking_blocks")
        elif message.get("reasoning_content") and not found:
            self._omissions.hint("messages.reasoning_content")

    def _call(self, call: object, path: str) -> Document:
        match call:
            case {"id": str(call_id), "custom": {"name": str(name), "input": str(text)}}:
                self._custom_calls.add(call_id)
                return {"type": "custom_tool_call", "call_id": _call_id(call_id), "name": name, "input": text}
            case {"id": str(call_id), "function": {"name": str(name), **rest}}:
                arguments = _arguments(rest.get("arguments"), path)
                return {"type": "function_call", "call_id": _call_id(call_id), "name": name, "arguments": arguments}
            case _:
                raise BadRequest(f"'{path}' must be a tool call with an id and a function name.", param=path)

    def _result(self, message: Document, path: str) -> Document:
        call_id = message.get("tool_call_id")
        if not isinstance(call_id, str):
            param = f"{path}.tool_call_id"
            raise BadRequest(f"'{param}' must name the call this is the result of.", param=param)
        kind = "custom_tool_call_output" if call_id in self._custom_calls else "function_call_output"
        return {"type": kind, "call_id": _call_id(call_id), "output": self._content(message, path)}


def _said(message: Document, path: str) -> Iterator[str]:
    content = message.get("content")
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        match part:
            case None:
                continue
            case str(text) | {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
                yield text
            case _:
                where = f"{path}.content[{number}]" if isinstance(content, list) else f"{path}.content"
                raise BadRequest(f"'{where}' must be text that the model said.", param=where)
    if isinstance(message.get("refusal"), str):
        yield message["refusal"]


def _phase(message: Document) -> Document:
    """Whether the text was the answer or on the way to it, as the model said itself."""
    match message.get("extra_content"):
        case {"openai": {"phase": str(phase)}}:
            return {"phase": phase}
        case _:
            return {}


def _arguments(arguments: object, path: str) -> str:
    """A call's arguments as the JSON text they are, so that no number in them changes."""
    if isinstance(arguments, str):
        return arguments if arguments.strip() else "{}"
    try:
        return orjson.dumps(arguments or {}).decode()
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"'{path}' holds arguments that are nested too deep.", param=path) from error


def _call_id(call_id: str) -> str:
    """The id of a call, one of ours in place of another vendor's that is too long here."""
    if len(call_id) <= _MAX_CALL_ID_CHARACTERS:
        return call_id
    return f"call_{hashlib.sha256(call_id.encode(errors='replace')).hexdigest()[:32]}"
