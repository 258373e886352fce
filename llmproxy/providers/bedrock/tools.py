"""Tools and what the model must do with them, as Converse's toolConfig; structured answers through a tool."""

from __future__ import annotations

import re
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
from llmproxy.providers.anthropic.schemas import closed_schema
from llmproxy.providers.anthropic.tools import AnswerPlan
from llmproxy.providers.bedrock.blocks import BlockWriter
from llmproxy.providers.bedrock.models import ModelRules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

_ANSWER_DESCRIPTION: Final = "Give the final answer as the arguments of this tool."
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")
_MAX_ANSWER_NAME: Final = 60
_AUTO: Final[Document] = {"auto": {}}
_ANY: Final[Document] = {"any": {}}


@dataclass(slots=True)
class ToolPlan:
    """What has to do with tools and the form of the answer.

    Attributes:
        config: toolConfig, empty when the model gets no tools.
        own_fields: What goes to the model itself because Converse has no word for it.
        schema: What the text of the answer is held to; None when it is not.
    """

    config: Document
    own_fields: Document
    schema: Document | None = None

    @property
    def forces_call(self) -> bool:
        """Whether the model has no choice but to call a tool."""
        return "toolChoice" in self.config


def answer_plan(document: Document, rules: ModelRules) -> AnswerPlan:
    """What to turn back in the answer to this chat completions request."""
    customs, wanted = custom_tools(document), read_response_format(document)
    if wanted is None:
        return AnswerPlan(None, customs)
    return AnswerPlan(_answer_tool(read_tools(document), read_tool_choice(document), wanted, rules), customs)


def tool_plan(chat: ChatRequest, rules: ModelRules, writer: BlockWriter, omissions: Omissions) -> ToolPlan:
    """The tools of a request, and one for its structured answer where the model has no other way.

    Raises BadRequest when the model cannot be made to do what is asked.
    """
    tools = _offered(chat, rules)
    answer_tool = _answer_tool(chat.tools, chat.tool_choice, chat.response_format, rules)
    choice = _choice(chat.tool_choice, rules, omissions) if tools else _AUTO
    if answer_tool is not None and chat.response_format is not None:
        choice = _forced(answer_tool, rules, omissions, "response_format", is_alone=not tools)
        tools.append(Tool(answer_tool, _ANSWER_DESCRIPTION, chat.response_format.schema))
    schema = _output_schema(chat.response_format, rules) if answer_tool is None else None
    if not tools:
        return ToolPlan({}, {}, schema)
    config: Document = {"tools": [block for tool in tools for block in _blocks(tool, rules, writer, omissions)]}
    if choice is not _AUTO:
        config["toolChoice"] = choice
    return ToolPlan(config, _one_at_a_time(chat, rules, omissions, choice), schema)


def _answer_tool(
    tools: Sequence[Tool], choice: ToolChoice | None, wanted: ResponseFormat | None, rules: ModelRules
) -> str | None:
    """The name of the tool that a structured answer goes through; None when it does not."""
    if wanted is None or wanted.kind != "json_schema" or _output_schema(wanted, rules) is not None:
        return None
    # A call of the client's own tools is wanted, not an answer.
    if choice is not None and (choice.mode in ("required", "named") or choice.required):
        return None
    name = _NOT_IN_NAMES.sub("_", wanted.name)[:_MAX_ANSWER_NAME] or "answer"
    taken = {tool.name for tool in tools}
    while name in taken:
        name += "_"
    return name


def _output_schema(wanted: ResponseFormat | None, rules: ModelRules) -> Document | None:
    """The schema in the form that output formats ask for; None when the model, or the schema, is not one for that."""
    if wanted is None or wanted.kind != "json_schema" or not rules.has_output_format:
        return None
    return closed_schema(wanted.schema)


def _offered(chat: ChatRequest, rules: ModelRules) -> list[Tool]:
    choice = chat.tool_choice
    if choice is None:
        return [*chat.tools]
    if choice.mode == "none":
        # There is no such choice: what must not be called must not be offered.
        return []
    # A model that cannot be told which tool to call gets only that one.
    is_only = choice.mode == "named" and "tool" not in rules.tool_choices
    return [tool for tool in chat.tools if not (is_only or choice.mode == "allowed") or tool.name in choice.names]


def _choice(choice: ToolChoice | None, rules: ModelRules, omissions: Omissions) -> Document:
    if choice is None:
        return _AUTO
    match choice:
        case ToolChoice(mode="named", names=(name,)):
            return _forced(name, rules, omissions, "tool_choice", is_alone=True)
        case ToolChoice(mode="required") | ToolChoice(mode="allowed", required=True):
            return _forced("", rules, omissions, "tool_choice", is_alone=False)
        case _:
            return _AUTO


def _forced(name: str, rules: ModelRules, omissions: Omissions, parameter: str, *, is_alone: bool) -> Document:
    """The choice that makes the model call a tool: this one, or any of several. Raises BadRequest."""
    if is_alone and "tool" in rules.tool_choices:
        return {"tool": {"name": name}}
    if "any" in rules.tool_choices:
        return _ANY
    omissions.meaning(
        parameter, "This model cannot be made to call a tool; use a tool_choice of 'auto', and no schema."
    )
    return _AUTO


def _blocks(tool: Tool, rules: ModelRules, writer: BlockWriter, omissions: Omissions) -> tuple[Document, ...]:
    specification: Document = {"name": tool.name}
    if tool.description:
        specification["description"] = tool.description
    specification["inputSchema"] = {"json": tool.parameters if "type" in tool.parameters else _typed(tool.parameters)}
    if tool.strict and rules.has_output_format:
        specification["strict"] = True
    elif tool.strict:
        omissions.hint("tools.strict")
    block = {"toolSpec": specification}
    return (block,) if tool.cache_control is None else (block, *writer.cache_point("tools", tool.cache_control))


def _typed(schema: Document) -> Document:
    return {"type": "object", **schema}


def _one_at_a_time(chat: ChatRequest, rules: ModelRules, omissions: Omissions, choice: Document) -> Document:
    if chat.document.get("parallel_tool_calls") is not False:
        return {}
    if rules.claude is None:
        omissions.hint("parallel_tool_calls")
        return {}
    # Claude's own tool_choice needs a type, and must not have one beside a toolChoice.
    kind = {"type": "auto"} if choice == _AUTO else {}
    return {"tool_choice": {**kind, "disable_parallel_tool_use": True}}
