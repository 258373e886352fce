"""`llmproxy check` on shares that nobody gives anybody."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from os import PathLike
from pathlib import Path
from typing import Any

import pytest

from llmproxy.api import Section, Services, Target, hookimpl
from llmproxy.cli.check import warnings
from llmproxy.gateway import ConfigSource, resolve_configuration
from llmproxy.testing import make_services
from llmproxy_plugins.routing import Routing

SPLIT: Mapping[str, Any] = {
    "providers": {"a": {"kind": "openai", "base_url": "http://127.0.0.1:9"}, "demo": {}},
    "models": {
        "split": {"targets": ["a/m", "demo/echo"], "fallbacks": ["demo/story"]},
        "spare": {"targets": ["a/m", {"model": "demo/echo", "weight": 0}], "fallbacks": ["demo/story"]},
    },
}
KEYS = {**SPLIT, "providers": {**SPLIT["providers"], "a": {**SPLIT["providers"]["a"], "api_keys": ["one", "two"]}}}


class Guard:
    """Takes targets away, and prefers none."""

    name = "guard"

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def narrow_targets(self, targets: Sequence[Target]) -> None:
        return None


class Brought(Distribution):
    """An installed distribution of some name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> str | None:
        return f"Name: {self._name}\nVersion: 1.0\n" if filename == "METADATA" else None

    def locate_file(self, path: str | PathLike[str]) -> Path:
        raise FileNotFoundError(path)


@dataclass(frozen=True, slots=True)
class Installed:
    """A plugin as a distribution brings it."""

    manifest: type
    dist: Distribution

    @property
    def name(self) -> str:
        return str(vars(self.manifest)["name"])

    def load(self) -> type:
        return self.manifest


def found(settings: Mapping[str, Any], *plugins: type, brought_by: str = "llmproxy") -> list[str]:
    """What is said of shares, without a word on what the remedy is called."""
    available = {each.name: each for each in (Installed(plugin, Brought(brought_by)) for plugin in plugins)}
    source = ConfigSource(None, json.dumps({**settings, "plugins": list(available)}).encode())
    said = warnings(resolve_configuration(source, make_services(), available))
    return [sentence.partition(":")[0] for sentence in said if "nothing splits" in sentence]


def test_shares_that_nobody_gives_are_told() -> None:
    """An alias with two shares, and a provider with two keys; a target of weight 0 is no share."""
    assert found(SPLIT) == ["models.split"]
    assert found(KEYS) == ["models.split", "providers.a"]


def test_with_routing_there_is_nothing_to_tell() -> None:
    """That is what it is for."""
    assert found(KEYS, Routing) == []


@pytest.mark.parametrize(("brought_by", "expected"), [("llmproxy", ["models.split"]), ("llmproxy-guard", [])])
def test_guards_of_ours_split_nothing_and_a_strangers_may(brought_by: str, expected: list[str]) -> None:
    """What a stranger's plugin does with the order of targets is not known, so nothing is claimed."""
    assert found(SPLIT, Guard, brought_by=brought_by) == expected
