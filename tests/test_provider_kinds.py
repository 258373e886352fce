"""The kinds that come with the gateway: each is imported when a configuration names it, and not before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmproxy.config import Config
from llmproxy.errors import ConfigError
from llmproxy.gateway import ConfigSource, default_config, resolve_configuration
from llmproxy.providers.builtin import BuiltinProviders, every_kind, key_variables
from tests.providers import services

_IMPORTED = """
import sys
import llmproxy.cli.serve
from llmproxy.config import Config
from llmproxy.providers.builtin import BuiltinProviders
BuiltinProviders().register_providers(Config.model_validate({"providers": {"local": {"kind": "openai"}}}))
print(*(name for name in sys.modules if name.startswith("llmproxy.providers.")))
"""


def test_the_table_says_what_the_classes_say() -> None:
    """A kind is found under its own name, and its keys in the variables that its class names."""
    assert {kind.kind: kind.key_variables for kind in every_kind()} == key_variables()


def test_only_named_kinds_are_registered() -> None:
    """By the section's `kind`, or else by its name."""
    config = Config.model_validate({"providers": {"mistral": {}, "ours": {"kind": "groq"}, "else": {"kind": "none"}}})
    assert [kind.kind for kind in BuiltinProviders().register_providers(config)] == ["mistral", "groq"]


def test_a_kind_that_is_not_named_is_not_imported() -> None:
    """Nor are the rows of the compatible vendors read."""
    ran = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True)
    vendors = {"anthropic", "azure", "bedrock", "cohere", "compatible", "gemini", "mistral", "vertex"}
    imported = {name.split(".")[2] for name in ran.stdout.split()}
    assert (imported & vendors, "openai" in imported) == (set(), True)


def test_a_misspelt_kind_is_told_the_nearest_of_all() -> None:
    """Also when no section names that one."""
    source = ConfigSource(None, b"providers: {vendor: {kind: antropic}}")
    with pytest.raises(ConfigError, match="did you mean 'anthropic'"):
        resolve_configuration(source, services())


def test_what_is_served_without_a_file_follows_the_variables() -> None:
    """The demo, and whatever has its key in the usual variable, in the order of the kinds."""
    served = default_config({"GROQ_API_KEY": "g", "CO_API_KEY": "c", "COHERE_API_KEY": "d"})
    lines = ['cohere: {api_key: "${CO_API_KEY}"}', 'groq: {api_key: "${GROQ_API_KEY}"}']
    assert [line.strip() for line in served.splitlines()] == ["providers:", "demo: {}", *lines]
