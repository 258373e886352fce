"""A chat completions request as the body of Converse and ConverseStream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from llmproxy.dialects.chat_request import ChatRequest, ResponseFormat, read_chat_request
from llmproxy.errors import BadRequest
from llmproxy.providers.anthropic.thinking import Limits
from llmproxy.providers.anthropic.tools import JSON_INSTRUCTION
from llmproxy.providers.bedrock.blocks import BlockWriter, limit_cache_points
from llmproxy.providers.bedrock.depth import Depth, depth
from llmproxy.providers.bedrock.messages import Conversation, MessageWriter
from llmproxy.providers.bedrock.models import ModelRules
from llmproxy.providers.bedrock.tools import ToolPlan, tool_plan
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

_SAMPLING: Final = {"temperature": "temperature", "top_p": "topP"}
_SERVICE_TIERS: Final = ("default", "flex", "priority")
_MAX_METADATA: Final = 16
# What requestMetadata may hold, as keys and as values.
_METADATA_TEXT: Final = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]{0,256}")
# Converse's own members, for clients that know what they talk to.
_CONVERSES_OWN: Final = ("guardrailConfig", "performanceConfig", "promptVariables")
_RARE: Final = frozenset({"metadata", "service_tier", *_CONVERSES_OWN})
# What is sent in some form, or means nothing here. Whatever else a request holds is left out, and named.
_TRANSLATED: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "stop", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "top_k", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "reasoning_effort", "thinking", "modalities", "web_search_options"),
        *_RARE,
        *("additionalModelRequestFields", "additionalModelResponseFieldPaths"),
    }
)


def converse_body(
    document: Document, rules: ModelRules, omissions: Omissions, *, limits: Limits, betas: Sequence[str] = ()
) -> bytes:
    """The body; the same request gives the same bytes.

    Args:
        betas: The beta features of Claude to ask for.

    Raises BadRequest when the request is malformed or asks for what the model cannot do.
    """
    chat = read_chat_request(document)
    _refuse(chat, omissions)
    writer = BlockWriter(rules, omissions)
    tools = tool_plan(chat, rules, writer, omissions)
    reach = depth(chat, rules, limits, omissions, forces_call=tools.forces_call)
    conversation = MessageWriter(rules, writer, omissions, has_tools=bool(tools.config)).translate(chat.messages)
    if chat.response_format is not None and chat.response_format.kind == "json_object":
        conversation.system.append({"text": JSON_INSTRUCTION})
    if writer.has_cache_points and _limit_cache_points(tools, conversation):
        omissions.hint("cache_control")
    body: Document = {
        "messages": conversation.turns,
        "system": conversation.system,
        "inferenceConfig": _inference(chat, reach),
        "toolConfig": tools.config,
        "outputConfig": _output(chat.response_format, tools),
        **_rare_members(document, omissions),
        "additionalModelRequestFields": _own_fields(document, rules, reach, tools, betas),
        "additionalModelResponseFieldPaths": document.get("additionalModelResponseFieldPaths"),
    }
    omissions.hint_all_but(document, _TRANSLATED)
    return orjson.dumps({name: value for name, value in body.items() if value})


def _rare_members(document: Document, omissions: Omissions) -> Document:
    if document.keys().isdisjoint(_RARE):
        return {}
    return {
        "requestMetadata": _metadata(document, omissions),
        "serviceTier": _service_tier(document, omissions),
        **{name: document.get(name) for name in _CONVERSES_OWN},
    }


def _limit_cache_points(tools: ToolPlan, conversation: Conversation) -> bool:
    turns = [turn["content"] for turn in conversation.turns]
    return limit_cache_points([tools.config.get("tools", []), conversation.system, *turns])


def _refuse(chat: ChatRequest, omissions: Omissions) -> None:
    document = chat.document
    if document.get("n") not in (None, 1):
        omissions.meaning("n", "This provider gives one choice for each request; leave out 'n'.")
    modalities = document.get("modalities")
    if document.get("audio") or (isinstance(modalities, list) and set(map(str, modalities)) - {"text"}):
        omissions.meaning("modalities")
    if isinstance(document.get("web_search_options"), dict):
        omissions.meaning("web_search_options")


def _inference(chat: ChatRequest, reach: Depth) -> Document:
    config: Document = {} if reach.max_tokens is None else {"maxTokens": reach.max_tokens}
    if reach.sampling:
        config |= {_SAMPLING[name]: value for name, value in reach.sampling.items() if name in _SAMPLING}
    if stop := [sequence for sequence in chat.stop if sequence]:
        config["stopSequences"] = stop
    return config


def _own_fields(document: Document, rules: ModelRules, reach: Depth, tools: ToolPlan, betas: Sequence[str]) -> Document:
    """What only this model has; what the client says in so many words wins."""
    fields = {**reach.own_fields, **tools.own_fields}
    if (top_k := reach.sampling.get("top_k")) is not None:
        fields |= _nested(rules.top_k, top_k)
    if betas and rules.claude is not None:
        fields["anthropic_beta"] = list(betas)
    own = document.get("additionalModelRequestFields")
    return {**fields, **own} if isinstance(own, dict) else fields


def _nested(path: Sequence[str], value: object) -> Document:
    """The value, as many members deep as the path has names; there is at least one."""
    first, *others = path
    return {first: _nested(others, value) if others else value}


def _output(wanted: ResponseFormat | None, tools: ToolPlan) -> Document:
    if wanted is None or tools.schema is None:
        return {}
    schema = {"schema": orjson.dumps(tools.schema).decode(), "name": wanted.name}
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}


def _metadata(document: Document, omissions: Omissions) -> Mapping[str, str]:
    """The client's tags, as far as they can be sent: they end in the customer's own logs."""
    metadata = document.get("metadata")
    if not metadata:
        return {}
    if not isinstance(metadata, dict):
        raise BadRequest("'metadata' must be an object.", param="metadata")
    sent = {name: value for name, value in metadata.items() if name and _fits(name) and _fits(value)}
    if len(sent) < len(metadata) or len(sent) > _MAX_METADATA:
        omissions.hint("metadata")
    return dict(list(sent.items())[:_MAX_METADATA])


def _fits(text: object) -> bool:
    return isinstance(text, str) and _METADATA_TEXT.fullmatch(text) is not None


def _service_tier(document: Document, omissions: Omissions) -> Document:
    tier = document.get("service_tier")
    if tier in _SERVICE_TIERS:
        return {"type": tier}
    if tier not in (None, "auto"):
        omissions.hint("service_tier")
    return {}
