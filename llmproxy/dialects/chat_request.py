"""A chat completions request taken apart: what every translation to another vendor's format starts from.

All the forms a client may send (content as text, as parts, as null; legacy functions; custom tools) come out as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from llmproxy.dialects.legacy_functions import FunctionCalls
from llmproxy.dialects.media import Media, media_of
from llmproxy.dialects.tool_calls import ToolCall, read_tool_calls
from llmproxy.errors import BadRequest
from llmproxy.request import Document

Role = Literal["system", "user", "assistant", "tool"]
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# What a custom (free-form) tool becomes where a vendor has only functions: one text argument.
CUSTOM_TOOL_SCHEMA: Final = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
_EMPTY_SCHEMA: Final = {"type": "object", "properties": {}}
# Most messages are a role and a text, in which there is nothing else to look for.
_MEMBERS_OF_A_PLAIN_ONE: Final = 2


# Messages, their parts and tools are not frozen, because many are made for every request: it takes half the time so.
@dataclass(slots=True)
class Part:
    """One piece of content: text, or media (an image, a sound, a file).

    `cache_control` is a prompt-cache mark as the client set it, None when it set none. `path` is where the part
    stands in the request, for errors.
    """

    text: str | None
    path: str
    media: Media | None = None
    cache_control: Document | None = None


@dataclass(slots=True)
class Message:
    """One message.

    `thinking` holds `thinking_blocks` as a client got them and sends them back; `reasoning` is the plain text.
    `extra_content` is what vendors attach to messages and want back, such as thought signatures.
    """

    role: Role
    parts: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...]
    tool_call_id: str | None
    name: str | None
    reasoning: str | None
    thinking: tuple[Document, ...]
    extra_content: Document

    @property
    def text(self) -> str:
        """All text of the message, joined with nothing between."""
        return "".join([part.text for part in self.parts if part.text is not None])


@dataclass(slots=True)
class Tool:
    """A function the model may call; a custom tool comes out as a function with one text argument."""

    name: str
    description: str | None
    parameters: Document
    strict: bool | None = None
    is_custom: bool = False
    cache_control: Document | None = None


class ToolChoice(NamedTuple):
    """`names` are the functions it must be (`named`) or may be (`allowed`, then `required` says whether at all)."""

    mode: Literal["auto", "none", "required", "named", "allowed"]
    names: tuple[str, ...] = ()
    required: bool = False


class ResponseFormat(NamedTuple):
    """What the answer must look like; `schema` is there for `json_schema`, and empty otherwise."""

    kind: Literal["json_object", "json_schema"]
    name: str
    schema: Document
    strict: bool | None = None


@dataclass(slots=True)
class ChatRequest:
    """The request. Scalars that need no taking apart stay in `document`."""

    document: Document
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    tool_choice: ToolChoice | None
    response_format: ResponseFormat | None

    @property
    def max_tokens(self) -> int | None:
        """`max_completion_tokens`, which wins, or `max_tokens`. Raises BadRequest when it is no positive integer."""
        name = "max_tokens" if self.document.get("max_completion_tokens") is None else "max_completion_tokens"
        value = self.document.get(name)
        # A bool is no int here.
        if value is not None and (type(value) is not int or value < 1):
            raise BadRequest(f"'{name}' must be a positive integer.", param=name)
        return value

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop sequences, one or many. Raises BadRequest."""
        value = self.document.get("stop")
        if value is None:
            return ()
        listed = [value] if isinstance(value, str) else value or []
        if not isinstance(listed, list) or [item for item in listed if not isinstance(item, str)]:
            raise BadRequest("'stop' must be a string or a list of strings.", param="stop")
        return tuple(listed)

    @property
    def is_marked(self) -> bool:
        """Whether anything in it has a mark for the prompt cache."""
        for message in self.messages:
            for part in message.parts:
                if part.cache_control is not None:
                    return True
        return bool([tool for tool in self.tools if tool.cache_control is not None])

    def number(self, name: str) -> float | None:
        """A numeric parameter. Raises BadRequest when it is something else."""
        return self.numbers((name,)).get(name)

    def numbers(self, names: Iterable[str]) -> dict[str, float]:
        """Those of these parameters that the request sets. Raises BadRequest when one is no number."""
        given: dict[str, float] = {}
        if self.document.keys().isdisjoint(names):
            return given
        for name in names:
            value = self.document.get(name)
            if value is None:
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise BadRequest(f"'{name}' must be a number.", param=name)
            given[name] = value
        return given


def read_chat_request(document: Document) -> ChatRequest:
    """Take a request apart. Raises BadRequest naming the member that is wrong."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list with at least one message.", param="messages")
    functions = FunctionCalls()
    return ChatRequest(
        document,
        tuple([_message(message, number, functions) for number, message in enumerate(messages)]),
        read_tools(document),
        read_tool_choice(document),
        read_response_format(document),
    )


# Messages


def leading_instructions(messages: Sequence[Message]) -> int:
    """How many messages of the system stand before all others."""
    for number, message in enumerate(messages):
        if message.role != "system":
            return number
    return len(messages)


def _message(message: object, number: int, functions: FunctionCalls) -> Message:
    if not isinstance(message, dict) or (role := _ROLES.get(str(message.get("role")))) is None:
        raise BadRequest(f"'messages[{number}]' must be a message with a known role.", param=f"messages[{number}]")
    content = message.get("content")
    if isinstance(content, str) and len(message) == _MEMBERS_OF_A_PLAIN_ONE and role != "tool":
        return Message(role, (Part(content, f"messages[{number}].content"),), (), None, None, None, (), {})
    message, path = functions.as_tool_calls(message), f"messages[{number}]"
    if message.get("audio"):
        sentence = f"'{path}.audio' names an earlier answer's sound, which only the vendor that made it has."
        raise BadRequest(sentence, code="unsupported_parameter", param=f"{path}.audio")
    thinking = message.get("thinking_blocks")
    reasoning = message.get("reasoning_content")
    extra = message.get("extra_content")
    return Message(
        role,
        _parts(message, path),
        read_tool_calls(message, path),
        _tool_call_id(message, path) if role == "tool" else None,
        _optional_text(message, "name", path),
        reasoning if isinstance(reasoning, str) else None,
        tuple(block for block in thinking if isinstance(block, dict)) if isinstance(thinking, list) else (),
        extra if isinstance(extra, dict) else {},
    )


def _parts(message: Document, path: str) -> tuple[Part, ...]:
    content, refusal = message.get("content"), message.get("refusal")
    parts: tuple[Part, ...] = ()
    if isinstance(content, str):
        parts = (Part(content, f"{path}.content", None, _mark(message)),)
    elif isinstance(content, list):
        parts = _listed_parts(content, message, path)
    elif content is not None:
        raise BadRequest(f"'{path}.content' must be text or a list of parts.", param=f"{path}.content")
    return (*parts, Part(refusal, f"{path}.refusal")) if isinstance(refusal, str) else parts


def _listed_parts(content: Sequence[object], message: Document, path: str) -> tuple[Part, ...]:
    parts = [_part(part, f"{path}.content[{number}]") for number, part in enumerate(content)]
    # A mark on the message is one on its end.
    if parts and parts[-1].cache_control is None:
        parts[-1] = replace(parts[-1], cache_control=_mark(message))
    return tuple(parts)


def _part(part: object, path: str) -> Part:
    if isinstance(part, str):
        return Part(part, path)
    if not isinstance(part, dict):
        raise BadRequest(f"'{path}' must be a content part.", param=path)
    kind = part.get("type")
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return Part(part[kind], path, cache_control=_mark(part))
    return Part(None, path, media_of(part, path), _mark(part))


def _mark(holder: Document) -> Document | None:
    """`cache_control` in Anthropic's form, or OpenAI's `prompt_cache_breakpoint` as the same thing."""
    mark = holder.get("cache_control")
    if isinstance(mark, dict):
        return mark
    return {"type": "ephemeral"} if isinstance(holder.get("prompt_cache_breakpoint"), dict) else None


def _tool_call_id(message: Document, path: str) -> str:
    if not isinstance(message.get("tool_call_id"), str):
        raise BadRequest(
            f"'{path}.tool_call_id' must name the call this is the result of.", param=f"{path}.tool_call_id"
        )
    return str(message["tool_call_id"])


def _optional_text(holder: Document, name: str, path: str) -> str | None:
    value = holder.get(name)
    if value is None or isinstance(value, str):
        return value
    raise BadRequest(f"'{path}.{name}' must be text.", param=f"{path}.{name}")


# Tools and format


def read_tools(document: Document) -> tuple[Tool, ...]:
    """The tools of a request, legacy functions among them. Raises BadRequest."""
    tools: list[Tool] = []
    if document.get("tools"):
        tools += [_tool(tool, f"tools[{number}]") for number, tool in enumerate(_listed(document, "tools"))]
    if document.get("functions"):
        functions = [{"type": "function", "function": function} for function in _listed(document, "functions")]
        tools += [_tool(tool, f"functions[{number}]") for number, tool in enumerate(functions)]
    return tuple(tools)


def custom_tools(document: Document) -> frozenset[str]:
    """The names of a request's custom tools, whose calls are answered as such. Raises BadRequest."""
    given = _listed(document, "tools") if document.get("tools") else ()
    if not [tool for tool in given if isinstance(tool, dict) and tool.get("type") == "custom"]:
        return frozenset()
    return frozenset([tool.name for tool in read_tools(document) if tool.is_custom])


def _listed(document: Document, name: str) -> Sequence[object]:
    listed = document[name]
    if not isinstance(listed, list):
        raise BadRequest(f"'{name}' must be a list.", param=name)
    return listed


def _tool(tool: object, path: str) -> Tool:
    given: Document = tool if isinstance(tool, dict) else {}
    kind = given.get("type")
    inner = given.get(kind) if kind in ("function", "custom") else None
    if not isinstance(inner, dict) or not isinstance(name := inner.get("name"), str):
        raise BadRequest(f"'{path}' must be a function or a custom tool with a name.", param=path)
    mark = _mark(given)
    description = _optional_text(inner, "description", path)
    if kind == "custom":
        return Tool(name, description, CUSTOM_TOOL_SCHEMA, is_custom=True, cache_control=mark)
    parameters = inner.get("parameters")
    strict = inner.get("strict")
    return Tool(
        name,
        description,
        parameters if isinstance(parameters, dict) and parameters else _EMPTY_SCHEMA,
        strict if isinstance(strict, bool) else None,
        cache_control=mark,
    )


def read_tool_choice(document: Document) -> ToolChoice | None:
    """How tools are to be used; None when the request does not say. Raises BadRequest."""
    choice = document.get("tool_choice", document.get("function_call"))
    match choice:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools]}}:
            return ToolChoice("allowed", tuple(_names(tools)), required=mode == "required")
        case {"function": {"name": str(name)}} | {"custom": {"name": str(name)}} | {"name": str(name)}:
            return ToolChoice("named", (name,))
        case _:
            raise BadRequest("'tool_choice' is not one that is known.", param="tool_choice")


def _names(tools: Sequence[Any]) -> Iterator[str]:  # whatever the client put into the list
    for tool in tools:
        match tool:
            case {"function": {"name": str(name)}} | {"custom": {"name": str(name)}} | {"name": str(name)}:
                yield name
            case _:
                raise BadRequest("'tool_choice' names a tool of an unknown form.", param="tool_choice")


def read_response_format(document: Document) -> ResponseFormat | None:
    """What the answer must look like; None when it may be any text. Raises BadRequest."""
    match document.get("response_format"):
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return ResponseFormat("json_object", "response", {})
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **rest}}:
            strict = rest.get("strict")
            name = rest.get("name")
            return ResponseFormat(
                "json_schema",
                name if isinstance(name, str) else "response",
                schema,
                strict if isinstance(strict, bool) else None,
            )
        case _:
            raise BadRequest("'response_format' is not one that is known.", param="response_format")
