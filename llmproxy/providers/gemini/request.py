"""A chat completions request as the body of `generateContent`."""

from __future__ import annotations

from typing import Any, Final

import orjson

from llmproxy.dialects.chat_request import ChatRequest, Tool, ToolChoice, read_chat_request
from llmproxy.errors import BadRequest
from llmproxy.providers.gemini.content import Contents, Issuer
from llmproxy.providers.gemini.models import Models, Rules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

_MAX_CHOICES: Final = 8
_SAMPLING: Final = {"temperature": "temperature", "top_p": "topP", "top_k": "topK"}
_PENALTIES: Final = {"presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty"}
_NUMBERS: Final = {**_SAMPLING, **_PENALTIES}
_SERVICE_TIERS: Final = {"default": "standard", "flex": "flex", "priority": "priority"}
# Whatever else a request holds is left out, and named.
_TRANSLATED: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "stop", "seed", "max_tokens", "max_completion_tokens"),
        *("tools", "tool_choice", "functions", "function_call", "response_format", "web_search_options", "modalities"),
        *("parallel_tool_calls", "logprobs", "top_logprobs", "reasoning_effort", "service_tier", "extra_body"),
        *_NUMBERS,
    }
)


def generate_body(document: Document, models: Models, issuer: Issuer, omissions: Omissions) -> bytes:
    """The body; the same request gives the same bytes.

    Raises BadRequest when the request is malformed or asks for what the model cannot do.
    """
    chat = read_chat_request(document)
    rules = models.rules(str(document.get("model")))
    extra = _google_extra(document)
    conversation = Contents(rules, issuer, omissions).translate(chat.messages)
    body: Document = {"contents": conversation.turns}
    if conversation.system:
        body["systemInstruction"] = {"parts": conversation.system}
    body |= _tools(chat, omissions)
    if config := _generation_config(chat, rules, models, omissions, extra):
        body["generationConfig"] = config
    body |= _top_level(document, omissions, extra)
    _drop_cache_marks(chat, omissions)
    omissions.hint_all_but(document, _TRANSLATED)
    return _encoded(body)


def _drop_cache_marks(chat: ChatRequest, omissions: Omissions) -> None:
    """Google finds out by itself what can be cached."""
    if [part for message in chat.messages for part in message.parts if part.cache_control]:
        omissions.hint("messages.cache_control")
    if [tool for tool in chat.tools if tool.cache_control]:
        omissions.hint("tools.cache_control")


def _encoded(body: Document) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise BadRequest("The request is nested too deep for this provider; keep it within 200 levels.") from error


def _google_extra(document: Document) -> Document:
    """What Google's own OpenAI-compatible endpoint takes beside OpenAI's parameters."""
    match document.get("extra_body"):
        case {"google": dict(extra)}:
            return extra
        case _:
            return {}


# Tools


def _tools(chat: ChatRequest, omissions: Omissions) -> Document:
    options = chat.document.get("web_search_options")
    if isinstance(options, dict) and chat.tools:
        omissions.meaning(
            "web_search_options", "This provider cannot search the web and call functions in one request."
        )
    elif isinstance(options, dict):
        for member in options:
            omissions.hint(f"web_search_options.{member}")
        return {"tools": [{"googleSearch": {}}]}
    if not chat.tools:
        return {}
    if chat.document.get("parallel_tool_calls") is False:
        omissions.hint("parallel_tool_calls")
    body: Document = {"tools": [{"functionDeclarations": [_declaration(tool) for tool in chat.tools]}]}
    if chat.tool_choice is not None:
        body["toolConfig"] = {"functionCallingConfig": _calling(chat.tool_choice)}
    return body


def _declaration(tool: Tool) -> Document:
    declaration: Document = {"name": tool.name}
    if tool.description:
        declaration["description"] = tool.description
    if not _takes_nothing(tool.parameters):
        declaration["parametersJsonSchema"] = tool.parameters
    return declaration


def _takes_nothing(schema: Document) -> bool:
    """Whether a schema allows no member at all: an object without properties, which Google refuses to read."""
    if schema.get("properties") or schema.get("additionalProperties"):
        return False
    return schema.keys() <= {"type", "properties", "required", "additionalProperties", "$schema", "title"}


def _calling(choice: ToolChoice) -> Document:
    match choice.mode:
        case "auto":
            return {"mode": "AUTO"}
        case "none":
            return {"mode": "NONE"}
        case "required":
            return {"mode": "ANY"}
        case "named":
            return {"mode": "ANY", "allowedFunctionNames": list(choice.names)}
        case "allowed":
            return {"mode": "ANY" if choice.required else "VALIDATED", "allowedFunctionNames": list(choice.names)}


# Everything else


def _generation_config(
    chat: ChatRequest, rules: Rules, models: Models, omissions: Omissions, extra: Document
) -> Document:
    config = {
        "maxOutputTokens": chat.max_tokens,
        **_sampling(chat, rules, omissions),
        "stopSequences": list(chat.stop) or None,
        "candidateCount": _choices(chat),
        "seed": chat.number("seed"),
        **_logprobs(chat),
        **_format(chat),
        "responseModalities": _modalities(chat.document, omissions),
        "thinkingConfig": extra.get("thinking_config") or _thinking(chat.document, rules, models, omissions),
    }
    return {name: value for name, value in config.items() if value is not None}


def _sampling(chat: ChatRequest, rules: Rules, omissions: Omissions) -> Document:
    kept: Document = {}
    for name, value in chat.numbers(_NUMBERS).items():
        if rules.sampling if name in _SAMPLING else rules.penalties:
            kept[_NUMBERS[name]] = value
        elif value or name in _SAMPLING:
            # No penalty is what a model without penalties gives.
            omissions.hint(name)
    return kept


def _choices(chat: ChatRequest) -> int | None:
    count = chat.document.get("n")
    if count in (None, 1):
        return None
    if not isinstance(count, int) or not 1 < count <= _MAX_CHOICES:
        raise BadRequest(f"'n' must be a number from 1 to {_MAX_CHOICES}.", param="n")
    return count


def _logprobs(chat: ChatRequest) -> Document:
    if not chat.document.get("logprobs"):
        return {}
    return {"responseLogprobs": True, "logprobs": chat.number("top_logprobs")}


def _format(chat: ChatRequest) -> Document:
    wanted = chat.response_format
    if wanted is None:
        return {}
    schema = {"responseJsonSchema": wanted.schema} if wanted.kind == "json_schema" else {}
    return {"responseMimeType": "application/json", **schema}


def _modalities(document: Document, omissions: Omissions) -> list[str] | None:
    wanted = document.get("modalities")
    if not wanted:
        return None
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise BadRequest("'modalities' must be a list of words.", param="modalities")
    if set(wanted) - {"text", "image"}:
        omissions.meaning("modalities")
        return None
    return None if set(wanted) == {"text"} else [name.upper() for name in wanted]


def _thinking(document: Document, rules: Rules, models: Models, omissions: Omissions) -> Document | None:
    effort = document.get("reasoning_effort")
    if effort is None:
        return None
    if not isinstance(effort, str) or effort not in models.efforts:
        known = ", ".join(models.efforts)
        raise BadRequest(f"'reasoning_effort' must be one of {known}.", param="reasoning_effort")
    config = models.thinking(effort, rules)
    if config is None and effort != "none":
        omissions.hint("reasoning_effort")
    return config


def _top_level(document: Document, omissions: Omissions, extra: Document) -> dict[str, Any]:  # values are the client's
    tier = document.get("service_tier")
    if not extra and tier is None:
        return {}
    body = {"safetySettings": extra.get("safety_settings"), "cachedContent": extra.get("cached_content")}
    if tier not in (None, "auto"):
        body["serviceTier"] = _SERVICE_TIERS.get(str(tier))
        if body["serviceTier"] is None:
            omissions.hint("service_tier")
    return {name: value for name, value in body.items() if value is not None}
