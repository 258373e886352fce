"""Messages as Converse's turns: user and assistant by turns, tool results first, thoughts before all else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

import orjson

from llmproxy.dialects.chat_request import Message, leading_instructions
from llmproxy.dialects.tool_calls import ToolCall
from llmproxy.errors import BadRequest
from llmproxy.providers.bedrock.blocks import FILLER, BlockWriter
from llmproxy.providers.bedrock.models import ModelRules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9_-]")
_MAX_ID_CHARACTERS: Final = 64
_NO_OUTPUT: Final = "(no output)"

Role = Literal["user", "assistant", "system"]


@dataclass(slots=True)
class Conversation:
    """The system blocks and the turns."""

    system: list[Document]
    turns: list[Document]


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
        self._turns: list[Document] = []

    def translate(self, messages: Sequence[Message]) -> Conversation:
        """The conversation. Raises BadRequest when there is nothing in it, or something that cannot be sent."""
        leading, turns = leading_instructions(messages), self._turns
        is_alone = leading == len(messages)
        # Somebody must say something: instructions on their own are taken for a question.
        system = [] if is_alone else self._system(messages[:leading])
        for message in messages if is_alone else messages[leading:]:
            role, blocks = self._role(message), self._blocks(message)
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += blocks
            elif blocks:
                turns.append({"role": role, "content": blocks})
        if not turns:
            raise BadRequest("'messages' must hold some content.", param="messages")
        if turns[0]["role"] != "user":
            turns.insert(0, {"role": "user", "content": [{"text": FILLER}]})
        self._check_end()
        for turn in turns:
            if len(turn["content"]) > 1 or "text" not in turn["content"][0]:
                turn["content"] = _arranged(turn["content"])
        return Conversation(system, turns)

    def _check_end(self) -> None:
        """See to it that Claude can go on from a beginning of its answer, where it is given one."""
        last = self._turns[-1]
        if self._rules.claude is None or last["role"] != "assistant":
            return
        if not self._rules.claude.prefill:
            sentence = (
                "This model cannot go on from a message of its own; the last message must be the user's or a tool's."
            )
            raise BadRequest(sentence, code="unsupported_parameter", param="messages")
        # A beginning that ends in white space is refused.
        block = next(block for block in reversed(last["content"]) if "cachePoint" not in block)
        if "text" in block:
            block["text"] = block["text"].rstrip()

    def _system(self, messages: Iterable[Message]) -> list[Document]:
        blocks: list[Document] = []
        for message in messages:
            for part in message.parts:
                if part.media is not None:
                    raise BadRequest(f"'{part.path}' must be text in a system message.", param=part.path)
                if part.text and not part.text.isspace():
                    blocks.append({"text": part.text})
                    if part.cache_control is not None:
                        blocks += self._writer.cache_point("system", part.cache_control)
        return blocks

    def _role(self, message: Message) -> Role:
        if message.role == "system" and self._rules.has_system_turns and self._turns:
            return "system"
        return "assistant" if message.role == "assistant" else "user"

    def _blocks(self, message: Message) -> list[Document]:
        if message.role == "tool":
            return self._result(message)
        if message.name is not None:
            self._omissions.hint("messages.name")
        said = self._writer.blocks(message.parts)
        if message.tool_calls:
            said += [self._call(call) for call in message.tool_calls]
        # Thoughts are nothing without what they led to.
        return [*self._thoughts(message.thinking), *said] if said and message.thinking else said

    def _thoughts(self, blocks: Iterable[Document]) -> Iterator[Document]:
        """Signed thoughts as they came; others, which no signature proves to be Claude's, would be refused."""
        for block in blocks if self._rules.claude is not None else ():
            match block:
                case {"type": "thinking", "thinking": str(text), "signature": str(signature), **rest} if (
                    signature and not rest
                ):
                    yield {"reasoningContent": {"reasoningText": {"text": text, "signature": signature}}}
                case {"type": "redacted_thinking", "data": str(data), **rest} if data and not rest:
                    yield {"reasoningContent": {"redactedContent": data}}

    def _call(self, call: ToolCall) -> Document:
        if not self._has_tools:
            return {"text": f"(Called {call.name} with {call.json})"}
        # A fragment keeps numbers as they were written.
        return {"toolUse": {"toolUseId": tool_id(call.id), "name": call.name, "input": orjson.Fragment(call.json)}}

    def _result(self, message: Message) -> list[Document]:
        blocks = self._writer.blocks(message.parts)
        if not self._has_tools:
            return [{"text": "(Result of the call:)"}, *blocks]
        content = [block for block in blocks if "cachePoint" not in block] or [{"text": _NO_OUTPUT}]
        points = [block for block in blocks if "cachePoint" in block][-1:]
        return [{"toolResult": {"toolUseId": tool_id(message.tool_call_id or ""), "content": content}}, *points]


def _arranged(blocks: Sequence[Document]) -> list[Document]:
    """Results of tools before anything else a user says, each with the cache point behind it; no document alone."""
    results: list[Document] = []
    others: list[Document] = []
    section = others
    for block in blocks:
        if "cachePoint" not in block:
            section = results if "toolResult" in block else others
        section.append(block)
    arranged = [*results, *others]
    members: set[str] = set().union(*arranged)
    if "document" in members and "text" not in members:
        arranged.append({"text": FILLER})
    return arranged


def tool_id(client_id: str) -> str:
    """An id in the form that Bedrock asks for, the same one for a call and its result."""
    plain = _NOT_IN_IDS.sub("_", client_id)
    if plain == client_id and 0 < len(plain) <= _MAX_ID_CHARACTERS:
        return plain
    # What was changed or cut must not become the same as another id.
    return f"{plain[:40]}_{sha256(client_id.encode()).hexdigest()[:16]}"
