"""A streamed answer of ConverseStream as chat completion chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from llmproxy.dialects.chat_answer import AnswerIdentity, ChunkWriter, custom_input, new_call_id
from llmproxy.dialects.upstream_events import cut_short, decode_object
from llmproxy.errors import UpstreamBroken
from llmproxy.providers.anthropic.tools import AnswerPlan
from llmproxy.providers.bedrock.answer import (
    finish_reason,
    image_part,
    is_failure,
    model_failure,
    thinking_block,
    token_usage,
    web_citation,
)
from llmproxy.providers.bedrock.event_stream import EventStreamDecoder, Frame
from llmproxy.providers.bedrock.failures import exception
from llmproxy.request import Document


@dataclass(slots=True)
class _Block:
    """A content block while it is open: what it started as, and what came since.

    `tool_index` counts the client's tools; None for what is none of them.
    """

    text_start: int
    tool: Document | None = None
    tool_index: int | None = None
    image: Document | None = None
    arguments: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    signature: str = ""
    redacted: str = ""
    citations: list[object] = field(default_factory=list)


class ConverseDecoder:
    """Turns the frames of one answer into OpenAI events."""

    def __init__(self, plan: AnswerPlan, identity: AnswerIdentity) -> None:
        self._plan = plan
        self._frames = EventStreamDecoder()
        self._out: Final = ChunkWriter(identity)
        self._blocks: dict[int, _Block] = {}
        self._text_length = 0
        self._has_stopped = False
        self._has_ended = False
        self._handlers: Mapping[str, Callable[[Document], Iterator[bytes]]] = {
            "messageStart": self._start,
            "contentBlockStart": self._open,
            "contentBlockDelta": self._continue,
            "contentBlockStop": self._stop,
            "messageStop": self._finish,
            "metadata": self._end,
        }

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The chunks so far. Raises, after those before it, UpstreamRefused for an exception, UpstreamBroken."""
        for frame in self._frames.feed(data):
            yield from self._take(frame)

    def finish(self) -> Iterator[bytes]:
        """The end mark, when it did not come with the usage. Raises UpstreamCut when the answer is not whole."""
        self._frames.finish()
        if not self._has_stopped:
            raise cut_short()
        if not self._has_ended:
            yield self._out.end(None)

    def _take(self, frame: Frame) -> Iterator[bytes]:
        kind = frame.headers.get(":message-type")
        if kind == "exception":
            raise exception(frame.headers.get(":exception-type", ""), frame.payload)
        if kind == "error":
            message = {"message": frame.headers.get(":error-message", "")}
            raise exception(frame.headers.get(":error-code", ""), orjson.dumps(message))
        handler = self._handlers.get(frame.headers.get(":event-type", ""))
        # Events of the future change nothing.
        if handler is not None:
            yield from handler(decode_object(frame.payload))

    # Events

    def _start(self, event: Document) -> Iterator[bytes]:
        yield self._out.delta()

    def _open(self, event: Document) -> Iterator[bytes]:
        block = self._block(event)
        match event.get("start"):
            # A tool that the provider runs itself is none of the client's.
            case {"toolUse": dict(tool)} if "type" not in tool:
                yield from self._open_call(block, tool)
            case {"image": dict(image)}:
                block.image = image
            case _:
                pass

    def _continue(self, event: Document) -> Iterator[bytes]:
        block = self._block(event)
        match event.get("delta"):
            case {"text": str(text)}:
                yield from self._text(text)
            case {"toolUse": {"input": str(text)}}:
                yield from self._arguments(block, text)
            case {"reasoningContent": dict(thought)}:
                yield from self._think(block, thought)
            case {"citation": citation}:
                block.citations.append(citation)
            case {"image": dict(image)} if block.image is not None:
                block.image |= image

    def _stop(self, event: Document) -> Iterator[bytes]:
        index = event.get("contentBlockIndex")
        block = self._blocks.pop(index, None) if isinstance(index, int) else None
        # Texts without a piece, which were never opened, are closed all the same.
        if block is not None:
            yield from self._close(block)

    def _finish(self, event: Document) -> Iterator[bytes]:
        stop_reason = event.get("stopReason")
        if not isinstance(stop_reason, str):
            raise UpstreamBroken("The provider's stream ended without saying why.")
        if self._has_stopped:
            raise UpstreamBroken("The provider's stream ended twice.")
        for block in self._blocks.values():
            yield from self._close(block)
        self._blocks.clear()
        if is_failure(stop_reason):
            raise model_failure(stop_reason)
        self._has_stopped = True
        # The usage is still to come.
        yield self._out.finish(finish_reason(stop_reason, has_calls=self._out.tool_count > 0), stop_reason)

    def _end(self, event: Document) -> Iterator[bytes]:
        if self._has_stopped and not self._has_ended:
            self._has_ended = True
            yield self._out.end(token_usage(event))

    # Pieces of blocks

    def _block(self, event: Document) -> _Block:
        """The block an event is about; only tools and images are opened in so many words."""
        index = event.get("contentBlockIndex")
        if not isinstance(index, int) or self._has_stopped:
            raise UpstreamBroken("The provider's stream has a piece that belongs to no block.")
        return self._blocks.setdefault(index, _Block(self._text_length))

    def _open_call(self, block: _Block, tool: Document) -> Iterator[bytes]:
        name, call_id = tool.get("name"), tool.get("toolUseId")
        if not isinstance(name, str):
            raise UpstreamBroken("The provider's stream calls a tool without a name.")
        block.tool = {"id": call_id if isinstance(call_id, str) and call_id else new_call_id(), "name": name}
        if name != self._plan.answer_tool and name not in self._plan.custom_tools:
            block.tool_index = self._out.tool_count
            yield self._out.tool_start(block.tool["id"], name)

    def _text(self, text: str) -> Iterator[bytes]:
        self._text_length += len(text)
        if text:
            yield self._out.text(text)

    def _arguments(self, block: _Block, text: str) -> Iterator[bytes]:
        if block.tool is None or not text:
            return
        block.arguments.append(text)
        if block.tool_index is not None:
            yield self._out.tool_arguments(block.tool_index, text)
        elif block.tool["name"] == self._plan.answer_tool:
            yield from self._text(text)

    def _think(self, block: _Block, thought: Document) -> Iterator[bytes]:
        match thought:
            case {"text": str(text)} if text:
                block.thoughts.append(text)
                yield self._out.reasoning(text)
            case {"signature": str(signature)}:
                block.signature += signature
            case {"redactedContent": str(data)}:
                block.redacted += data
            case _:
                pass

    def _close(self, block: _Block) -> Iterator[bytes]:
        if block.tool is not None:
            yield from self._close_call(block, block.tool)
        thought = thinking_block("".join(block.thoughts), block.signature)
        redacted = {"type": "redacted_thinking", "data": block.redacted} if block.redacted else None
        if blocks := [each for each in (thought, redacted) if each is not None]:
            yield self._out.delta(thinking_blocks=blocks)
        cited = (web_citation(citation, block.text_start, self._text_length) for citation in block.citations)
        if annotations := [annotation for each in cited for annotation in each]:
            yield self._out.delta(annotations=annotations)
        if block.image is not None and (part := image_part(block.image)) is not None:
            yield self._out.delta(images=[part])

    def _close_call(self, block: _Block, tool: Document) -> Iterator[bytes]:
        if not block.arguments:
            # A call without arguments has no pieces at all.
            yield from self._arguments(block, "{}")
        if tool["name"] in self._plan.custom_tools:
            yield self._out.custom_call(tool["id"], tool["name"], custom_input("".join(block.arguments)))
