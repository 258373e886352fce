"""What each Claude model takes and refuses, as rows of data."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from typing import Final, Literal

from llmproxy.config import Section

_REMEMBERED_MODELS: Final = 1024

Effort = Literal["low", "medium", "high", "xhigh", "max"]
ThinkingType = Literal["enabled", "adaptive", "disabled", "between_tools"]
Version = Literal["2023-06-01", "2026-10-21"]


class ModelRules(Section):
    """One row of `models.toml`; the defaults are those of the newest models.

    Attributes:
        match: Shell-style patterns over the model's name.
        version: The API version whose rules a request follows.
        max_output_tokens: The most the model can answer with.
        default_max_tokens: What a request without a limit gets; None is as much as the model can.
        whole_max_tokens: Answers that may be longer take so long that they are streamed.
        sampling: Temperature, top_p and top_k may be set.
        one_sampling_parameter: Of temperature and top_p only one may be set.
        thinking: The types of `thinking` that are accepted.
        effort: The levels of effort that are accepted, from low to high.
        thinks_by_default: Without `thinking` in the request the model thinks.
        forced_tools: Whether a tool call can be forced: always, only while the model does not think, or never.
        structured_output: Answers and strict tools can be held to a JSON schema.
        system_messages: Messages of the role system may stand among the others.
        prefill: The last message may be the beginning of the model's own answer.
    """

    match: tuple[str, ...] = ("*",)
    version: Version = "2026-10-21"
    max_output_tokens: int = 128_000
    default_max_tokens: int | None = None
    whole_max_tokens: int = 21_333
    sampling: bool = False
    one_sampling_parameter: bool = False
    thinking: tuple[ThinkingType, ...] = ("adaptive",)
    effort: tuple[Effort, ...] = ("low", "medium", "high", "xhigh", "max")
    thinks_by_default: bool = True
    forced_tools: Literal["always", "unthinking", "never"] = "always"
    structured_output: bool = True
    system_messages: bool = False
    prefill: bool = False


class ModelTable:
    """Every row, and which of them holds for a model."""

    def __init__(self, rows: Sequence[ModelRules]) -> None:
        self._rows = rows
        # Some twenty patterns are a good part of what a translation costs; clients choose what is looked up.
        self._remembered = lru_cache(maxsize=_REMEMBERED_MODELS)(self._look_up)

    def rules(self, model: str) -> ModelRules:
        """The rules for a model, by the name that any host has for it; a new one is taken for one of the newest."""
        return self.known(model) or ModelRules()

    def known(self, model: str) -> ModelRules | None:
        """The row for a model, if there is one: what stands before "claude" is the host's."""
        return self._remembered(model)

    def _look_up(self, model: str) -> ModelRules | None:
        name = model[max(model.find("claude"), 0) :].replace("@", "-")
        return next((row for row in self._rows if any(fnmatchcase(name, each) for each in row.match)), None)


def load_models() -> ModelTable:
    """The table that comes with the gateway."""
    text = resources.files("llmproxy.providers.anthropic").joinpath("models.toml").read_text("utf-8")
    return ModelTable([ModelRules.model_validate(row) for row in tomllib.loads(text)["model"]])
