"""Tools, the choice among them, and structured answers, which older models give through a tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmproxy.dialects.chat_request import (
    ChatRequest,
    ResponseFormat,
    Tool,
    ToolChoice,
    custom_tools,
    read_response_format,
    read_tool_choice,
    read_tools,
)
from llmproxy.providers.anthropic.rules import ModelRules
from llmproxy.providers.anthropic.schemas import closed_schema
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

JSON_INSTRUCTION: Final = "Answer with one JSON object and nothing else: no code fence, no word before or after it."
_ANSWER_DESCRIPTION: Final = "Give the final answer as the arguments of this tool."
# OpenAI's words for how much of the web to search, as numbers of searches.
_SEARCHES: Final = {"low": 1, "medium": 5, "high": 10}


@dataclass(slots=True)
class AnswerPlan:
    """What the answer to a request holds that must be turned back.

    Attributes:
        answer_tool: The tool whose arguments are the answer itself; None when there is none.
        custom_tools: The names of free-form tools, which are called with one text.
    """

    answer_tool: str | None = None
    custom_tools: frozenset[str] = frozenset()


@dataclass(slots=True)
class ToolPlan:
    """The members of a request that have to do with tools.

    Attributes:
        format: `output_config.format`.
        forces_call: The model has no choice but to call a tool.
    """

    tools: list[Document]
    choice: Document | None
    format: Document | None = None
    forces_call: bool = False


def answer_plan(document: Document, rules: ModelRules) -> AnswerPlan:
    """What to turn back in the answer to this chat completions request."""
    customs, wanted = custom_tools(document), read_response_format(document)
    if wanted is None:
        return AnswerPlan(None, customs)
    return AnswerPlan(_answer_tool(read_tools(document), read_tool_choice(document), wanted, rules), customs)


def tool_plan(chat: ChatRequest, rules: ModelRules, omissions: Omissions) -> ToolPlan:
    """Tools and structured output. Raises BadRequest for what the model does not support."""
    answer_tool = _answer_tool(chat.tools, chat.tool_choice, chat.response_format, rules)
    tools = [_tool(tool, rules, omissions) for tool in _allowed(chat.tools, chat.tool_choice)]
    choice = _choice(chat.tool_choice, has_tools=bool(tools))
    if answer_tool is not None and chat.response_format is not None:
        is_alone = not tools or choice == {"type": "none"}
        only = {"type": "tool", "name": answer_tool, "disable_parallel_tool_use": True}
        choice = only if is_alone else {"type": "any"}
        schema = chat.response_format.schema
        tools.append({"name": answer_tool, "description": _ANSWER_DESCRIPTION, "input_schema": _object_schema(schema)})
    if choice is not None and choice["type"] in ("any", "tool") and rules.forced_tools == "never":
        omissions.meaning("tool_choice", "This model cannot be made to call a tool; use a tool_choice of 'auto'.")
        choice = {"type": "auto"}
    choice = _one_at_a_time(choice, chat, has_tools=bool(tools))
    if search := _web_search(chat.document):
        tools.append(search)
    if not tools and (tools := _tools_of_the_past(chat)):
        choice = {"type": "none"}
    forces_call = choice is not None and choice["type"] in ("any", "tool")
    return ToolPlan(tools, choice, _format(chat, rules, omissions), forces_call=forces_call)


def _answer_tool(
    tools: Sequence[Tool], choice: ToolChoice | None, wanted: ResponseFormat | None, rules: ModelRules
) -> str | None:
    """The name of the tool that structured output goes through; None when it does not."""
    if wanted is None or wanted.kind != "json_schema" or rules.forced_tools == "never":
        return None
    if rules.structured_output and closed_schema(wanted.schema) is not None:
        return None
    # A call of the client's own tools is wanted, not an answer.
    if choice is not None and (choice.mode in ("required", "named") or choice.required):
        return None
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in wanted.name)[:60] or "answer"
    taken = {tool.name for tool in tools}
    while name in taken:
        name += "_"
    return name


def _format(chat: ChatRequest, rules: ModelRules, omissions: Omissions) -> Document | None:
    wanted = chat.response_format
    if wanted is None or wanted.kind != "json_schema" or not rules.structured_output:
        return None
    schema = closed_schema(wanted.schema)
    if schema is not None:
        return {"type": "json_schema", "schema": schema}
    if rules.forced_tools == "never":
        omissions.meaning(
            "response_format",
            "This model cannot be held to a schema that refers to itself or has objects with free keys.",
        )
    return None


def _tool(tool: Tool, rules: ModelRules, omissions: Omissions) -> Document:
    native: Document = {"name": tool.name}
    if tool.description:
        native["description"] = tool.description
    native["input_schema"] = _object_schema(tool.parameters)
    if tool.strict and rules.structured_output:
        native["strict"] = True
    elif tool.strict:
        omissions.hint("tools.strict")
    if tool.cache_control is not None:
        native["cache_control"] = tool.cache_control
    return native


def _object_schema(schema: Document) -> Document:
    return schema if "type" in schema else {"type": "object", **schema}


def _allowed(tools: Sequence[Tool], choice: ToolChoice | None) -> Sequence[Tool]:
    if choice is None or choice.mode != "allowed":
        return tools
    return [tool for tool in tools if tool.name in choice.names]


def _choice(choice: ToolChoice | None, *, has_tools: bool) -> Document | None:
    if choice is None or not has_tools:
        return None
    match choice.mode:
        case "named":
            return {"type": "tool", "name": choice.names[0]}
        case "required":
            return {"type": "any"}
        case "allowed":
            return {"type": "any" if choice.required else "auto"}
        case "auto" | "none":
            return {"type": choice.mode}


def _one_at_a_time(choice: Document | None, chat: ChatRequest, *, has_tools: bool) -> Document | None:
    parallel = chat.document.get("parallel_tool_calls")
    if parallel is not False or not has_tools or choice == {"type": "none"}:
        return choice
    return {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}


def _tools_of_the_past(chat: ChatRequest) -> list[Document]:
    """Earlier calls are only understood beside their tools, which the client no longer offers."""
    names = dict.fromkeys(call.name for message in chat.messages for call in message.tool_calls)
    return [{"name": name, "input_schema": {"type": "object"}} for name in names]


def _web_search(document: Document) -> Document | None:
    options = document.get("web_search_options")
    if not isinstance(options, dict):
        return None
    size = options.get("search_context_size")
    tool: Document = {"type": "web_search_20250305", "name": "web_search", "max_uses": _SEARCHES.get(str(size), 5)}
    location = options.get("user_location")
    place = location.get("approximate") if isinstance(location, dict) else None
    if isinstance(place, dict):
        tool["user_location"] = {**place, "type": "approximate"}
    return tool
