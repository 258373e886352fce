"""What Cohere's models differ in, as rows of `models.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib import resources

from llmproxy.config import Section


class ModelRules(Section):
    """One row.

    Attributes:
        match: Shell-style patterns over the model's name.
        reasons: Whether the model can think, and understands thinking in the history.
    """

    match: tuple[str, ...] = ("*",)
    reasons: bool = True


class Models(Section):
    """The whole table; `budgets` are tokens of thinking by `reasoning_effort`."""

    model: tuple[ModelRules, ...]
    budgets: Mapping[str, int]

    def rules(self, model: str) -> ModelRules:
        """The row for a model."""
        rows = (row for row in self.model if any(fnmatchcase(model, pattern) for pattern in row.match))
        return next(rows, ModelRules())


def load_models() -> Models:
    """The table that comes with the gateway."""
    text = resources.files("llmproxy.providers.cohere").joinpath("models.toml").read_text("utf-8")
    return Models.model_validate(tomllib.loads(text))
