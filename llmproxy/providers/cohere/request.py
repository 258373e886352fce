"""Requests to Cohere's v2 API, out of chat completions and embeddings requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Final

import orjson

from llmproxy.dialects.chat_request import ChatRequest, Message, Part, Role, Tool, read_chat_request
from llmproxy.dialects.embeddings import EmbeddingsRequest
from llmproxy.dialects.media import Media
from llmproxy.errors import BadRequest
from llmproxy.providers.cohere.models import ModelRules, Models
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

# How many texts one call may hold.
MAX_TEXTS: Final = 96
# What Cohere has and OpenAI has not: a client that sends it means it.
_OWN: Final = ("citation_options", "documents", "k", "p", "priority", "safety_mode", "strict_tools", "thinking")
_READ: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "tools", "tool_choice", "functions", "function_call"),
        *("response_format", "max_tokens", "max_completion_tokens", "stop", "temperature", "top_p", "top_k", "seed"),
        *("frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "n", "modalities", "audio"),
        *("reasoning_effort", "web_search_options"),
        *_OWN,
    }
)
_MEANINGS: Final = ("audio", "web_search_options", "top_logprobs")
_MAX_STOPS: Final = 5
# Cohere's name for a number, and the least and the most it can be.
_NUMBERS: Final[Mapping[str, tuple[str, float, float]]] = {
    "temperature": ("temperature", 0.0, 2.0),
    "seed": ("seed", -inf, inf),
    "top_p": ("p", 0.01, 0.99),
    "top_k": ("k", 0, 500),
    "frequency_penalty": ("frequency_penalty", 0.0, 1.0),
    "presence_penalty": ("presence_penalty", 0.0, 1.0),
}


def chat_body(document: Document, models: Models, omissions: Omissions) -> bytes:
    """The body for `/v2/chat`. Raises BadRequest when Cohere cannot do what is asked."""
    chat = read_chat_request(document)
    rules = models.rules(str(document["model"]))
    body: Document = {"model": document["model"], "stream": document.get("stream") is True}
    documents: list[Document] = []
    body["messages"] = [
        native for message in chat.messages if (native := _message(message, rules, documents, omissions)) is not None
    ]
    body.update(_tools(chat))
    if chat.response_format is not None:
        schema = {"json_schema": chat.response_format.schema} if chat.response_format.kind == "json_schema" else {}
        body["response_format"] = {"type": "json_object", **schema}
    body.update(_scalars(chat, omissions))
    body.update(_thinking(chat, rules, models, omissions))
    if not document.keys().isdisjoint(_OWN):
        body.update({name: document[name] for name in _OWN if document.get(name) is not None})
    if documents:
        body["documents"] = [*body.get("documents", ()), *documents]
    _omit(document, omissions)
    return orjson.dumps(body)


def _omit(document: Document, omissions: Omissions) -> None:
    if not document.keys() <= _READ:
        for name, value in document.items():
            if value is not None and name not in _READ:
                omissions.hint(name)
    for name in _MEANINGS:
        # No log probabilities beside the chosen token's are none at all.
        if document.get(name) not in (None, 0):
            omissions.meaning(name)
    if document.get("n") not in (None, 1):
        omissions.meaning("n")
    if document.get("modalities") not in (None, ["text"]):
        omissions.meaning("modalities")


# Scalars


def _scalars(chat: ChatRequest, omissions: Omissions) -> Iterator[tuple[str, object]]:
    if (limit := chat.max_tokens) is not None:
        yield "max_tokens", limit
    if stop := chat.stop:
        if len(stop) > _MAX_STOPS:
            omissions.meaning("stop", f"This model takes at most {_MAX_STOPS} stop sequences.")
        yield "stop_sequences", stop[:_MAX_STOPS]
    yield from _numbers(chat)
    if isinstance(chat.document.get("logprobs"), bool):
        yield "logprobs", chat.document["logprobs"]


def _numbers(chat: ChatRequest) -> Iterator[tuple[str, object]]:
    for name, value in chat.numbers(_NUMBERS).items():
        new_name, least, most = _NUMBERS[name]
        yield new_name, min(max(value, least), most)


def _thinking(
    chat: ChatRequest, rules: ModelRules, models: Models, omissions: Omissions
) -> Iterator[tuple[str, object]]:
    effort = chat.document.get("reasoning_effort")
    if effort is None:
        return
    if not rules.reasons:
        omissions.hint("reasoning_effort")
    elif effort == "none":
        yield "thinking", {"type": "disabled"}
    elif (budget := models.budgets.get(str(effort))) is None:
        raise BadRequest("'reasoning_effort' is not one that is known.", param="reasoning_effort")
    else:
        # The limit covers thinking and answer together, so that half of it is left for the answer.
        limit = chat.max_tokens
        yield "thinking", {"type": "enabled", "token_budget": min(budget, max(limit // 2, 1)) if limit else budget}


# Tools


def _tools(chat: ChatRequest) -> Iterator[tuple[str, object]]:
    choice, tools = chat.tool_choice, chat.tools
    if not tools:
        return
    if choice is not None and choice.names:
        tools = tuple(tool for tool in tools if tool.name in choice.names)
        if not tools:
            raise BadRequest("'tool_choice' names a tool that is not among the tools.", param="tool_choice")
    yield "tools", [_tool(tool) for tool in tools]
    # Strictness is for all tools or none.
    if all(tool.strict for tool in tools):
        yield "strict_tools", True
    if choice is not None and (choice.mode in ("required", "named") or choice.required):
        yield "tool_choice", "REQUIRED"
    elif choice is not None and choice.mode == "none":
        yield "tool_choice", "NONE"


def _tool(tool: Tool) -> Document:
    function: Document = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters
    return {"type": "function", "function": function}


# Messages


def _message(message: Message, rules: ModelRules, documents: list[Document], omissions: Omissions) -> Document | None:
    """The message; None for one that says nothing. Text files go to `documents`, where Cohere cites from."""
    if message.name is not None:
        omissions.hint("messages.name")
    if [part for part in message.parts if part.cache_control]:
        omissions.hint("messages.cache_control")
    content = _content(message, documents, omissions)
    if message.role == "assistant":
        return _assistant(message, content, rules, omissions)
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content}
    return {"role": message.role, "content": content} if content else None


def _assistant(
    message: Message, content: str | list[Document], rules: ModelRules, omissions: Omissions
) -> Document | None:
    native: Document = {"role": "assistant"}
    thought = message.reasoning if rules.reasons else None
    if message.reasoning and not rules.reasons:
        omissions.hint("messages.reasoning_content")
    if message.tool_calls:
        native["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.json}}
            for call in message.tool_calls
        ]
        # What the model says before it calls is its plan.
        if message.text:
            native["tool_plan"] = message.text
        content = []
    if thought:
        content = [{"type": "thinking", "thinking": thought}, *_as_chunks(content)]
    if content:
        native["content"] = content
    return native if content or message.tool_calls else None


def _content(message: Message, documents: list[Document], omissions: Omissions) -> str | list[Document]:
    parts = message.parts
    if not parts or (len(parts) == 1 and parts[0].text is not None):
        return message.text
    chunks = (_chunk(part, message.role, documents, omissions) for part in message.parts)
    return [chunk for chunk in chunks if chunk is not None]


def _as_chunks(content: str | list[Document]) -> list[Document]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _chunk(part: Part, role: Role, documents: list[Document], omissions: Omissions) -> Document | None:
    if part.media is None:
        return {"type": "text", "text": part.text} if part.text else None
    if part.media.kind == "image" and role == "user":
        return _image(part.media)
    if part.media.data is not None and part.media.media_type.startswith("text/"):
        documents.append(_document(part.media, part.path))
        return None
    omissions.meaning(
        part.path, f"This model cannot read '{part.path}'; only text, text files, and images of the user's."
    )
    return None


def _image(media: Media) -> Document:
    image: Document = {"url": media.url or f"data:{media.media_type};base64,{media.base64}"}
    if media.detail is not None:
        image["detail"] = "high" if media.detail == "original" else media.detail
    return {"type": "image_url", "image_url": image}


def _document(media: Media, path: str) -> Document:
    try:
        text = (media.data or b"").decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"'{path}' is not text in UTF-8.", param=path) from error
    title = {"title": media.filename} if media.filename else {}
    return {"data": {**title, "text": text}}


# Embeddings


def embeddings_body(document: Document, request: EmbeddingsRequest, input_type: str, omissions: Omissions) -> bytes:
    """The body for `/v2/embed`, for no more texts than one call may hold."""
    body: Document = {
        "model": document["model"],
        "texts": request.texts,
        "input_type": document.get("input_type") or input_type,
        "embedding_types": ["float"],
    }
    if request.dimensions is not None:
        body["output_dimension"] = request.dimensions
    if document.get("truncate") is not None:
        body["truncate"] = document["truncate"]
    known = ("model", "input", "dimensions", "encoding_format", "input_type", "truncate")
    for name in document:
        if name not in known:
            omissions.hint(name)
    return orjson.dumps(body)
