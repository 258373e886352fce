"""Answers from Mistral in OpenAI's form: content in chunks, calls without ids, and finish reasons of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from llmproxy.dialects.chat_answer import custom_input, model_failed, new_call_id
from llmproxy.errors import UpstreamBroken
from llmproxy.request import Document

# Mistral's own words stand beside, as `native_finish_reason`, where they are lost.
_FINISH_REASONS: Final = {"stop": "stop", "length": "length", "model_length": "length", "tool_calls": "tool_calls"}


def translated_answer(document: Document, custom_tools: frozenset[str]) -> Document:
    """A whole answer. Raises UpstreamBroken when it is none, UpstreamRefused when the model failed."""
    choices = document.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamBroken("The provider's answer holds no choices.")
    return {
        **document,
        "object": "chat.completion",
        "choices": [_choice(choice, custom_tools) for choice in choices],
    }


def _choice(choice: Document, custom_tools: frozenset[str]) -> Document:
    given = choice.get("message")
    message = translated_message(given if isinstance(given, dict) else {}, custom_tools)
    has_output = bool(message.get("content") or message.get("tool_calls"))
    finish = finish_reasons(choice.get("finish_reason"), has_tools=bool(message.get("tool_calls")))
    if choice.get("finish_reason") == "error" and not has_output:
        raise model_failed()
    return {**choice, "message": message, **finish}


def finish_reasons(native: object, *, has_tools: bool) -> Document:
    """The members that say why the model stopped; what it calls `error` is told apart by the caller."""
    known = _FINISH_REASONS.get(native) if isinstance(native, str) else None
    if known is None or known == "stop":
        known = "tool_calls" if has_tools else "stop"
    return {"finish_reason": known} if native == known else {"finish_reason": known, "native_finish_reason": native}


def translated_message(message: Document, custom_tools: frozenset[str]) -> Document:
    """A message of the assistant: text as text, thinking beside it, calls as OpenAI has them."""
    answered = {**message, "role": "assistant"}
    content = message.get("content")
    if isinstance(content, list):
        text, thinking = split_content(content)
        answered["content"] = text or (None if message.get("tool_calls") else "")
        if thought := "".join(map(thinking_text, thinking)):
            answered["reasoning_content"] = thought
        if any(chunk.get("signature") for chunk in thinking):
            answered["thinking_blocks"] = thinking
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        answered["tool_calls"] = [_call(call, custom_tools) for call in calls if isinstance(call, dict)]
    else:
        answered.pop("tool_calls", None)
    return answered


# Chunks are whatever the vendor sent.
def split_content(content: list[Any]) -> tuple[str, list[Document]]:
    """The text of a list of chunks, joined, and its chunks of thinking."""
    chunks = [chunk for chunk in content if isinstance(chunk, dict)]
    texts = (chunk.get("text") for chunk in chunks if chunk.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str)), [
        chunk for chunk in chunks if chunk.get("type") == "thinking"
    ]


def thinking_text(chunk: Document) -> str:
    """The text of a chunk of thinking, which is text or again a list of chunks."""
    thinking = chunk.get("thinking")
    if isinstance(thinking, str):
        return thinking
    return "".join(_texts(thinking)) if isinstance(thinking, list) else ""


def arguments_text(arguments: object) -> str:
    """A call's arguments as JSON text; "" when there are none."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else orjson.dumps(arguments).decode()


def given_id(call: Document) -> str | None:
    """A call's id; None when it has none, for which Mistral also writes "null"."""
    known = call.get("id")
    return known if isinstance(known, str) and known not in ("", "null") else None


def _texts(chunks: list[Any]) -> Iterator[str]:
    for chunk in chunks:
        if isinstance(chunk, dict) and isinstance(chunk.get("text"), str):
            yield chunk["text"]


def _call(call: Document, custom_tools: frozenset[str]) -> Document:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    name, arguments = str(function.get("name") or ""), arguments_text(function.get("arguments")) or "{}"
    known = given_id(call) or new_call_id()
    if name in custom_tools:
        return {"id": known, "type": "custom", "custom": {"name": name, "input": custom_input(arguments)}}
    rest = {name: value for name, value in call.items() if name != "index"}
    return {**rest, "id": known, "type": "function", "function": {**function, "name": name, "arguments": arguments}}
