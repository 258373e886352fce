"""What Cohere's models differ in, as rows of `models.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from importlib import resources
from typing import Final

from llmproxy.config import Section

_REMEMBERED_MODELS: Final = 1024


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

    @cached_property
    def rules(self) -> Callable[[str], ModelRules]:
        """The row for a model."""
        # Clients choose what is looked up, so what is remembered has a limit.
        return lru_cache(maxsize=_REMEMBERED_MODELS)(self._look_up)

    def _look_up(self, model: str) -> ModelRules:
        rows = (row for row in self.model if any(fnmatchcase(model, pattern) for pattern in row.match))
        return next(rows, ModelRules())


def load_models() -> Models:
    """The table that comes with the gateway."""
    text = resources.files("llmproxy.providers.cohere").joinpath("models.toml").read_text("utf-8")
    return Models.model_validate(tomllib.loads(text))
