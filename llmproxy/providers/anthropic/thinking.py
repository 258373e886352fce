"""How much to think and to answer: reasoning effort, its budget, the answer's limit, and sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from llmproxy.dialects.chat_request import ChatRequest
from llmproxy.errors import BadRequest
from llmproxy.providers.anthropic.rules import Effort, ModelRules
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

# `reasoning_effort`, as chat completions clients may write it.
ReasoningEffort = Literal["minimal", "low", "medium", "high", "xhigh", "max"]
BUDGETS: Final[Mapping[ReasoningEffort, int]] = {
    "minimal": 1024,
    "low": 1024,
    "medium": 4096,
    "high": 16_384,
    "xhigh": 24_576,
    "max": 32_000,
}
_MIN_BUDGET: Final = 1024
# Thinking that still lacks its number of tokens.
_BY_BUDGET: Final[Document] = {"type": "enabled"}
# What stands for a level, best first: the next lower one where a model lacks it, and `max` for its lower neighbour.
_LEVELS: Final[Mapping[ReasoningEffort, tuple[Effort, ...]]] = {
    "minimal": ("low",),
    "low": ("low",),
    "medium": ("medium",),
    "high": ("high",),
    "xhigh": ("xhigh", "max", "high"),
    "max": ("max", "xhigh", "high"),
}


@dataclass(slots=True)
class Depth:
    """How far the model may go, as members of a request.

    Attributes:
        max_tokens: The limit of the answer, thinking included.
        thinking: The member of that name; None leaves it to the model's default.
        effort: `output_config.effort`.
        sampling: Temperature, top_p and top_k.
    """

    max_tokens: int
    thinking: Document | None
    effort: Effort | None
    sampling: Document


@dataclass(frozen=True, slots=True)
class Limits:
    """The operator's own numbers.

    Attributes:
        default_max_tokens: The limit of an answer to a request that sets none; None is the model's own.
        budgets: Tokens to think with, for models that want a number.
    """

    default_max_tokens: int | None = None
    budgets: Mapping[ReasoningEffort, int] = field(default_factory=lambda: BUDGETS)


def depth(
    chat: ChatRequest,
    rules: ModelRules,
    limits: Limits,
    omissions: Omissions,
    *,
    forces_call: bool,
    is_mid_loop: Callable[[], bool],
) -> Depth:
    """What the request asks for, as far as the model allows it.

    Args:
        forces_call: The model has to call a tool.
        is_mid_loop: Whether results are handed back of calls that came without reasoning.
    """
    max_tokens = chat.max_tokens or _default_max_tokens(rules, limits)
    thinking, effort = _thinking(chat, rules, omissions, forces_call=forces_call)
    if thinking is _BY_BUDGET:
        thinking = _with_budget(chat, limits, max_tokens, omissions, is_mid_loop)
    is_thinking = thinking is not None and thinking.get("type") in ("enabled", "adaptive")
    return Depth(max_tokens, thinking, effort, _sampling(chat, rules, omissions, is_thinking=is_thinking))


def _default_max_tokens(rules: ModelRules, limits: Limits) -> int:
    wanted = limits.default_max_tokens or rules.default_max_tokens or rules.max_output_tokens
    return min(wanted, rules.max_output_tokens)


def _thinking(
    chat: ChatRequest, rules: ModelRules, omissions: Omissions, *, forces_call: bool
) -> tuple[Document | None, Effort | None]:
    wanted = _reasoning_effort(chat.document)
    native = chat.document.get("thinking")
    if isinstance(native, dict):
        return native, _level(wanted, rules) if wanted not in (None, "none") else None
    if forces_call and rules.forced_tools == "unthinking":
        # The call was asked for in so many words; the reasoning is only a way to it.
        if wanted not in (None, "none"):
            omissions.hint("reasoning_effort")
        return _unthinking(rules), None
    if wanted is None:
        return None, None
    if wanted == "none":
        if rules.thinks_by_default and _unthinking(rules) is None:
            omissions.meaning("reasoning_effort", "This model always thinks; leave 'reasoning_effort' out.")
        return _unthinking(rules), None
    if "adaptive" in rules.thinking:
        # The newest models keep their thinking to themselves unless asked.
        return {"type": "adaptive", "display": "summarized"}, _level(wanted, rules)
    if "enabled" in rules.thinking:
        return _BY_BUDGET, None
    omissions.hint("reasoning_effort")
    return None, None


def _reasoning_effort(document: Document) -> str | None:
    wanted = document.get("reasoning_effort")
    if wanted is None:
        return None
    if not isinstance(wanted, str) or wanted not in ("none", *get_args(ReasoningEffort)):
        levels = ", ".join(("none", *get_args(ReasoningEffort)))
        raise BadRequest(f"'reasoning_effort' must be one of {levels}.", param="reasoning_effort")
    return wanted


def _unthinking(rules: ModelRules) -> Document | None:
    """How to switch thinking off; None where nothing does, or where nothing has to."""
    if not rules.thinks_by_default:
        return None
    return next(({"type": way} for way in ("disabled", "between_tools") if way in rules.thinking), None)


def _level(wanted: str | None, rules: ModelRules) -> Effort | None:
    # `wanted` has been checked to be one of them.
    levels = next((levels for name, levels in _LEVELS.items() if name == wanted), ())
    return next((level for level in levels if level in rules.effort), None)


def _with_budget(
    chat: ChatRequest, limits: Limits, max_tokens: int, omissions: Omissions, is_mid_loop: Callable[[], bool]
) -> Document | None:
    # Never above the client's limit: what a request may cost at most has been settled before it gets here.
    wanted = next(tokens for name, tokens in limits.budgets.items() if name == chat.document["reasoning_effort"])
    budget = min(wanted, max_tokens - 1)
    if budget < _MIN_BUDGET or is_mid_loop():
        omissions.hint("reasoning_effort")
        return None
    return {"type": "enabled", "budget_tokens": budget}


def _sampling(chat: ChatRequest, rules: ModelRules, omissions: Omissions, *, is_thinking: bool) -> Document:
    given = chat.numbers(("temperature", "top_p", "top_k"))
    if not given:
        return {}
    if is_thinking or not rules.sampling:
        for name in given:
            omissions.hint(name)
        return {}
    if rules.one_sampling_parameter and "temperature" in given and "top_p" in given:
        omissions.hint("top_p")
        del given["top_p"]
    if "temperature" in given:
        given["temperature"] = min(max(given["temperature"], 0), 1)
    return given
