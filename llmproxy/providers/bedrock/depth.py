"""How much to think and to answer: the answer's limit, sampling, and what each family calls reasoning effort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmproxy.dialects.chat_request import ChatRequest
from llmproxy.errors import BadRequest
from llmproxy.providers.anthropic.rules import ModelRules as ClaudeRules
from llmproxy.providers.anthropic.thinking import Limits
from llmproxy.providers.anthropic.thinking import depth as claude_depth
from llmproxy.providers.bedrock.models import ModelRules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

# What stands for each effort where there are three of them.
_THREE_EFFORTS: Final = {
    "none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip


@dataclass(slots=True)
class Depth:
    """`max_tokens`, when it has to be said, sampling under the client's names, and what only this model has."""

    max_tokens: int | None
    sampling: Document
    own_fields: Document


def depth(chat: ChatRequest, rules: ModelRules, limits: Limits, omissions: Omissions, *, forces_call: bool) -> Depth:
    """What the request asks for, as far as the model allows it. Raises BadRequest.

    Args:
        forces_call: The model has to call a tool.
    """
    if rules.claude is not None:
        return _claude(chat, rules.claude, limits, omissions, forces_call=forces_call)
    names = ("temperature", "top_p", "top_k") if rules.top_k else ("temperature", "top_p")
    sampling = chat.numbers(names)
    if "temperature" in sampling:
        # OpenAI's temperatures go up to 2.
        sampling["temperature"] = min(max(sampling["temperature"], 0), 1)
    for name in ("top_k", "thinking"):
        if chat.document.get(name) is not None and name not in sampling:
            omissions.hint(name)
    return Depth(chat.max_tokens or limits.default_max_tokens, sampling, _reasoning(chat, rules, omissions))


def _claude(chat: ChatRequest, rules: ClaudeRules, limits: Limits, omissions: Omissions, *, forces_call: bool) -> Depth:
    reach = claude_depth(
        chat, rules, limits, omissions, forces_call=forces_call, is_mid_loop=lambda: _is_mid_loop(chat)
    )
    own_fields: Document = {}
    if reach.thinking is not None:
        own_fields["thinking"] = reach.thinking
    if reach.effort is not None:
        own_fields["output_config"] = {"effort": reach.effort}
    # A limit that nobody asked for is still counted against the quota; only a budget needs one to stay below.
    has_budget = reach.thinking is not None and "budget_tokens" in reach.thinking
    max_tokens = reach.max_tokens if has_budget else chat.max_tokens or limits.default_max_tokens
    return Depth(max_tokens, reach.sampling, own_fields)


def _is_mid_loop(chat: ChatRequest) -> bool:
    """Whether results are handed back of calls that came without thoughts: a budget cannot begin there."""
    if chat.messages[-1].role != "tool":
        return False
    calling = next((message for message in reversed(chat.messages) if message.role == "assistant"), None)
    return calling is None or not calling.thinking


def _reasoning(chat: ChatRequest, rules: ModelRules, omissions: Omissions) -> Document:
    wanted = chat.document.get("reasoning_effort")
    if wanted is None:
        return {}
    if wanted not in _THREE_EFFORTS:
        known = ", ".join(_THREE_EFFORTS)
        raise BadRequest(f"'reasoning_effort' must be one of {known}.", param="reasoning_effort")
    match rules.reasoning:
        case "field":
            return {"reasoning_effort": _THREE_EFFORTS[wanted]}
        case "nova" if wanted == "none":
            return {"reasoningConfig": {"type": "disabled"}}
        case "nova":
            return {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": _THREE_EFFORTS[wanted]}}
        case "none":
            omissions.hint("reasoning_effort")
            return {}
