"""The conversation in the Messages format: system text apart, turns that alternate, tool results before all else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import orjson

from llmproxy.dialects.chat_request import ChatRequest, Message, Part, leading_instructions
from llmproxy.dialects.media import Media
from llmproxy.dialects.tool_calls import ToolCall
from llmproxy.errors import BadRequest
from llmproxy.providers.anthropic.rules import ModelRules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

_IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_TOOL_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
# Stands where a conversation must open with the user and does not.
_OPENING: Final = "."
# Claude's own reasoning, as it comes and must go back: with any other member, it is another vendor's.
_THINKING_MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
}


def conversation(chat: ChatRequest, rules: ModelRules, omissions: Omissions) -> tuple[list[Document], list[Document]]:
    """The system blocks and the turns of a request. Raises BadRequest when the model cannot take one of them."""
    messages = chat.messages
    leading = leading_instructions(messages)
    system = [block for message in messages[:leading] for block in _text_blocks(message.parts)]
    turns = _turns(messages[leading:], rules, omissions)
    if not turns:
        # A lone instruction is what there is to answer.
        system, turns = [], [{"role": "user", "content": system}] if system else []
    if not turns:
        raise BadRequest("'messages' must hold at least one message that is not empty.", param="messages")
    if turns[0]["role"] != "user":
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": _OPENING}]})
    _check_end(turns[-1], rules)
    return system, turns


def is_tool_loop_without_thinking(turns: Sequence[Document]) -> bool:
    """Whether tool results are handed back whose calls came without Claude's reasoning.

    Reasoning with a budget cannot begin in the middle of such a turn.
    """
    if not any(block["type"] == "tool_result" for block in turns[-1]["content"]):
        return False
    calling = turns[-2]["content"] if len(turns) > 1 else []
    return not any(block["type"] in _THINKING_MEMBERS for block in calling)


def tool_id(call_id: str) -> str:
    """A tool call's id in the letters that Claude allows; the same id always becomes the same."""
    if _TOOL_ID.fullmatch(call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode(errors='replace')).hexdigest()[:32]}"


# Turns


def _turns(messages: Sequence[Message], rules: ModelRules, omissions: Omissions) -> list[Document]:
    """Turns of the same role as one, empty ones left out, and tool results at the beginning of theirs."""
    turns: list[Document] = []
    has_open_calls = False
    for message in messages:
        if message.name is not None and message.role != "tool":
            omissions.hint("messages.name")
        role, blocks = _turn(message, rules, omissions, has_open_calls=has_open_calls)
        if message.role in ("user", "assistant"):
            has_open_calls = role == "assistant" and bool(message.tool_calls)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        if turn["role"] == "user" and len(turn["content"]) > 1:
            turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    return turns


def _turn(
    message: Message, rules: ModelRules, omissions: Omissions, *, has_open_calls: bool
) -> tuple[str, list[Document]]:
    """Who says what with a message."""
    match message.role:
        case "user":
            return "user", _blocks(message.parts, omissions)
        case "assistant":
            return "assistant", _assistant_blocks(message, omissions)
        case "tool":
            return "user", [_tool_result(message, omissions)]
        case "system":
            # Nothing may stand between calls and their results, and older models know no such role here.
            role = "system" if rules.system_messages and not has_open_calls else "user"
            return role, _text_blocks(message.parts)


def _check_end(turn: Document, rules: ModelRules) -> None:
    if turn["role"] != "assistant":
        return
    if not rules.prefill:
        sentence = "This model cannot go on from a message of its own; the last message must be the user's or a tool's."
        raise BadRequest(sentence, code="unsupported_parameter", param="messages")
    # A beginning that ends in white space is refused.
    last = turn["content"][-1]
    if last["type"] == "text":
        last["text"] = last["text"].rstrip()


# Blocks


def _assistant_blocks(message: Message, omissions: Omissions) -> list[Document]:
    said = _text_blocks(message.parts)
    if message.tool_calls:
        said += [_tool_use(call) for call in message.tool_calls]
    for part in message.parts:
        if part.media is not None:
            omissions.meaning(part.path, f"'{part.path}': messages of the assistant may only hold text for this model.")
    # Reasoning comes first, and is nothing without what it led to.
    return [*_own_thinking(message.thinking), *said] if said and message.thinking else said


def _own_thinking(blocks: Sequence[Document]) -> Iterator[Document]:
    """The blocks that Claude made: reasoning of others, or without its signature, would be refused."""
    for block in blocks:
        if frozenset(block) == _THINKING_MEMBERS.get(str(block.get("type"))) and _is_signed(block):
            yield block


def _is_signed(block: Document) -> bool:
    proof = block.get("signature", block.get("data"))
    return isinstance(proof, str) and bool(proof) and isinstance(block.get("thinking", ""), str)


def _tool_use(call: ToolCall) -> Document:
    # The client's own text, so that no number and no order of keys changes between turns.
    return {"type": "tool_use", "id": tool_id(call.id), "name": call.name, "input": orjson.Fragment(call.json)}


def _tool_result(message: Message, omissions: Omissions) -> Document:
    result: Document = {"type": "tool_result", "tool_use_id": tool_id(message.tool_call_id or "")}
    content = _blocks(message.parts, omissions)
    # The mark belongs to the result as a whole.
    marks = [mark for block in content if (mark := block.pop("cache_control", None))]
    if content:
        result["content"] = content
    if marks:
        result["cache_control"] = marks[-1]
    return result


def _text_blocks(parts: Sequence[Part]) -> list[Document]:
    """The texts, but for blank ones, which are refused."""
    return [
        _marked({"type": "text", "text": part.text}, part) for part in parts if part.text and not part.text.isspace()
    ]


def _blocks(parts: Sequence[Part], omissions: Omissions) -> list[Document]:
    blocks = []
    for part in parts:
        if part.media is None:
            if part.text and not part.text.isspace():
                blocks.append(_marked({"type": "text", "text": part.text}, part))
        elif (block := _media_block(part.media)) is not None:
            blocks.append(_marked(block, part))
        else:
            omissions.meaning(part.path, f"'{part.path}' is a kind of content that this model cannot read.")
    return blocks


def _marked(block: Document, part: Part) -> Document:
    if part.cache_control is not None:
        block["cache_control"] = part.cache_control
    return block


def _media_block(media: Media) -> Document | None:
    """An image or document block; None for what Claude cannot read."""
    source = _source(media)
    if source is None:
        return None
    if media.kind == "image":
        return {"type": "image", "source": source}
    title = {"title": media.filename} if media.filename else {}
    return {"type": "document", "source": source, **title}


def _source(media: Media) -> Document | None:
    if media.url is not None:
        is_web = media.kind == "image" and media.url.lower().startswith(("http://", "https://"))
        return {"type": "url", "url": media.url} if is_web else None
    if media.data is None:
        return None
    readable = _IMAGE_TYPES if media.kind == "image" else {"application/pdf"}
    if media.media_type in readable:
        return {"type": "base64", "media_type": media.media_type, "data": media.base64}
    if media.kind == "file" and media.media_type.startswith("text/"):
        return {"type": "text", "media_type": "text/plain", "data": media.data.decode(errors="replace")}
    return None
