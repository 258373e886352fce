"""`functions`, the older form of tools: one `function_call` instead of tool calls, in requests and in answers.

A vendor's translation reads functions as tools, and its answer holds tool calls; here they are turned back. Such a
client makes one call at a time: of parallel ones it gets the first, and the model asks for the others again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from llmproxy.dialects.objects import objects_in
from llmproxy.dialects.upstream_events import ObjectEvent, ObjectEvents
from llmproxy.request import Document
from llmproxy.sse import encode_event

# Every event that holds a tool call, or says that there were some, holds this.
_MARKER: Final = b'"tool_calls"'


class FunctionCalls:
    """The legacy function calls of one conversation, as tool calls: each gets an id, which its result then names."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def as_tool_calls(self, message: Document) -> Document:
        """The next message, with tool calls; the same object when it holds no function call, nor the result of one."""
        if message.get("role") == "function":
            return {**message, "tool_call_id": f"call_{self._count}"}
        function = message.get("function_call")
        if not isinstance(function, dict) or message.get("tool_calls"):
            return message
        self._count += 1
        call = {"id": f"call_{self._count}", "function": function, "extra_content": function.get("extra_content")}
        return {**message, "tool_calls": [call]}


def uses_functions(request: Document) -> bool:
    """Whether the client that made a request knows functions and no tools."""
    return bool(request.get("functions")) and not request.get("tools")


def with_function_calls(completion: Document) -> Document:
    """A chat completion with function calls in place of tool calls; the same object when it holds none."""
    choices = objects_in(completion.get("choices"))
    turned = [_choice(choice, "message") for choice in choices]
    return completion if turned == choices else {**completion, "choices": turned}


def function_call_events(events: Iterable[bytes]) -> Iterator[bytes]:
    """Chat completion chunks with function calls in place of tool calls; all other events keep their bytes."""
    for event in events:
        if event.find(_MARKER) < 0:
            yield event
        else:
            yield b"".join(_event(each) for each in ObjectEvents().feed(event))


def _event(event: ObjectEvent) -> bytes:
    if event.document is None:
        return event.raw
    choices = objects_in(event.document.get("choices"))
    turned = [_choice(choice, "delta") for choice in choices if not _is_for_others(choice)]
    if turned == choices:
        return event.raw
    return encode_event(orjson.dumps({**event.document, "choices": turned})) if turned else b""


def _is_for_others(choice: Document) -> bool:
    """Whether a chunk's choice holds nothing but pieces of calls after the first."""
    delta = choice.get("delta")
    if not isinstance(delta, dict) or choice.get("finish_reason") is not None:
        return False
    return delta.keys() == {"tool_calls"} and _first_call(delta) is None


def _choice(choice: Document, holder: str) -> Document:
    turned = {**choice}
    if isinstance(choice.get(holder), dict):
        turned[holder] = _message(choice[holder])
    if choice.get("finish_reason") == "tool_calls":
        turned["finish_reason"] = "function_call"
    return turned


def _message(message: Document) -> Document:
    if not message.get("tool_calls"):
        return message
    turned = {name: value for name, value in message.items() if name != "tool_calls"}
    call = _first_call(message)
    if call is not None:
        turned["function_call"] = call["function"]
        if call.get("extra_content"):
            # What a vendor wants back with the call, such as a signature, has no other place.
            turned["function_call"] = {**call["function"], "extra_content": call["extra_content"]}
    return turned


# The values are whatever the provider sent.
def _first_call(message: Document) -> Any:
    calls = (call for call in objects_in(message.get("tool_calls")) if isinstance(call.get("function"), dict))
    return next((call for call in calls if call.get("index", 0) == 0), None)
