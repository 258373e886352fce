"""The provider kinds that come with the gateway, registered as a stranger's are; each is imported when it is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib import import_module
from typing import ClassVar, Final, NamedTuple

from llmproxy.config import Config
from llmproxy.hookspecs import hookimpl
from llmproxy.providers import Provider
from llmproxy.providers.vendors import load_vendors


class _Place(NamedTuple):
    """Where a kind's class is, and what the class says of its keys, for who wants to know that without importing it."""

    module: str
    name: str
    key_variables: tuple[str, ...] = ()

    def imported(self) -> type[Provider]:
        """The class."""
        kind: type[Provider] = getattr(import_module(f"llmproxy.providers.{self.module}"), self.name)
        return kind


# A test holds the table to the classes.
_PLACES: Final[Mapping[str, _Place]] = {
    "openai": _Place("openai", "OpenAI", ("OPENAI_API_KEY",)),
    "anthropic": _Place("anthropic", "Anthropic", ("ANTHROPIC_API_KEY",)),
    "azure": _Place("azure", "Azure"),
    "bedrock": _Place("bedrock", "Bedrock", ("AWS_BEARER_TOKEN_BEDROCK",)),
    "cohere": _Place("cohere", "Cohere", ("CO_API_KEY", "COHERE_API_KEY")),
    "demo": _Place("demo", "Demo"),
    "gemini": _Place("gemini", "Gemini", ("GOOGLE_API_KEY", "GEMINI_API_KEY")),
    "mistral": _Place("mistral", "Mistral", ("MISTRAL_API_KEY",)),
    "vertex": _Place("vertex", "Vertex"),
}


class BuiltinProviders:
    """Registers the built-in provider kinds."""

    name: ClassVar[str] = "builtin_providers"

    @hookimpl
    def register_providers(self, config: Config) -> Sequence[type[Provider]]:
        """The kinds that the configuration names; no other is imported."""
        named = {str(section.get("kind") or name) for name, section in config.providers.items()}
        own = [place.imported() for kind, place in _PLACES.items() if kind in named]
        return own if named <= _PLACES.keys() else [*own, *_compatible(named)]


def every_kind() -> Sequence[type[Provider]]:
    """All of them, imported."""
    return [*(place.imported() for place in _PLACES.values()), *_compatible(load_vendors().keys())]


def key_variables() -> Mapping[str, Sequence[str]]:
    """The names of all of them, and the environment variables that usually hold the key of each."""
    of_rows = {kind: row.key_variables for kind, row in load_vendors().items()}
    return {kind: place.key_variables for kind, place in _PLACES.items()} | of_rows


def _compatible(named: AbstractSet[str]) -> Sequence[type[Provider]]:
    """Those that are rows of data."""
    kinds: Sequence[type[Provider]] = import_module("llmproxy.providers.compatible").compatible_kinds()
    return [kind for kind in kinds if kind.kind in named]
