"""The provider kinds that come with the gateway, registered as a stranger's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from llmproxy.config import Config
from llmproxy.hookspecs import hookimpl
from llmproxy.providers import Provider
from llmproxy.providers.anthropic import Anthropic
from llmproxy.providers.azure import Azure
from llmproxy.providers.bedrock import Bedrock
from llmproxy.providers.cohere import Cohere
from llmproxy.providers.compatible import compatible_kinds
from llmproxy.providers.demo import Demo
from llmproxy.providers.gemini import Gemini
from llmproxy.providers.mistral import Mistral
from llmproxy.providers.openai import OpenAI
from llmproxy.providers.vertex import Vertex


class BuiltinProviders:
    """Registers the built-in provider kinds."""

    name: ClassVar[str] = "builtin_providers"

    @hookimpl
    def register_providers(self, config: Config) -> Sequence[type[Provider]]:
        """Every kind that comes with the gateway."""
        return (OpenAI, Anthropic, Azure, Bedrock, Cohere, Demo, Gemini, Mistral, Vertex, *compatible_kinds())
