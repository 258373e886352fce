"""Which requests OpenAI's models refuse on chat completions, as rows of `models.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import resources
from typing import Final

from llmproxy.config import Section
from llmproxy.request import Document

# What OpenAI's chat completions do not know: a message has these from an answer that came through the Responses API,
# or from another vendor.
_OF_REASONING: Final = frozenset({"thinking_blocks", "reasoning_content", "extra_content"})


class ModelRules(Section):
    """One row.

    Attributes:
        match: Shell-style patterns over the model's name.
        chat_completions: Whether the model is there at all.
        tools_by_default: Whether it takes tools there from a request that says nothing of reasoning.
        responses_efforts: The reasoning efforts that it does not take there, tools or not.
    """

    match: tuple[str, ...]
    chat_completions: bool = True
    tools_by_default: bool = True
    responses_efforts: tuple[str, ...] = ("max",)

    def refuses(self, document: Document) -> bool:
        """Whether chat completions would refuse this request."""
        effort = document.get("reasoning_effort")
        reasons = not self.tools_by_default if effort is None else effort != "none"
        return (
            not self.chat_completions
            or effort in self.responses_efforts
            or bool(reasons and (document.get("tools") or document.get("functions")))
            or _has_reasoned(document.get("messages"))
        )


class ModelTable:
    """Every row, and which of them holds for a model."""

    def __init__(self, rows: Sequence[ModelRules]) -> None:
        self._rows = rows

    def rules(self, model: str) -> ModelRules | None:
        """The row for a model or a fine-tuned one of its kind; None when chat completions take all it is asked."""
        name = model.removeprefix("ft:").partition(":")[0]
        return next((row for row in self._rows if any(fnmatchcase(name, pattern) for pattern in row.match)), None)


def load_models() -> ModelTable:
    """The table that comes with the gateway."""
    text = resources.files("llmproxy.providers.responses").joinpath("models.toml").read_text("utf-8")
    return ModelTable([ModelRules.model_validate(row) for row in tomllib.loads(text)["model"]])


def _has_reasoned(messages: object) -> bool:
    if not isinstance(messages, list):
        return False
    return any(isinstance(message, dict) and not _OF_REASONING.isdisjoint(message) for message in messages)
