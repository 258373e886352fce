"""What a request must look like for a vendor: edits of its members, and refusals where an edit would change it.

Each part of the request is touched only when something in it must change, so that all else keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from llmproxy.errors import BadRequest
from llmproxy.providers.vendors import Vendor
from llmproxy.request import Operation, Request

# JSON as the client sent it: its values can be anything.
JSONObject = dict[str, Any]
# What other vendors' models signed and only they can read: clients send it back whoever serves the next turn.
_SIGNED_ELSEWHERE: Final = ("thinking_blocks",)


def adapt(request: Request, vendor: Vendor) -> tuple[str, ...]:
    """Make the request one that `vendor` accepts, and name what was left out.

    Raises BadRequest when the vendor cannot do what is asked.
    """
    if request.operation is Operation.EMBEDDINGS:
        return ()
    for parameter in _unsupported(request, vendor):
        raise BadRequest(
            f"The provider of this model does not support this '{parameter}'; leave it out or use another model.",
            code="unsupported_parameter",
            param=parameter,
        )
    dropped = [name for name in vendor.dropped if name in request.document]
    for name in dropped:
        request.remove(name)
    _rename_max_tokens(request, vendor)
    _lower_temperature(request, vendor)
    _switch_reasoning(request, vendor)
    return (*dropped, *_clean_messages(request, vendor), *_clean_tools(request, vendor))


def _unsupported(request: Request, vendor: Vendor) -> Iterator[str]:
    document = request.document
    # False, null and an empty collection ask for nothing.
    yield from (name for name in vendor.refused if document.get(name))
    if vendor.single_choice and document.get("n") not in (None, 1):
        yield "n"
    if not vendor.required_tool_choice and document.get("tool_choice") == "required":
        yield "tool_choice"
    response_format = document.get("response_format")
    if not vendor.json_schema and isinstance(response_format, dict) and response_format.get("type") == "json_schema":
        yield "response_format"


def _rename_max_tokens(request: Request, vendor: Vendor) -> None:
    if vendor.max_tokens_only and "max_completion_tokens" in request.document:
        limit = request.document["max_completion_tokens"]
        request.remove("max_completion_tokens")
        if limit is not None:
            request.set("max_tokens", limit)


def _lower_temperature(request: Request, vendor: Vendor) -> None:
    temperature, highest = request.document.get("temperature"), vendor.max_temperature
    if highest is not None and isinstance(temperature, int | float) and temperature > highest:
        request.set("temperature", highest)


def _switch_reasoning(request: Request, vendor: Vendor) -> None:
    effort = request.document.get("reasoning_effort")
    if vendor.reasoning_control is None or effort is None:
        return
    request.remove("reasoning_effort")
    if vendor.reasoning_control in request.document:
        return
    is_on = effort != "none"
    as_object = {"type": "enabled" if is_on else "disabled"}
    request.set(vendor.reasoning_control, as_object if vendor.reasoning_control == "thinking" else is_on)


def _clean_messages(request: Request, vendor: Vendor) -> Iterable[str]:
    messages = request.document.get("messages")
    if not isinstance(messages, list):
        return ()
    dropped: dict[str, None] = {}
    cleaned = [_message(each, vendor, dropped) if isinstance(each, dict) else each for each in messages]
    _set_if_changed(request, "messages", messages, cleaned)
    return dropped


def _message(message: JSONObject, vendor: Vendor, dropped: dict[str, None]) -> JSONObject:
    if message.get("role") == "developer" and not vendor.developer_role:
        message = {**message, "role": "system"}
    message = _without(message, (*vendor.dropped_message_fields, *_SIGNED_ELSEWHERE), "messages", dropped)
    return message if vendor.cache_control else _without_cache_marks(message, dropped)


def _without_cache_marks(message: JSONObject, dropped: dict[str, None]) -> JSONObject:
    message = _without(message, ("cache_control",), "messages", dropped)
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        _without(part, ("cache_control",), "messages", dropped) if isinstance(part, dict) else part for part in content
    ]
    return {**message, "content": parts} if _differs(content, parts) else message


def _clean_tools(request: Request, vendor: Vendor) -> Iterable[str]:
    tools = request.document.get("tools")
    if not isinstance(tools, list):
        return ()
    dropped: dict[str, None] = {}
    cleaned = [_tool(each, vendor, dropped) if isinstance(each, dict) else each for each in tools]
    _set_if_changed(request, "tools", tools, cleaned)
    return dropped


def _tool(tool: JSONObject, vendor: Vendor, dropped: dict[str, None]) -> JSONObject:
    if not vendor.cache_control:
        tool = _without(tool, ("cache_control",), "tools", dropped)
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    cleaned = _without(function, vendor.dropped_tool_fields, "tools", dropped)
    return tool if cleaned is function else {**tool, "function": cleaned}


def _without(item: JSONObject, names: Collection[str], where: str, dropped: dict[str, None]) -> JSONObject:
    found = [name for name in names if name in item]
    if not found:
        return item
    dropped.update(dict.fromkeys(f"{where}.{name}" for name in found))
    return {name: value for name, value in item.items() if name not in found}


def _set_if_changed(request: Request, name: str, before: list[Any], after: list[Any]) -> None:
    if _differs(before, after):
        request.set(name, after)


def _differs(before: list[Any], after: list[Any]) -> bool:
    return any(new is not old for old, new in zip(before, after, strict=True))
