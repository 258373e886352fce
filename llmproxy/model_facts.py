"""What is known of models beside their prices: how much they take and give, in which forms, and until when."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

from llmproxy.request import Document


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model's facts; None is not known, which nobody should guess at.

    Attributes:
        is_deprecated: Its vendor advises against it.
        retires_on: The first day on which its vendor no longer serves it.
    """

    context_window_tokens: int | None = None
    max_output_tokens: int | None = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None
    is_deprecated: bool | None = None
    retires_on: date | None = None

    def known(self) -> Document:
        """The facts that are known, by name."""
        told = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: value for name, value in told if value is not None}

    def or_else(self, others: ModelFacts) -> ModelFacts:
        """These facts, and those of `others` that are not known here."""
        return replace(others, **self.known())


class FactsTable:
    """The rows of `models.toml`: facts that no price data has.

    Args:
        rows: Each with the price data's name of the vendor, patterns over its models, and facts.
    """

    # A row's values are a fact's own types, which differ.
    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows: dict[str, list[tuple[Sequence[str], ModelFacts]]] = {}
        for row in rows:
            vendor, match, facts = _row(**row)
            self._rows.setdefault(vendor, []).append((match, facts))

    def facts(self, model: str, price_provider: str | None) -> ModelFacts:
        """What all rows that fit a model say of it, the first of them first."""
        found = ModelFacts()
        for match, facts in self._rows.get(price_provider or "", ()):
            if any(fnmatchcase(model, pattern) for pattern in match):
                found = found.or_else(facts)
        return found


def load_facts() -> FactsTable:
    """The table that comes with the gateway."""
    text = resources.files("llmproxy").joinpath("models.toml").read_text("utf-8")
    return FactsTable(tomllib.loads(text)["model"])


def _row(vendor: str, match: Sequence[str], **facts: Any) -> tuple[str, Sequence[str], ModelFacts]:
    frozen: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return vendor, match, ModelFacts(**frozen)
