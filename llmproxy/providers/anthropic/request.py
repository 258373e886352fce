"""A chat completions request in the Messages format, for whichever host will take it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from llmproxy.dialects.chat_request import ChatRequest, read_chat_request
from llmproxy.errors import BadRequest
from llmproxy.providers.anthropic.cache_marks import limit_marks
from llmproxy.providers.anthropic.messages import conversation, is_tool_loop_without_thinking
from llmproxy.providers.anthropic.rules import ModelRules, Version
from llmproxy.providers.anthropic.thinking import Depth, Limits, depth
from llmproxy.providers.anthropic.tools import JSON_INSTRUCTION, ToolPlan, tool_plan
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

# Members of the Messages format that chat completions clients may add, as they are.
_NATIVE: Final = ("cache_control", "container", "context_management", "inference_geo", "mcp_servers", "speed")
# What cannot be left out without changing the answer, when it asks for anything.
_MEANINGFUL: Final = ("audio", "logprobs", "top_logprobs")
_READ: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "n"),
        *("tools", "functions", "tool_choice", "function_call", "parallel_tool_calls", "response_format"),
        *("temperature", "top_p", "top_k", "reasoning_effort", "thinking", "output_config", "web_search_options"),
        *("user", "safety_identifier", "service_tier", "modalities"),
        *_MEANINGFUL,
        *_NATIVE,
    }
)
_SERVICE_TIERS: Final[Mapping[str, str]] = {"auto": "auto", "default": "standard_only", "priority": "auto"}


@dataclass(slots=True)
class NativeRequest:
    """A request in the Messages format, but for what hosts put in different places: the model's name, `stream`.

    Attributes:
        body: Everything else; tool arguments in it are JSON text already, which only orjson can write.
        version: The API version whose rules the body follows.
        must_stream: The answer may take so long that it has to be asked for as a stream.
        dropped: The client's parameters that were left out.
    """

    body: Document
    version: Version
    must_stream: bool
    dropped: tuple[str, ...]

    def encode(self, **members: object) -> bytes:
        """The body with the host's own members before it. Raises BadRequest when it is nested too deep."""
        try:
            return orjson.dumps({**members, **self.body})
        except orjson.JSONEncodeError as error:
            raise BadRequest("The request is nested too deep for this provider; keep it within 200 levels.") from error


def native_request(document: Document, rules: ModelRules, limits: Limits, *, drop_params: bool) -> NativeRequest:
    """Translate a chat completions request. Raises BadRequest when it asks for what the model cannot do."""
    omissions = Omissions(drop_params=drop_params)
    chat = read_chat_request(document)
    system, turns = conversation(chat, rules, omissions)
    plan = tool_plan(chat, rules, omissions)
    if chat.response_format is not None and chat.response_format.kind == "json_object":
        system.append({"type": "text", "text": JSON_INSTRUCTION})
    reach = depth(
        chat,
        rules,
        limits,
        omissions,
        forces_call=plan.forces_call,
        is_mid_loop=lambda: is_tool_loop_without_thinking(turns),
    )
    members = {
        "max_tokens": reach.max_tokens,
        "system": system,
        "tools": plan.tools,
        "tool_choice": plan.choice,
        "messages": turns,
        "thinking": reach.thinking,
        "output_config": _output_config(document, reach, plan),
    }
    body = {name: value for name, value in members.items() if value}
    body |= reach.sampling
    _add_others(body, chat, omissions)
    if chat.is_marked:
        limit_marks(body)
    omissions.all_but_one_text(document, _MEANINGFUL)
    omissions.hint_all_but(document, _READ)
    return NativeRequest(body, rules.version, reach.max_tokens > rules.whole_max_tokens, omissions.names)


def _output_config(document: Document, reach: Depth, plan: ToolPlan) -> Document:
    own = document.get("output_config")
    config = {**own} if isinstance(own, dict) else {}
    if reach.effort:
        config["effort"] = reach.effort
    if plan.format:
        config["format"] = plan.format
    return config


def _add_others(body: Document, chat: ChatRequest, omissions: Omissions) -> None:
    document, given = chat.document, chat.stop
    stop = [sequence for sequence in given if sequence.strip()]
    if stop:
        body["stop_sequences"] = stop
    if len(stop) < len(given):
        # White space alone is refused.
        omissions.hint("stop")
    user = document.get("safety_identifier") or document.get("user")
    if isinstance(user, str) and user:
        # The vendor asks for an identifier that tells nothing of the person.
        body["metadata"] = {"user_id": hashlib.sha256(user.encode()).hexdigest()}
    tier = document.get("service_tier")
    if isinstance(tier, str) and tier in _SERVICE_TIERS:
        body["service_tier"] = _SERVICE_TIERS[tier]
    elif tier is not None:
        omissions.hint("service_tier")
    if not document.keys().isdisjoint(_NATIVE):
        body |= {name: value for name in _NATIVE if (value := document.get(name)) not in (None, [], {})}
