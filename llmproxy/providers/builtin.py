"""The provider kinds that come with the gateway, registered as a stranger's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from llmproxy.config import Config
from llmproxy.hookspecs import hookimpl
from llmproxy.providers import Provider
from llmproxy.providers.compatible import compatible_kinds
from llmproxy.providers.demo import Demo
from llmproxy.providers.openai import OpenAI


class BuiltinProviders:
    """Registers the built-in provider kinds."""

    name: ClassVar[str] = "builtin_providers"

    @hookimpl
    def register_providers(self, config: Config) -> Sequence[type[Provider]]:
        """Every kind that comes with the gateway."""
        return (OpenAI, Demo, *compatible_kinds())
