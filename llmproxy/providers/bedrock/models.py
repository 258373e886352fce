"""What each model on Bedrock can do: the rows of models.toml, looked up by a model's id."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from typing import Any, Final, Literal

from llmproxy.config import Section
from llmproxy.providers.anthropic.rules import ModelRules as ClaudeRules
from llmproxy.providers.anthropic.rules import ModelTable as ClaudeTable
from llmproxy.providers.anthropic.rules import load_models as load_claude_models

_REMEMBERED_MODELS: Final = 1024
# What Bedrock adds to the name that a model has elsewhere.
_RELEASE: Final = re.compile(r"-v\d+(?::\d+)*$")


class ModelRules(Section):
    """What one model can do.

    Attributes:
        claude: What holds for it wherever it runs; None when it is no Claude model.
        top_k: Where top_k goes in its own fields; empty when it has none.
        tool_choices: The tool choices it takes.
        has_output_format: It answers to a JSON schema; without, it is made to call a tool of that form.
        cache_sections: Where cache points may stand.
        has_cache_hour: A cache point may last for an hour.
        reasoning: How other models than Claude are told how much to think.
    """

    claude: ClaudeRules | None = None
    top_k: tuple[str, ...] = ()
    tool_choices: tuple[Literal["auto", "any", "tool"], ...] = ("auto", "any")
    has_output_format: bool = True
    cache_sections: tuple[Literal["tools", "system", "messages"], ...] = ()
    has_cache_hour: bool = False
    reasoning: Literal["none", "field", "nova"] = "none"

    @property
    def has_system_turns(self) -> bool:
        """Whether system messages may stand between others."""
        return self.claude is not None and self.claude.system_messages


class RuleBook:
    """The rules of every model.

    Args:
        rows: Patterns with what holds for models that fit them; later rows count over earlier ones.
    """

    # A row's values are whatever the file says, until ModelRules has checked them.
    def __init__(self, rows: Sequence[Mapping[str, Any]], claude_models: ClaudeTable) -> None:
        self._rows = [(tuple(row["match"]), {key: row[key] for key in row if key != "match"}) for row in rows]
        self._claude_models = claude_models
        self._remembered = lru_cache(maxsize=_REMEMBERED_MODELS)(self._look_up)

    @classmethod
    def load(cls) -> RuleBook:
        """The rules that come with the gateway."""
        text = resources.files("llmproxy.providers.bedrock").joinpath("models.toml").read_text("utf-8")
        return cls(tomllib.loads(text)["models"], load_claude_models())

    def rules(self, model: str) -> ModelRules:
        """What holds for a model, by its id or an ARN that ends in it."""
        return self._remembered(model)

    def _look_up(self, model: str) -> ModelRules:
        merged: dict[str, Any] = {}
        for patterns, values in self._rows:
            if any(fnmatchcase(model, pattern) for pattern in patterns):
                merged |= values
        rules = ModelRules.model_validate(merged)
        if "anthropic.claude-" not in model:
            return rules
        claude = self._claude_models.rules(_RELEASE.sub("", model))
        return rules.model_copy(
            update={
                "claude": claude,
                "has_output_format": claude.structured_output,
                "tool_choices": ("auto",) if claude.forced_tools == "never" else rules.tool_choices,
            }
        )
