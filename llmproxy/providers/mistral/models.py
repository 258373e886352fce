"""What Mistral's models differ in, as rows of `models.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from typing import Final

from llmproxy.config import Section

_REMEMBERED_MODELS: Final = 1024


class ModelRules(Section):
    """One row.

    Attributes:
        match: Shell-style patterns over the model's name.
        efforts: What each `reasoning_effort` becomes; the model has no such parameter when this is empty.
        reasons: Whether the model thinks, and understands thinking in the history.
    """

    match: tuple[str, ...]
    efforts: Mapping[str, str] = {}
    reasons: bool = True


class ModelTable:
    """Every row, and which of them holds for a model."""

    def __init__(self, rows: Sequence[ModelRules]) -> None:
        self._rows = rows
        # Clients choose what is looked up, so there is a limit.
        self._remembered = lru_cache(maxsize=_REMEMBERED_MODELS)(self._look_up)

    def rules(self, model: str) -> ModelRules | None:
        """The row for a model; None when nothing is known of it."""
        return self._remembered(model)

    def _look_up(self, model: str) -> ModelRules | None:
        return next((row for row in self._rows if any(fnmatchcase(model, pattern) for pattern in row.match)), None)


def load_models() -> ModelTable:
    """The table that comes with the gateway."""
    text = resources.files("llmproxy.providers.mistral").joinpath("models.toml").read_text("utf-8")
    return ModelTable([ModelRules.model_validate(row) for row in tomllib.loads(text)["model"]])
