"""Streams from Cohere's v2 API as chat completion chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from llmproxy.dialects.chat_answer import AnsweredCall, AnswerIdentity, ChunkWriter, custom_input, new_call_id
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.dialects.upstream_events import ObjectEvent, ObjectEvents, cut_short
from llmproxy.errors import UpstreamBroken
from llmproxy.providers.cohere.answer import (
    cited,
    failed,
    finish_reason,
    inner,
    is_failure,
    logprobs,
    objects,
    text_of,
    usage_of,
)
from llmproxy.request import Document


class CohereStream:
    """One streamed answer.

    Args:
        custom_tools: The names of the tools that the client knows as custom ones.
    """

    def __init__(self, identity: AnswerIdentity, custom_tools: frozenset[str]) -> None:
        self._events = ObjectEvents()
        self._writer = ChunkWriter(identity)
        self._custom_tools = custom_tools
        self._calls: dict[int, _Call] = {}
        self._characters = 0
        self._starts: dict[int, int] = {}
        self._ended = False
        self._handlers: Final[Mapping[str, Callable[[Document], Iterator[bytes]]]] = {
            "content-start": self._content,
            "content-delta": self._content,
            "tool-plan-delta": self._plan,
            "tool-call-start": self._call_start,
            "tool-call-delta": self._call_delta,
            "tool-call-end": self._call_end,
            "citation-start": self._citation,
            "message-end": self._end,
        }

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events so far. Raises UpstreamBroken for garbage, UpstreamRefused for an error in the stream."""
        for event in self._events.feed(data):
            yield from self._translated(event)

    def finish(self) -> Iterator[bytes]:
        """What is left. Raises UpstreamCut when the answer was not complete."""
        for event in self._events.finish():
            yield from self._translated(event)
        if not self._ended:
            raise cut_short()

    def _translated(self, event: ObjectEvent) -> Iterator[bytes]:
        document = event.document
        if document is None or self._ended:
            return
        if error := stated_error(document):
            raise error
        if handler := self._handlers.get(text_of(document, "type")):
            yield from handler(document)

    def _content(self, event: Document) -> Iterator[bytes]:
        content = inner(_message(event), "content")
        index = _index(event)
        self._starts.setdefault(index, self._characters)
        if thought := text_of(content, "thinking"):
            yield self._writer.reasoning(thought)
        if text := text_of(content, "text"):
            self._characters += len(text)
            yield self._writer.text(text)
        if items := objects(event.get("logprobs")):
            yield self._writer.logprobs(logprobs(items))

    def _plan(self, event: Document) -> Iterator[bytes]:
        if plan := text_of(_message(event), "tool_plan"):
            self._characters += len(plan)
            yield self._writer.text(plan)

    def _call_start(self, event: Document) -> Iterator[bytes]:
        for given in objects(_message(event).get("tool_calls")):
            function = inner(given, "function")
            name = text_of(function, "name")
            answered = AnsweredCall(text_of(given, "id") or new_call_id(), name, "", name in self._custom_tools)
            call = self._calls[_index(event)] = _Call(answered, self._writer.tool_count)
            if not answered.is_custom:
                yield self._writer.tool_start(answered.id, name)
            yield from self._more(call, text_of(function, "arguments"))

    def _call_delta(self, event: Document) -> Iterator[bytes]:
        call = self._calls.get(_index(event))
        for given in objects(_message(event).get("tool_calls")):
            if call is None:
                raise UpstreamBroken("The provider sent a piece of a tool call that it never began.")
            yield from self._more(call, text_of(inner(given, "function"), "arguments"))

    def _more(self, call: _Call, fragment: str) -> Iterator[bytes]:
        call.answered.arguments += fragment
        if fragment and not call.answered.is_custom:
            yield self._writer.tool_arguments(call.index, fragment)

    def _call_end(self, event: Document) -> Iterator[bytes]:
        if call := self._calls.pop(_index(event), None):
            yield from self._close(call)

    def _close(self, call: _Call) -> Iterator[bytes]:
        answered = call.answered
        if answered.is_custom:
            yield self._writer.custom_call(answered.id, answered.name, custom_input(answered.arguments or "{}"))
        elif not answered.arguments:
            yield self._writer.tool_arguments(call.index, "{}")

    def _citation(self, event: Document) -> Iterator[bytes]:
        for citation in objects(_message(event).get("citations")):
            if found := list(cited(citation, self._starts)):
                yield self._writer.delta(annotations=found)

    def _end(self, event: Document) -> Iterator[bytes]:
        delta = inner(event, "delta")
        native, error = delta.get("finish_reason"), text_of(delta, "error")
        if error or is_failure(native):
            raise failed(native, error)
        for call in self._calls.values():
            yield from self._close(call)
        self._ended = True
        reason, own = finish_reason(native, has_tools=self._writer.tool_count > 0)
        yield self._writer.finish(reason, own)
        yield self._writer.end(usage_of(delta.get("usage")))


class _Call:
    """One call that has begun, and its number among the calls."""

    __slots__ = ("answered", "index")

    def __init__(self, answered: AnsweredCall, index: int) -> None:
        self.answered = answered
        self.index = index


def _message(event: Document) -> Document:
    return inner(inner(event, "delta"), "message")


def _index(event: Document) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0
