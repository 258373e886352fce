"""Tools, and the choice among them, in the flat form of the Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmproxy.dialects.chat_request import Tool, read_tool_choice, read_tools
from llmproxy.providers.omissions import Omissions
from llmproxy.request import Document


def tools(document: Document, omissions: Omissions) -> list[Document]:
    """The tools of a request, and a search of the web when it is asked for. Raises BadRequest."""
    known = read_tools(document)
    given = [*(document.get("tools") or ()), *map(_of_function, document.get("functions") or ())]
    if any("cache_control" in tool for tool in given):
        omissions.hint("tools.cache_control")
    flat = [_flat(tool, read) for tool, read in zip(given, known, strict=True)]
    search = document.get("web_search_options")
    return [*flat, _web_search(search)] if isinstance(search, dict) else flat


def tool_choice(document: Document) -> str | Document | None:
    """How tools are to be used; None when the request does not say. Raises BadRequest."""
    choice = read_tool_choice(document)
    if choice is None:
        return None
    types = {tool.name: "custom" if tool.is_custom else "function" for tool in read_tools(document)}
    names = [{"type": types.get(name, "function"), "name": name} for name in choice.names]
    if choice.mode == "named":
        return names[0]
    if choice.mode == "allowed":
        return {"type": "allowed_tools", "mode": "required" if choice.required else "auto", "tools": names}
    return choice.mode


def _of_function(function: Document) -> Document:
    return {"type": "function", "function": function}


def _flat(tool: Document, read: Tool) -> Document:
    inner: Mapping[str, Any] = tool[tool["type"]]  # a function's members are whatever the client's are
    if not read.is_custom:
        # Left out, this API may take `strict` for true.
        return {**inner, "type": "function", "parameters": read.parameters, "strict": read.strict or False}
    match inner.get("format"):
        case {"type": "grammar", "grammar": dict(grammar)}:
            return {**inner, "type": "custom", "format": {**grammar, "type": "grammar"}}
        case _:
            return {**inner, "type": "custom"}


def _web_search(options: Document) -> Document:
    search: Document = {"type": "web_search"}
    if options.get("search_context_size") is not None:
        search["search_context_size"] = options["search_context_size"]
    location = options.get("user_location")
    place = location.get("approximate") if isinstance(location, dict) else None
    if isinstance(place, dict):
        search["user_location"] = {**place, "type": "approximate"}
    return search
