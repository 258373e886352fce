"""What Gemini models can and cannot do, as rows of `models.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from importlib import resources
from typing import Final, Literal

from llmproxy.config import Section
from llmproxy.request import Document

_REMEMBERED_MODELS: Final = 1024


class Rules(Section):
    """One row of `models.toml`, whose first lines say what each key means."""

    match: tuple[str, ...]
    thinking: Literal["levels", "budget", "none"] = "levels"
    levels: tuple[str, ...] = ()
    budget: tuple[int, int] = (0, 0)
    can_stop: bool = True
    sampling: bool = True
    penalties: bool = False
    prefill: bool = True
    system: bool = True
    signatures: bool = False
    media_resolution: bool = False


class Effort(Section):
    """What a `reasoning_effort` asks for."""

    levels: tuple[str, ...]
    budget: int


class Models(Section):
    """The whole table."""

    family: tuple[Rules, ...]
    efforts: Mapping[str, Effort]

    @cached_property
    def rules(self) -> Callable[[str], Rules]:
        """The row for a model, whatever stands before its name; the newest models' row for one that is not known."""
        # Clients choose what is looked up, so what is remembered has a limit.
        return lru_cache(maxsize=_REMEMBERED_MODELS)(self._look_up)

    def _look_up(self, model: str) -> Rules:
        name = model.rpartition("/")[2]
        return next(row for row in self.family if any(fnmatchcase(name, pattern) for pattern in row.match))

    def thinking(self, effort: str, rules: Rules) -> Document | None:
        """`thinkingConfig` for an effort; None when the model has no such thing. Raises KeyError: unknown effort."""
        wanted = self.efforts[effort]
        if rules.thinking == "none":
            return None
        config: Document = {} if effort == "none" else {"includeThoughts": True}
        if rules.thinking == "levels":
            level = next((level for level in wanted.levels if level in rules.levels), rules.levels[-1])
            return {**config, "thinkingLevel": level.upper()}
        least, most = rules.budget
        stops = wanted.budget == 0 and rules.can_stop
        return {**config, "thinkingBudget": 0 if stops else max(least, min(wanted.budget, most))}


def load_models() -> Models:
    """The table as it comes with the gateway."""
    text = resources.files("llmproxy.providers.gemini").joinpath("models.toml").read_text("utf-8")
    return Models.model_validate(tomllib.loads(text))
