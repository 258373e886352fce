"""A streamed answer in the Messages format as chat completion chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llmproxy.dialects.chat_answer import ChunkWriter, custom_input
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.dialects.upstream_events import ObjectEvents, cut_short
from llmproxy.errors import UpstreamBroken
from llmproxy.providers.anthropic.answer import (
    answer_identity,
    citations,
    finish_reason,
    message_usage,
    refusal,
    thinking_block,
    tool_call_id,
    tool_input,
    tool_name,
)
from llmproxy.providers.anthropic.tools import AnswerPlan
from llmproxy.request import Document


@dataclass(slots=True)
class _Block:
    """A content block while it is open.

    `tool_index` counts the client's tools; None for what is none of them. `native` is the block as it started, and
    `pieces` what came since: text for most, JSON text for a tool.
    """

    native: Document
    text_start: int
    tool_index: int | None = None
    pieces: list[str] = field(default_factory=list)
    signature: str = ""
    citations: list[object] = field(default_factory=list)


class MessageEvents:
    """Turns the events of one message into chunks, event by event, however the host wraps them.

    Args:
        model: Stands in where the message names none.
        created: Unix seconds.

    Attributes:
        is_complete: The message has come to its end.
    """

    def __init__(self, plan: AnswerPlan, model: str, created: int) -> None:
        self._plan = plan
        self._model = model
        self._created = created
        self._writer: ChunkWriter | None = None
        self._blocks: dict[object, _Block] = {}
        self._usage: Document = {}
        self._ending: Document = {}
        self._text_length = 0
        self.is_complete = False
        self._handlers: Mapping[str, Callable[[Document], Iterator[bytes]]] = {
            "message_start": self._start,
            "content_block_start": self._open,
            "content_block_delta": self._continue,
            "content_block_stop": self._stop,
            "message_delta": self._change,
            "message_stop": self._finish,
        }

    def take(self, event: Document) -> Sequence[bytes]:
        """The chunks for one event. Raises UpstreamRefused for an error, UpstreamBroken for what makes no sense."""
        if error := stated_error(event):
            raise error
        if event.get("type") == "error":
            raise UpstreamBroken("The provider's stream ended with an error and no reason.")
        handler = self._handlers.get(str(event.get("type")))
        # Pings, and what a later API may add.
        if handler is None or self.is_complete:
            return ()
        return tuple(handler(event))

    def _start(self, event: Document) -> Iterator[bytes]:
        if self._writer is not None:
            raise UpstreamBroken("The provider's stream began twice.")
        message = _member(event, "message")
        self._learn_usage(message)
        self._writer = ChunkWriter(answer_identity(message, self._model, self._created))
        yield self._writer.delta()

    def _open(self, event: Document) -> Iterator[bytes]:
        native, index = _member(event, "content_block"), str(event.get("index"))
        if index in self._blocks:
            raise UpstreamBroken("The provider's stream opened a block twice.")
        block = self._blocks[index] = _Block(native, self._text_length)
        kind = native.get("type")
        if kind == "text" and isinstance(native.get("text"), str):
            yield from self._text(native["text"])
        elif kind == "thinking":
            block.signature = _text(native, "signature")
            yield from self._think(block, _text(native, "thinking"))
        elif kind == "tool_use" and not self._is_unlisted(native):
            block.tool_index = self._out.tool_count
            yield self._out.tool_start(tool_call_id(native), tool_name(native))

    def _continue(self, event: Document) -> Iterator[bytes]:
        block = self._blocks.get(str(event.get("index")))
        if block is None:
            raise UpstreamBroken("The provider's stream went on with a block that is not open.")
        delta = _member(event, "delta")
        match delta:
            case {"type": "text_delta", "text": str(text)}:
                yield from self._text(text)
            case {"type": "thinking_delta", "thinking": str(text)}:
                yield from self._think(block, text)
            case {"type": "input_json_delta", "partial_json": str(text)}:
                yield from self._arguments(block, text)
            case {"type": "signature_delta", "signature": str(signature)}:
                block.signature += signature
            case {"type": "citations_delta", "citation": citation}:
                block.citations.append(citation)
            case _:
                # What a later API may add.
                return

    def _stop(self, event: Document) -> Iterator[bytes]:
        block = self._blocks.pop(str(event.get("index")), None)
        if block is not None:
            yield from self._close(block)

    def _change(self, event: Document) -> Iterator[bytes]:
        self._learn_usage(event)
        delta = event.get("delta")
        if isinstance(delta, dict):
            self._ending = {**self._ending, **delta}
        yield from ()

    def _finish(self, event: Document) -> Iterator[bytes]:
        stop_reason = self._ending.get("stop_reason")
        if not isinstance(stop_reason, str):
            raise UpstreamBroken("The provider's stream ended without saying why.")
        for block in self._blocks.values():
            yield from self._close(block)
        if stop_reason == "refusal":
            yield self._out.delta(refusal=refusal(self._ending))
        self.is_complete = True
        yield self._out.finish(finish_reason(stop_reason, has_calls=self._out.tool_count > 0), stop_reason)
        yield self._out.end(message_usage(self._usage))

    # Pieces of blocks

    def _text(self, text: str) -> Iterator[bytes]:
        self._text_length += len(text)
        if text:
            yield self._out.text(text)

    def _think(self, block: _Block, text: str) -> Iterator[bytes]:
        block.pieces.append(text)
        if text:
            yield self._out.reasoning(text)

    def _arguments(self, block: _Block, text: str) -> Iterator[bytes]:
        block.pieces.append(text)
        if not text or block.native.get("type") != "tool_use":
            return
        if block.tool_index is not None:
            yield self._out.tool_arguments(block.tool_index, text)
        elif block.native.get("name") == self._plan.answer_tool:
            yield from self._text(text)

    def _close(self, block: _Block) -> Iterator[bytes]:
        kind = block.native.get("type")
        if kind == "tool_use":
            yield from self._close_call(block)
        elif kind == "text":
            if annotations := list(citations(block.citations, block.text_start, self._text_length)):
                yield self._out.delta(annotations=annotations)
        else:
            come = {"thinking": "".join(block.pieces), "signature": block.signature} if kind == "thinking" else {}
            if (thought := thinking_block({**block.native, **come})) is not None:
                yield self._out.delta(thinking_blocks=[thought])

    def _close_call(self, block: _Block) -> Iterator[bytes]:
        arguments = "".join(block.pieces)
        if not arguments:
            # Some servers give the input at once, and a call without arguments has none at all.
            arguments = tool_input(block.native)
            yield from self._arguments(block, arguments)
        if block.native.get("name") in self._plan.custom_tools:
            native = block.native
            yield self._out.custom_call(tool_call_id(native), tool_name(native), custom_input(arguments))

    def _is_unlisted(self, native: Document) -> bool:
        """Whether a call is not passed on as it comes: it is the answer, or the text for a custom tool."""
        name = tool_name(native)
        return name == self._plan.answer_tool or name in self._plan.custom_tools

    @property
    def _out(self) -> ChunkWriter:
        if self._writer is None:
            raise UpstreamBroken("The provider's stream did not begin with the start of a message.")
        return self._writer

    def _learn_usage(self, holder: Document) -> None:
        """Later numbers replace earlier ones, and what is not told again stays."""
        usage = holder.get("usage")
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}


class MessagesDecoder:
    """Turns a server-sent stream of one message into OpenAI events."""

    def __init__(self, events: MessageEvents) -> None:
        self._messages = events
        self._events = ObjectEvents()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The chunks so far. Raises, after those before it, UpstreamRefused on an error event, UpstreamBroken."""
        for event in self._events.feed(data):
            if event.document is not None:
                yield from self._messages.take(event.document)

    def finish(self) -> Iterator[bytes]:
        """The last event, when only its blank line was missing. Raises UpstreamCut when the message is not whole."""
        for event in self._events.finish():
            if event.document is not None:
                yield from self._messages.take(event.document)
        if not self._messages.is_complete:
            raise cut_short()


def _member(holder: Document, name: str) -> Document:
    value = holder.get(name)
    if not isinstance(value, dict):
        raise UpstreamBroken(f"The provider sent an event without its '{name}'.")
    return value


def _text(holder: Document, name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""
