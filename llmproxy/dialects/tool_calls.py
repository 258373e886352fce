"""The tool calls in a client's messages: what the model called earlier, and with which arguments."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from llmproxy.errors import BadRequest
from llmproxy.request import Document


class ToolCall(NamedTuple):
    """A call the model made earlier. `arguments` is an object; what was no JSON object is wrapped in one.

    `json` is the same as text: the client's own bytes where they were an object, so that no number changes.
    """

    id: str
    name: str
    arguments: Document
    json: str
    # What vendors attach to calls and want back, such as thought signatures.
    extra_content: Document


def read_tool_calls(message: Document, path: str) -> tuple[ToolCall, ...]:
    """The calls of the message that stands at `path` in a request. Raises BadRequest."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return ()
    return tuple([_tool_call(call, f"{path}.tool_calls[{number}]") for number, call in enumerate(calls)])


def _tool_call(call: object, path: str) -> ToolCall:
    function = call.get("function") or call.get("custom") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"'{path}' must be a tool call with an id and a function name.", param=path)
    if not isinstance(call.get("id"), str):
        raise BadRequest(f"'{path}.id' must be text.", param=f"{path}.id")
    extra = call.get("extra_content")
    text = function.get("arguments")
    arguments = {"input": function["input"]} if "input" in function else decode_arguments(text)
    # An object that came as text is that text; all else is written anew.
    is_exact = isinstance(text, str) and text.strip() and "input" not in function and "_raw" not in arguments
    json = text if isinstance(text, str) and is_exact else _encoded(arguments, path)
    return ToolCall(call["id"], function["name"], arguments, json, extra if isinstance(extra, dict) else {})


def _encoded(arguments: Document, path: str) -> str:
    try:
        return orjson.dumps(arguments).decode()
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"'{path}' holds arguments that are nested too deep.", param=path) from error


def decode_arguments(arguments: object) -> Document:
    """A tool call's arguments as an object. Models write broken JSON at times, which must not break the next turn."""
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str) or not arguments.strip():
        return {}
    try:
        decoded = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {"_raw": arguments}
    return decoded if isinstance(decoded, dict) else {"_raw": arguments}
