"""What OpenAI's own models refuse on chat completions, taken out of requests that other vendors' models would take.

A conversation may have begun with another vendor, and a fallback or a new model name must not end it with a 400.
"""

from __future__ import annotations

import tomllib
from collections.abc import Set as AbstractSet
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from typing import Any, Final

from llmproxy.config import Section
from llmproxy.request import Operation, Request

_REMEMBERED_MODELS: Final = 1024
# Where the objects of a request stand that may have such members, and what within them may too.
_LISTS: Final = ("messages", "tools")
_INNER_LISTS: Final = ("content", "tool_calls")


class ChatCompletionsRules(Section):
    """The whole of `chat_completions.toml`.

    Attributes:
        unknown_members: Members of messages, their parts and calls, and of tools, that are refused.
        new_limit_only: Patterns over models that know `max_tokens` by its new name alone.
    """

    unknown_members: frozenset[str]
    new_limit_only: tuple[str, ...]


class ChatCompletions:
    """Makes requests ones that OpenAI's chat completions accept; what need not change keeps its bytes."""

    def __init__(self, rules: ChatCompletionsRules) -> None:
        self._rules = rules
        # Clients choose what is looked up, so what is remembered has a limit.
        self._has_new_limit_only = lru_cache(maxsize=_REMEMBERED_MODELS)(self._look_up)

    @classmethod
    def load(cls) -> ChatCompletions:
        """The rules that come with the gateway."""
        text = resources.files("llmproxy.providers").joinpath("chat_completions.toml").read_text("utf-8")
        return cls(ChatCompletionsRules.model_validate(tomllib.loads(text)))

    def adapt(self, request: Request, model: str) -> tuple[str, ...]:
        """Take out what is refused, and name it, such as `messages.cache_control`.

        Args:
            model: What OpenAI calls the model, also where the customer calls it something else.
        """
        if request.operation is not Operation.CHAT:
            return ()
        dropped: dict[str, None] = {}
        unknown = self._rules.unknown_members
        for name in _LISTS:
            items = request.document.get(name)
            if isinstance(items, list) and _holds(items, unknown):
                request.set(name, _kept(items, unknown, name, dropped))
        if request.document.get("max_tokens") is not None and self._has_new_limit_only(model):
            _rename_limit(request, dropped)
        return tuple(dropped)

    def _look_up(self, model: str) -> bool:
        name = model.removeprefix("ft:")
        return any(fnmatchcase(name, pattern) for pattern in self._rules.new_limit_only)


def _rename_limit(request: Request, dropped: dict[str, None]) -> None:
    limit = request.document["max_tokens"]
    request.remove("max_tokens")
    if request.document.get("max_completion_tokens") is None:
        request.set("max_completion_tokens", limit)
    else:
        dropped["max_tokens"] = None


# What a client sent can be anything.
def _holds(items: list[Any], unknown: AbstractSet[str]) -> bool:
    """Whether any object of a list, or of a list within it, has an unknown member; most requests only come so far."""
    for item in items:
        if isinstance(item, dict):
            if not unknown.isdisjoint(item):
                return True
            content, calls = item.get("content"), item.get("tool_calls")
            if isinstance(content, list) and _any_has(content, unknown):
                return True
            if isinstance(calls, list) and _any_has(calls, unknown):
                return True
    return False


def _any_has(items: list[Any], unknown: AbstractSet[str]) -> bool:
    return any(isinstance(item, dict) and not unknown.isdisjoint(item) for item in items)


def _kept(items: list[Any], unknown: AbstractSet[str], where: str, dropped: dict[str, None]) -> list[Any]:
    """The list, its objects and those of the lists within it without unknown members."""
    kept = [_without(item, unknown, where, dropped) for item in items]
    for item in kept:
        for name in _INNER_LISTS if isinstance(item, dict) else ():
            if isinstance(item.get(name), list):
                item[name] = [_without(inner, unknown, where, dropped) for inner in item[name]]
    return kept


def _without(item: Any, unknown: AbstractSet[str], where: str, dropped: dict[str, None]) -> Any:
    if not isinstance(item, dict):
        return item
    dropped.update({f"{where}.{name}": None for name in item if name in unknown})
    return {name: value for name, value in item.items() if name not in unknown}
