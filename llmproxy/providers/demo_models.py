"""What the demo models say: a pure function of the request, so that everybody sees the same answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from llmproxy.errors import BadRequest
from llmproxy.providers.demo_schema import example_of
from llmproxy.request import Document

_TOKEN: Final = re.compile(r"\s*\S{1,12}|\s+")
_MAX_CHOICES: Final = 128
STORY: Final = " ".join(
    f"On day {day} the little gateway carried one more question over the hills and came home with its answer."
    for day in range(1, 25)
)


@dataclass(frozen=True, slots=True)
class Speech:
    """What a model says, in tokens. A tool call is a name and its arguments as JSON."""

    text: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    tool_call: tuple[str, str] | None = None
    finish_reason: str = "stop"

    @property
    def output_tokens(self) -> int:
        """All tokens, reasoning and tool calls included."""
        called = len(tokens("".join(self.tool_call))) if self.tool_call else 0
        return len(self.text) + len(self.reasoning) + called


def tokens(text: str) -> tuple[str, ...]:
    """`text` in pieces of a word each; joined, they are the text again."""
    return tuple(_TOKEN.findall(text))


def prompts_of(document: Document) -> list[str]:
    """What is to be answered: the last user message, or each prompt of a text completion."""
    if "messages" in document:
        return [_last_user_text(document["messages"])]
    prompt = document.get("prompt", "")
    if isinstance(prompt, list) and prompt and all(isinstance(each, str) for each in prompt):
        return prompt
    return [prompt if isinstance(prompt, str) else orjson.dumps(prompt).decode()]


def input_tokens_of(document: Document) -> int:
    """The size of the prompt, all messages included."""
    if "messages" not in document:
        return sum(len(tokens(prompt)) for prompt in prompts_of(document))
    messages = document["messages"]
    return sum(3 + len(tokens(_text_of(message))) for message in messages) if isinstance(messages, list) else 0


def speeches(model: str, document: Document) -> list[Speech]:
    """One speech for each choice asked for. Raises BadRequest as a vendor would."""
    speak = MODELS[model]
    copies = whole_number(document, "n", 1, at_most=_MAX_CHOICES)
    return [_held_to(document, speak(prompt, document)) for prompt in prompts_of(document) for _ in range(copies)]


def whole_number(document: Document, name: str, default: int, *, at_most: int) -> int:
    """A positive integer parameter. Raises BadRequest when it is something else, or over `at_most`."""
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= at_most:
        raise BadRequest(f"'{name}' must be a whole number from 1 to {at_most}.", param=name, code="invalid_value")
    return value


def _echo(prompt: str, _document: Document) -> Speech:
    return Speech(tokens(prompt))


def _story(_prompt: str, _document: Document) -> Speech:
    return Speech(tokens(STORY))


def _reasoning(prompt: str, _document: Document) -> Speech:
    thought = f"The user said: {prompt} I could think about that for long, but the best answer is to say it back."
    return Speech(tokens(prompt), reasoning=tokens(thought))


def _tools(prompt: str, document: Document) -> Speech:
    function = _function_to_call(document)
    if function is None:
        return Speech(tokens(f"The tool said: {_last_tool_text(document)}" if _is_after_tool(document) else prompt))
    arguments = orjson.dumps(example_of(function.get("parameters", {"type": "object"})))
    return Speech(tool_call=(str(function.get("name")), arguments.decode()), finish_reason="tool_calls")


def _json(prompt: str, document: Document) -> Speech:
    wanted = document.get("response_format")
    described = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if isinstance(described, dict):
        return Speech(tokens(orjson.dumps(example_of(described.get("schema"))).decode()))
    return Speech(tokens(orjson.dumps({"answer": prompt}).decode()))


# The models that answer; how the others fail or dawdle is the script's business.
MODELS: Final[Mapping[str, Callable[[str, Document], Speech]]] = {
    "echo": _echo,
    "story": _story,
    "tools": _tools,
    "json": _json,
    "reasoning": _reasoning,
    "slow": _story,
    "slow-first-byte": _echo,
    "cut-after": _story,
}


def _held_to(document: Document, speech: Speech) -> Speech:
    """The speech up to the first stop sequence, and no longer than allowed."""
    text = speech.text
    if end := _stop_position("".join(text), document.get("stop")):
        text = tokens("".join(text)[: end - 1])
    default = len(text) + len(speech.reasoning)
    name = "max_completion_tokens" if document.get("max_completion_tokens") is not None else "max_tokens"
    limit = whole_number(document, name, max(default, 1), at_most=10_000_000)
    if speech.tool_call or limit >= default:
        return Speech(text, speech.reasoning, speech.tool_call, speech.finish_reason)
    reasoning = speech.reasoning[:limit]
    return Speech(text[: limit - len(reasoning)], reasoning, None, "length")


def _stop_position(text: str, stop: object) -> int:
    """Where the first stop sequence begins, counted from 1; 0 when there is none."""
    sequences = stop if isinstance(stop, list) else [stop]
    found = [text.find(each) + 1 for each in sequences if isinstance(each, str) and each]
    return min((position for position in found if position), default=0)


# What a request holds is whatever the client sent, so messages and tools are `Any` here.


def _text_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _of_role(messages: Any, role: str) -> Iterator[str]:
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == role:
            yield _text_of(message)


def _last_user_text(messages: Any) -> str:
    return next(_of_role(messages, "user"), "")


def _last_tool_text(document: Document) -> str:
    return next(_of_role(document.get("messages"), "tool"), "")


def _is_after_tool(document: Document) -> bool:
    messages = document.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "tool"


def _function_to_call(document: Document) -> dict[str, Any] | None:
    """The function the client insists on, else the first; none after a tool's answer, so that loops end."""
    tools, choice = document.get("tools"), document.get("tool_choice")
    if not isinstance(tools, list) or choice == "none" or _is_after_tool(document):
        return None
    wanted = _function_in(choice)
    name = wanted.get("name") if wanted else None
    functions = (function for tool in tools if (function := _function_in(tool)) is not None)
    return next((function for function in functions if name in (None, function.get("name"))), None)


def _function_in(item: Any) -> dict[str, Any] | None:
    function = item.get("function") if isinstance(item, dict) else None
    return function if isinstance(function, dict) else None
