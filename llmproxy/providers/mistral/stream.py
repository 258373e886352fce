"""Streams from Mistral in OpenAI's form. Chunks that already have it keep their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from llmproxy.dialects.chat_answer import custom_input, model_failed, new_call_id
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.dialects.upstream_events import ObjectEvent, ObjectEvents, cut_short
from llmproxy.providers.mistral.answer import (
    arguments_text,
    finish_reasons,
    given_id,
    split_content,
    thinking_text,
)
from llmproxy.request import Document
from llmproxy.sse import DONE, encode_event


class MistralStream:
    """One streamed answer.

    Args:
        custom_tools: The names of the tools that the client knows as custom ones.
        choices: How many choices the answer will have.
    """

    def __init__(self, custom_tools: frozenset[str], choices: int) -> None:
        self._events = ObjectEvents()
        self._custom_tools = custom_tools
        self._expected = choices
        self._choices: dict[int, _Choice] = {}
        self._base: Document = {}
        self._usage: Document | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events so far. Raises UpstreamBroken for garbage, UpstreamRefused for an error in the stream."""
        for event in self._events.feed(data):
            yield from self._translated(event)

    def finish(self) -> Iterator[bytes]:
        """What is left. Raises UpstreamCut when the answer was not complete."""
        for event in self._events.finish():
            yield from self._translated(event)
        finished = sum(choice.is_finished for choice in self._choices.values())
        if not self._ended and finished < self._expected:
            raise cut_short()
        yield from self._end()

    def _translated(self, event: ObjectEvent) -> Sequence[bytes]:
        if self._ended:
            return ()
        if event.document is None:
            return self._end()
        if error := stated_error(event.document):
            raise error
        return self._chunk(event.raw, event.document)

    def _chunk(self, raw: bytes, document: Document) -> Sequence[bytes]:
        self._base = {name: value for name, value in document.items() if name not in ("choices", "usage")}
        if isinstance(document.get("usage"), dict):
            self._usage = {**(self._usage or {}), **document["usage"]}
        given = document.get("choices")
        choices = [self._choice(choice) for choice in given if isinstance(choice, dict)] if given else []
        if not choices:
            return ()
        chunk = {name: value for name, value in document.items() if name != "usage"} | {"choices": choices}
        return [raw if chunk == document else encode_event(orjson.dumps(chunk))]

    def _choice(self, given: Document) -> Document:
        index = given.get("index")
        choice = self._choices.setdefault(index if isinstance(index, int) else 0, _Choice(self._custom_tools))
        return choice.translated(given)

    def _end(self) -> Sequence[bytes]:
        if self._ended:
            return ()
        self._ended = True
        if self._usage is None:
            return (DONE,)
        return (encode_event(orjson.dumps({**self._base, "choices": [], "usage": self._usage})), DONE)


class _Choice:
    """One choice: which calls it has made, and what of its thinking is signed."""

    def __init__(self, custom_tools: frozenset[str]) -> None:
        self._custom_tools = custom_tools
        self._calls: list[_Call] = []
        self._thinking: list[str] = []
        self._is_open = False
        self.is_finished = False

    def translated(self, choice: Document) -> Document:
        """The choice of one chunk. Raises UpstreamRefused when the model failed."""
        native = choice.get("finish_reason")
        if native == "error":
            raise model_failed()
        delta = self._delta(choice.get("delta"))
        if not native:
            return {**choice, "delta": delta}
        self.is_finished = True
        if calls := [*delta.get("tool_calls", ()), *self._last_arguments()]:
            delta = {**delta, "tool_calls": calls}
        return {**choice, "delta": delta, **finish_reasons(native, has_tools=bool(self._calls))}

    def _delta(self, given: object) -> Document:
        given = given if isinstance(given, dict) else {}
        delta = {name: value for name, value in given.items() if name != "role"}
        if not self._is_open:
            self._is_open = True
            delta = {"role": "assistant", **delta}
        if isinstance(given.get("content"), list):
            delta.pop("content")
            delta.update(self._content(given["content"]))
        calls = given.get("tool_calls")
        if isinstance(calls, list) and calls:
            delta["tool_calls"] = [made for call in calls if isinstance(call, dict) for made in self._call(call)]
        if not delta.get("tool_calls"):
            delta.pop("tool_calls", None)
        return delta

    # Chunks are whatever the vendor sent.
    def _content(self, content: list[Any]) -> Document:
        text, thinking = split_content(content)
        members: Document = {"content": text} if text else {}
        if thought := "".join(map(thinking_text, thinking)):
            members["reasoning_content"] = thought
            self._thinking.append(thought)
        signature = next((chunk["signature"] for chunk in thinking if chunk.get("signature")), None)
        if signature is not None:
            whole = [{"type": "text", "text": "".join(self._thinking)}]
            members["thinking_blocks"] = [{"type": "thinking", "thinking": whole, "signature": signature}]
            self._thinking.clear()
        return members

    def _call(self, given: Document) -> Iterator[Document]:
        """What a piece of a call is to the client: its start, more of its arguments, or nothing as yet."""
        function = given.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = str(function.get("name") or ""), arguments_text(function.get("arguments"))
        call = self._continued(given, name)
        is_new = call is None
        if call is None:
            call = _Call(len(self._calls), given_id(given) or new_call_id(), name, name in self._custom_tools)
            self._calls.append(call)
        call.arguments += arguments
        if call.is_custom:
            return
        if is_new:
            begun = {"name": name, "arguments": arguments}
            yield {"index": call.index, "id": call.id, "type": "function", "function": begun}
        elif arguments:
            yield {"index": call.index, "function": {"arguments": arguments}}

    def _continued(self, given: Document, name: str) -> _Call | None:
        """The call that a piece belongs to: by its id, or without a name the last; None for a new one."""
        known = given_id(given)
        if known is None:
            return None if name or not self._calls else self._calls[-1]
        return next((call for call in self._calls if call.id == known), None)

    def _last_arguments(self) -> Iterator[Document]:
        for call in self._calls:
            if call.is_custom:
                custom = {"name": call.name, "input": custom_input(call.arguments or "{}")}
                yield {"index": call.index, "id": call.id, "type": "custom", "custom": custom}
            elif not call.arguments:
                yield {"index": call.index, "function": {"arguments": "{}"}}


class _Call:
    """One call, as far as it has come."""

    __slots__ = ("arguments", "id", "index", "is_custom", "name")

    def __init__(self, index: int, call_id: str, name: str, is_custom: bool) -> None:  # noqa: FBT001 - only made above
        self.index = index
        self.id = call_id
        self.name = name
        self.is_custom = is_custom
        self.arguments = ""
