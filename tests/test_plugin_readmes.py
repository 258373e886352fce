"""Each plugin's README says what the plugin is: its keys, its hooks, its place, its tables, its failures."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from llmproxy.api import Section
from llmproxy.hookrules import RULES
from llmproxy.plugins import installed

ROOT: Final = Path(__file__).parent.parent
SECTIONS: Final = ("Configuration", "Hooks and order", "What it stores", "When it fails", "Limits")
VARIABLES: Final = {"REDIS_URL": "redis://127.0.0.1:6379"}
OURS: Final = sorted(
    name for name, source in installed().items() if source.load().__module__.startswith("llmproxy_plugins.")
)


def readme(plugin: str) -> str:
    """The plugin's own page."""
    return (ROOT / "plugins" / plugin / "README.md").read_text()


def manifest(plugin: str) -> type:
    """The plugin's class."""
    loaded: object = installed()[plugin].load()
    assert isinstance(loaded, type)
    return loaded


def test_every_folder_is_a_plugin() -> None:
    """What lies in `plugins/` can be enabled by its name."""
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    assert folders == set(OURS)


@pytest.mark.parametrize("plugin", OURS)
def test_a_readme_answers_the_same_questions(plugin: str) -> None:
    """Whoever knows one page finds the way about in all of them."""
    headings = re.findall(r"^## (.+)$", readme(plugin), re.MULTILINE)
    assert readme(plugin).startswith(f"# {plugin}\n")
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)


@pytest.mark.parametrize("plugin", OURS)
def test_a_readme_shows_configurations_that_are_accepted(plugin: str) -> None:
    """Every snippet with the plugin's section in it can be copied."""
    model = getattr(manifest(plugin), "Config", Section)
    page = re.sub(r"\$\{(\w+)\}", lambda found: VARIABLES.get(found[1], "sk-of-somebody-in-a-test"), readme(plugin))
    snippets = [yaml.safe_load(each) for each in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    shown = [snippet["plugins"][plugin] for snippet in snippets if plugin in snippet.get("plugins", {})]
    assert shown
    for section in shown:
        model.model_validate(section or {})


@pytest.mark.parametrize("plugin", OURS)
def test_a_readme_names_the_plugins_hooks(plugin: str) -> None:
    """The part on hooks and order names every hook on the request path that the plugin takes part in."""
    part = readme(plugin).partition("## Hooks and order\n")[2].partition("\n## ")[0]
    taken = {name for name in RULES if inspect.isfunction(getattr(manifest(plugin), name, None))}
    startup = {"startup", "shutdown", "register_routes", "register_commands", "register_providers"}
    assert {name for name in taken - startup if f"`{name}`" not in part} == set()


def test_the_projects_readme_lists_every_plugin() -> None:
    """With a link to the plugin's own page."""
    page = (ROOT / "README.md").read_text()
    assert {name for name in OURS if f"[{name}](plugins/{name}/README.md)" not in page} == set()
