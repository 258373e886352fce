"""Requests to Mistral: OpenAI's format with other names, other content parts and a stricter order of messages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from llmproxy.dialects.chat_request import ChatRequest, Message, Part, Tool, read_chat_request
from llmproxy.dialects.media import Media
from llmproxy.errors import BadRequest
from llmproxy.providers.mistral.models import ModelRules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document, Request

_RENAMED: Final = {"max_completion_tokens": "max_tokens", "seed": "random_seed"}
_HINTS: Final = (
    *("logit_bias", "moderation", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "store"),
    *("user", "verbosity"),
)
_MEANINGS: Final = ("audio", "web_search_options")
_SERVICE_TIERS: Final = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
# Between the results of tools and what the user says next, Mistral wants to hear from the assistant.
_BRIDGE: Final = {"role": "assistant", "content": "OK."}
_CALL_ID: Final = re.compile(r"[A-Za-z0-9]{9}")


def translated_chat(request: Request, rules: ModelRules | None, omissions: Omissions) -> Request:
    """The request as Mistral takes it; every member that need not change keeps its bytes.

    Raises BadRequest when Mistral cannot do what is asked.
    """
    chat = read_chat_request(request.document)
    edited = request.copy()
    _clean(edited, omissions)
    _put(edited, "messages", list(_messages(chat, rules, omissions)))
    _put_tools(edited, chat, omissions)
    _put_effort(edited, rules, omissions)
    _put_scalars(edited, omissions)
    return edited


def call_id(given: str) -> str:
    """An id that Mistral accepts, nine letters and digits: the same one for the same id of another vendor."""
    if _CALL_ID.fullmatch(given):
        return given
    digest = hashlib.blake2b(given.encode("utf-8", "surrogatepass"), digest_size=12).digest()
    return base64.b64encode(digest, altchars=b"xy").decode()[:9]


# Members


def _put(request: Request, name: str, value: object) -> None:
    if request.document.get(name) != value:
        request.set(name, value)


def _clean(request: Request, omissions: Omissions) -> None:
    """Take out what Mistral does not know, and nulls, which to OpenAI are the same as nothing."""
    for name, value in list(request.document.items()):
        is_unknown = name in _HINTS or name in _MEANINGS
        if value is not None and name in _HINTS:
            omissions.hint(name)
        elif value is not None and name in _MEANINGS:
            omissions.meaning(name)
        if value is None or is_unknown or name == "stream_options":
            request.remove(name)


def _put_scalars(request: Request, omissions: Omissions) -> None:
    for name, new_name in _RENAMED.items():
        if name in request.document:
            _put(request, new_name, request.document[name])
            request.remove(name)
    _put_service_tier(request, omissions)
    if not str(request.document.get("prompt_cache_key", "")).isascii():
        request.remove("prompt_cache_key")
        omissions.hint("prompt_cache_key")
    if request.document.get("modalities") not in (None, ["text"]):
        omissions.meaning("modalities")
    request.remove("modalities")
    prediction = request.document.get("prediction")
    if isinstance(prediction, dict) and isinstance(prediction.get("content"), list):
        parts = (part for part in prediction["content"] if isinstance(part, dict))
        request.set("prediction", {**prediction, "content": "".join(str(part.get("text", "")) for part in parts)})


def _put_service_tier(request: Request, omissions: Omissions) -> None:
    tier = request.document.get("service_tier")
    if tier is not None:
        _put_known(request, "service_tier", _SERVICE_TIERS.get(str(tier)), omissions)


def _put_effort(request: Request, rules: ModelRules | None, omissions: Omissions) -> None:
    effort = request.document.get("reasoning_effort")
    if rules is not None and effort is not None:
        _put_known(request, "reasoning_effort", rules.efforts.get(str(effort)), omissions)


def _put_known(request: Request, name: str, value: str | None, omissions: Omissions) -> None:
    """Put Mistral's word for a value, or leave the member out where it has none."""
    if value is not None:
        _put(request, name, value)
        return
    request.remove(name)
    omissions.hint(name)


# Tools


def _put_tools(request: Request, chat: ChatRequest, omissions: Omissions) -> None:
    for name in ("functions", "function_call"):
        request.remove(name)
    if not chat.tools:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            request.remove(name)
        return
    choice = chat.tool_choice
    tools = chat.tools
    if choice is not None and choice.mode == "allowed":
        tools = tuple(tool for tool in tools if tool.name in choice.names)
    if any(tool.cache_control for tool in tools):
        omissions.hint("tools.cache_control")
    _put(request, "tools", [_tool(tool) for tool in tools])
    if choice is not None:
        forced = {"type": "function", "function": {"name": choice.names[0]}} if choice.mode == "named" else choice.mode
        allowed = "any" if choice.required else "auto"
        _put(request, "tool_choice", allowed if choice.mode == "allowed" else forced)


def _tool(tool: Tool) -> Document:
    function: Document = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


# Messages


def _messages(chat: ChatRequest, rules: ModelRules | None, omissions: Omissions) -> Iterator[Document]:
    keeps_thinking = rules is None or rules.reasons
    after_tool = False
    for message, given in zip(chat.messages, chat.document["messages"], strict=True):
        native = _message(message, given, omissions, keeps_thinking=keeps_thinking)
        if native is None:
            continue
        if after_tool and message.role not in ("assistant", "tool"):
            yield _BRIDGE
        after_tool = message.role == "tool"
        yield native


def _message(
    message: Message, given: Mapping[str, object], omissions: Omissions, *, keeps_thinking: bool
) -> Document | None:
    """The message; None for one of the assistant's that says nothing."""
    if any(part.cache_control for part in message.parts):
        omissions.hint("messages.cache_control")
    if message.role == "assistant":
        return _assistant(message, given, omissions, keeps_thinking=keeps_thinking)
    native: Document = {"role": message.role, "content": _content(message, omissions)}
    if message.role == "tool":
        native["tool_call_id"] = call_id(message.tool_call_id or "")
    if message.name is not None and message.role == "tool":
        native["name"] = message.name
    elif message.name is not None:
        omissions.hint("messages.name")
    return native


def _assistant(
    message: Message, given: Mapping[str, object], omissions: Omissions, *, keeps_thinking: bool
) -> Document | None:
    if message.name is not None:
        omissions.hint("messages.name")
    content = _content(message, omissions)
    if thinking := _thinking(message):
        if keeps_thinking:
            content = [*thinking, *_as_chunks(content)]
        else:
            omissions.hint("messages.reasoning_content")
    if not content and not message.tool_calls:
        return None
    native: Document = {"role": "assistant", "content": content}
    if message.tool_calls:
        native["tool_calls"] = [
            {"id": call_id(call.id), "type": "function", "function": {"name": call.name, "arguments": call.json}}
            for call in message.tool_calls
        ]
    # Mistral's own: the answer is to begin with this message.
    if given.get("prefix") is True:
        native["prefix"] = True
    return native


def _thinking(message: Message) -> list[Document]:
    """Thinking to send back: Mistral's own chunks as they were, or plain text; another vendor's blocks are not ours."""
    own = [block for block in message.thinking if isinstance(block.get("thinking"), list)]
    if own or not message.reasoning:
        return own
    return [{"type": "thinking", "thinking": [{"type": "text", "text": message.reasoning}]}]


def _content(message: Message, omissions: Omissions) -> str | list[Document]:
    parts = message.parts
    if len(parts) <= 1 and all(part.text is not None for part in parts):
        return message.text
    return [chunk for part in parts if (chunk := _chunk(part, omissions)) is not None]


def _as_chunks(content: str | list[Document]) -> list[Document]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _chunk(part: Part, omissions: Omissions) -> Document | None:
    if part.media is None:
        return {"type": "text", "text": part.text or ""}
    media = part.media
    if media.kind == "image":
        if media.detail not in (None, "auto"):
            omissions.hint("messages.image_url.detail")
        return {"type": "image_url", "image_url": _address(media)}
    if media.kind == "audio":
        return {"type": "input_audio", "input_audio": media.base64}
    if media.media_type == "application/pdf":
        name = {"document_name": media.filename} if media.filename else {}
        return {"type": "document_url", "document_url": _address(media), **name}
    omissions.meaning(part.path, f"This model takes no such file as '{part.path}'; only PDF documents with their data.")
    return None


def _address(media: Media) -> str:
    return media.url or f"data:{media.media_type};base64,{media.base64}"


# Embeddings


def translated_embeddings(request: Request, omissions: Omissions) -> Request:
    """An embeddings request with Mistral's names. Raises BadRequest for tokens, which only OpenAI reads."""
    edited = request.copy()
    given = request.document.get("input")
    if isinstance(given, list) and not all(isinstance(text, str) for text in given):
        raise BadRequest("'input' must be text: this model takes no tokens.", param="input")
    if "dimensions" in request.document:
        edited.set("output_dimension", request.document["dimensions"])
        edited.remove("dimensions")
    if "user" in request.document:
        edited.remove("user")
        omissions.hint("user")
    return edited
