"""A streamed answer of the Responses API as chat completion chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from llmproxy.dialects.chat_answer import ChunkWriter
from llmproxy.dialects.objects import objects_in
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.dialects.upstream_events import ObjectEvents, cut_short
from llmproxy.errors import UpstreamBroken
from llmproxy.providers.responses.answer import (
    PARAGRAPH,
    answer_identity,
    call_id,
    call_name,
    citations,
    failure,
    finish_reason,
    logprobs,
    members_of_the_whole,
    phase,
    response_usage,
    stated_failure,
    text_of,
)
from llmproxy.providers.responses.reasoning import reasoning_texts, thinking_block
from llmproxy.request import Document


@dataclass(slots=True)
class _Item:
    """An output item while it is open.

    `native` is the item as it was announced. `sent` says how much of each of its texts the client already has, by
    the text's member and place, and `starts` where in the joined text of the answer each part began. `call_index`
    counts the client's tools; None for what is no function call.
    """

    native: Document
    call_index: int | None = None
    sent: dict[tuple[str, str], int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)


class ResponseEvents:
    """Turns the events of one answer into chunks, event by event.

    What a delta has not brought, the end of its item brings: some servers send no deltas.

    Args:
        issuer: Who can read the answer's reasoning again.
        model: Stands in where the answer names none.
        created: Unix seconds, which stand in likewise.

    Attributes:
        is_complete: The answer has come to its end.
    """

    def __init__(self, issuer: str, model: str, created: int) -> None:
        self._issuer = issuer
        self._model = model
        self._created = created
        self._writer: ChunkWriter | None = None
        self._items: dict[str, _Item] = {}
        self._is_empty = True
        self._text_length = 0
        self._has_spoken = False
        self._has_thought = False
        self._thinking_count = 0
        self.is_complete = False
        self._handlers: Mapping[str, Callable[[Document], Iterator[bytes]]] = {
            "response.created": self._start,
            "response.output_item.added": self._open,
            "response.output_text.delta": self._text_delta,
            "response.refusal.delta": self._refusal_delta,
            "response.reasoning_summary_text.delta": self._summary_delta,
            "response.reasoning_text.delta": self._reasoning_delta,
            "response.function_call_arguments.delta": self._arguments_delta,
            "response.output_item.done": self._close,
            "response.completed": self._finish,
            "response.incomplete": self._finish,
            "response.failed": self._finish,
            "error": self._fail,
        }

    def take(self, event: Document) -> Iterator[bytes]:
        """The chunks for one event. Raises UpstreamRefused for an error, UpstreamBroken for what makes no sense."""
        handler = self._handlers.get(str(event.get("type")))
        if handler is None and (error := stated_error(event)):
            raise error
        # What says again what has been said, and what a later API may add.
        if handler is None or self.is_complete:
            return
        yield from handler(event)

    # The answer

    def _start(self, event: Document) -> Iterator[bytes]:
        if self._writer is not None:
            raise UpstreamBroken("The provider's stream began twice.")
        self._writer = ChunkWriter(answer_identity(_member(event, "response"), self._model, self._created))
        yield self._writer.delta()

    def _finish(self, event: Document) -> Iterator[bytes]:
        response = _member(event, "response")
        if error := failure(response):
            raise error
        output = objects_in(response.get("output"))
        if self._is_empty:
            for number, unannounced in enumerate(output):
                yield from self._close({"output_index": number, "item": unannounced})
        last = {str(number): native for number, native in enumerate(output)}
        for index, item in list(self._items.items()):
            yield from self._close({"output_index": index, "item": last.get(index, item.native)})
        self.is_complete = True
        reason, native_reason = finish_reason(response, has_calls=self._out.tool_count > 0)
        yield self._out.finish(reason, native_reason, dict(members_of_the_whole(response)))
        yield self._out.end(response_usage(response))

    def _fail(self, event: Document) -> Iterator[bytes]:
        """An error event: its members stand in it, or in an object of their own."""
        inner = event.get("error")
        stated = inner if isinstance(inner, dict) else {name: event.get(name) for name in ("code", "message", "param")}
        raise stated_failure(stated)

    # Items

    def _open(self, event: Document) -> Iterator[bytes]:
        native, index = _member(event, "item"), str(event.get("output_index"))
        if index in self._items:
            raise UpstreamBroken("The provider's stream opened an item twice.")
        item = self._items[index] = _Item(native)
        self._is_empty = False
        if native.get("type") == "function_call":
            item.call_index = self._out.tool_count
            yield self._out.tool_start(call_id(native), call_name(native))

    def _close(self, event: Document) -> Iterator[bytes]:
        index, native = str(event.get("output_index")), _member(event, "item")
        if index not in self._items:
            yield from self._open(event)
        item = self._items.pop(index)
        match native.get("type"):
            case "message":
                yield from self._close_message(item, native)
            case "reasoning":
                yield from self._close_reasoning(item, native)
            case "function_call":
                yield from self._arguments(item, text_of(native, "arguments"), is_whole=True)
                if not item.sent:
                    yield from self._arguments(item, "{}")
            case "custom_tool_call":
                yield self._out.custom_call(call_id(native), call_name(native), text_of(native, "input"))
            case _:
                # What the vendor's own tools did on the way.
                return

    def _close_message(self, item: _Item, native: Document) -> Iterator[bytes]:
        for number, part in enumerate(objects_in(native.get("content"))):
            place = str(number)
            if part.get("type") == "refusal":
                yield from self._refusal(item, place, text_of(part, "refusal"), is_whole=True)
            elif part.get("type") == "output_text":
                yield from self._text(item, place, text_of(part, "text"), is_whole=True)
                if annotations := list(citations(part, item.starts[place])):
                    yield self._out.delta(annotations=annotations)
                if found := logprobs(part):
                    yield self._out.logprobs(found)
        if (named := phase(native)) is not None:
            yield self._out.delta(extra_content=named)

    def _close_reasoning(self, item: _Item, native: Document) -> Iterator[bytes]:
        for member, number, text in reasoning_texts(native):
            yield from self._thought(item, (member, str(number)), text, is_whole=True)
        position = self._has_spoken + self._out.tool_count + self._thinking_count
        if (block := thinking_block(native, self._issuer, position)) is not None:
            self._thinking_count += 1
            yield self._out.delta(thinking_blocks=[block])

    # Pieces of items

    def _text_delta(self, event: Document) -> Iterator[bytes]:
        return self._text(self._item(event), str(event.get("content_index")), text_of(event, "delta"))

    def _refusal_delta(self, event: Document) -> Iterator[bytes]:
        return self._refusal(self._item(event), str(event.get("content_index")), text_of(event, "delta"))

    def _summary_delta(self, event: Document) -> Iterator[bytes]:
        return self._thought(self._item(event), ("summary", str(event.get("summary_index"))), text_of(event, "delta"))

    def _reasoning_delta(self, event: Document) -> Iterator[bytes]:
        return self._thought(self._item(event), ("content", str(event.get("content_index"))), text_of(event, "delta"))

    def _arguments_delta(self, event: Document) -> Iterator[bytes]:
        return self._arguments(self._item(event), text_of(event, "delta"))

    def _text(self, item: _Item, place: str, text: str, *, is_whole: bool = False) -> Iterator[bytes]:
        item.starts.setdefault(place, self._text_length)
        if text := _unsent(item, ("text", place), text, is_whole=is_whole):
            self._text_length += len(text)
            self._has_spoken = True
            yield self._out.text(text)

    def _refusal(self, item: _Item, place: str, text: str, *, is_whole: bool = False) -> Iterator[bytes]:
        if text := _unsent(item, ("refusal", place), text, is_whole=is_whole):
            self._has_spoken = True
            yield self._out.delta(refusal=text)

    def _thought(self, item: _Item, key: tuple[str, str], text: str, *, is_whole: bool = False) -> Iterator[bytes]:
        is_new = key not in item.sent
        if text := _unsent(item, key, text, is_whole=is_whole):
            yield self._out.reasoning(PARAGRAPH + text if is_new and self._has_thought else text)
            self._has_thought = True

    def _arguments(self, item: _Item, text: str, *, is_whole: bool = False) -> Iterator[bytes]:
        if item.call_index is None:
            raise UpstreamBroken("The provider's stream gave arguments to what is no call.")
        if text := _unsent(item, ("arguments", ""), text, is_whole=is_whole):
            yield self._out.tool_arguments(item.call_index, text)

    def _item(self, event: Document) -> _Item:
        item = self._items.get(str(event.get("output_index")))
        if item is None:
            raise UpstreamBroken("The provider's stream went on with an item that is not open.")
        return item

    @property
    def _out(self) -> ChunkWriter:
        if self._writer is None:
            raise UpstreamBroken("The provider's stream did not begin with the start of an answer.")
        return self._writer


class ResponsesDecoder:
    """Turns a server-sent stream of one answer into OpenAI events."""

    def __init__(self, events: ResponseEvents) -> None:
        self._responses = events
        self._events = ObjectEvents()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The chunks so far. Raises, after those before it, UpstreamRefused on an error event, UpstreamBroken."""
        for event in self._events.feed(data):
            if event.document is not None:
                yield from self._responses.take(event.document)

    def finish(self) -> Iterator[bytes]:
        """The last event, when only its blank line was missing. Raises UpstreamCut when the answer is not whole."""
        for event in self._events.finish():
            if event.document is not None:
                yield from self._responses.take(event.document)
        if not self._responses.is_complete:
            raise cut_short()


def _unsent(item: _Item, key: tuple[str, str], text: str, *, is_whole: bool) -> str:
    """What the client does not have yet of a text, which comes as a piece or as the whole."""
    sent = item.sent.get(key, 0)
    unsent = text[sent:] if is_whole else text
    if unsent:
        item.sent[key] = sent + len(unsent)
    return unsent


def _member(holder: Document, name: str) -> Document:
    value = holder.get(name)
    if not isinstance(value, dict):
        raise UpstreamBroken(f"The provider sent an event without its '{name}'.")
    return value
