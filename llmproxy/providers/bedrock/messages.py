"""Messages as Converse's turns: user and assistant by turns, tool results first, thoughts before all else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Literal

import orjson

from llmproxy.dialects.chat_request import Message, ToolCall
from llmproxy.errors import BadRequest
from llmproxy.exchange import Document
from llmproxy.providers.bedrock.blocks import FILLER, BlockWriter
from llmproxy.providers.bedrock.models import ModelRules
from llmproxy.providers.vendor import Omissions

_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9_-]")
_MAX_ID_CHARACTERS: Final = 64
_NO_OUTPUT: Final = "(no output)"

# Blocks that stay together: one, and the cache point behind it.
_Unit = tuple[Document, ...]


@dataclass(slots=True)
class Conversation:
    """The system blocks and the turns."""

    system: list[Document] = field(default_factory=list)
    turns: list[Document] = field(default_factory=list)


@dataclass(slots=True)
class _Turn:
    role: Literal["user", "assistant", "system"]
    units: list[_Unit] = field(default_factory=list)

    def document(self) -> Document:
        # Results of tools must come before anything else a user says.
        if len(self.units) > 1:
            self.units.sort(key=lambda unit: "toolResult" not in unit[0])
        blocks = [block for unit in self.units for block in unit]
        members: set[str] = set().union(*blocks)
        if "document" in members and "text" not in members:
            blocks.append({"text": FILLER})
        return {"role": self.role, "content": blocks}


class MessageWriter:
    """Translates the messages of one request.

    Args:
        has_tools: Whether the request will name tools; without, calls and results of old can only be told as text.
    """

    def __init__(self, rules: ModelRules, writer: BlockWriter, omissions: Omissions, *, has_tools: bool) -> None:
        self._rules = rules
        self._writer = writer
        self._omissions = omissions
        self._has_tools = has_tools
        self._turns: list[_Turn] = []

    def translate(self, messages: Sequence[Message]) -> Conversation:
        """The conversation. Raises BadRequest when there is nothing in it, or something that cannot be sent."""
        leading = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
        # Somebody must say something: instructions on their own are taken for a question.
        system = list(self._system(messages[:leading])) if leading < len(messages) else []
        for message in messages[leading:] if leading < len(messages) else messages:
            self._add(self._role(message), self._units(message))
        if not self._turns:
            raise BadRequest("'messages' must hold some content.", param="messages")
        if self._turns[0].role != "user":
            self._turns.insert(0, _Turn("user", [({"text": FILLER},)]))
        self._check_end()
        return Conversation(system, [turn.document() for turn in self._turns])

    def _check_end(self) -> None:
        """See to it that Claude can go on from a beginning of its answer, where it is given one."""
        last = self._turns[-1]
        if self._rules.claude is None or last.role != "assistant":
            return
        if not self._rules.claude.prefill:
            sentence = (
                "This model cannot go on from a message of its own; the last message must be the user's or a tool's."
            )
            raise BadRequest(sentence, code="unsupported_parameter", param="messages")
        # A beginning that ends in white space is refused.
        block = last.units[-1][0]
        if "text" in block:
            block["text"] = block["text"].rstrip()

    def _system(self, messages: Iterable[Message]) -> Iterator[Document]:
        for message in messages:
            for part in message.parts:
                if part.media is not None:
                    raise BadRequest(f"'{part.path}' must be text in a system message.", param=part.path)
                if part.text and not part.text.isspace():
                    yield {"text": part.text}
                    yield from self._writer.cache_point("system", part.cache_control)

    def _role(self, message: Message) -> Literal["user", "assistant", "system"]:
        if message.role == "system" and self._rules.has_system_turns and self._turns:
            return "system"
        return "assistant" if message.role == "assistant" else "user"

    def _add(self, role: Literal["user", "assistant", "system"], units: list[_Unit]) -> None:
        if not units:
            return
        if self._turns and self._turns[-1].role == role:
            self._turns[-1].units += units
        else:
            self._turns.append(_Turn(role, units))

    def _units(self, message: Message) -> list[_Unit]:
        if message.role == "tool":
            return self._result(message)
        if message.name is not None:
            self._omissions.hint("messages.name")
        said: list[_Unit] = self._writer.blocks(message.parts)
        said += [(self._call(call),) for call in message.tool_calls]
        # Thoughts are nothing without what they led to.
        return [*self._thoughts(message.thinking), *said] if said and message.thinking else said

    def _thoughts(self, blocks: Iterable[Document]) -> Iterator[_Unit]:
        """Signed thoughts as they came; others, which no signature proves to be Claude's, would be refused."""
        for block in blocks if self._rules.claude is not None else ():
            match block:
                case {"type": "thinking", "thinking": str(text), "signature": str(signature), **rest} if (
                    signature and not rest
                ):
                    yield ({"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}},)
                case {"type": "redacted_thinking", "data": str(data), **rest} if data and not rest:
                    yield ({"reasoningContent": {"redactedContent": data}},)

    def _call(self, call: ToolCall) -> Document:
        if not self._has_tools:
            return {"text": f"(Called {call.name} with {call.json})"}
        # A fragment keeps numbers as they were written.
        return {"toolUse": {"toolUseId": tool_id(call.id), "name": call.name, "input": orjson.Fragment(call.json)}}

    def _result(self, message: Message) -> list[_Unit]:
        units = self._writer.blocks(message.parts)
        if not self._has_tools:
            return [({"text": "(Result of the call:)"},), *units]
        content = [unit[0] for unit in units] or [{"text": _NO_OUTPUT}]
        points = tuple(point for unit in units for point in unit[1:])[-1:]
        return [({"toolResult": {"toolUseId": tool_id(message.tool_call_id or ""), "content": content}}, *points)]


def tool_id(client_id: str) -> str:
    """An id in the form that Bedrock asks for, the same one for a call and its result."""
    plain = _NOT_IN_IDS.sub("_", client_id)
    if plain == client_id and 0 < len(plain) <= _MAX_ID_CHARACTERS:
        return plain
    # What was changed or cut must not become the same as another id.
    return f"{plain[:40]}_{sha256(client_id.encode()).hexdigest()[:16]}"
