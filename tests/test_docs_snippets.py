"""The code in the manual for plugin authors runs, or is cut from files that do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from llmproxy import testing
from llmproxy.cli.commands import SUMMARIES
from llmproxy.config import Config
from llmproxy.config_document import ConfigDocument
from llmproxy.plugins import GROUP
from llmproxy.testing import StartProxy

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "writing-plugins.md"
TEST: Final = re.compile(r"^async def (test_\w+)\((\w*)", re.MULTILINE)


class Block(NamedTuple):
    """A piece of code: its language, the file it stands for, and itself."""

    language: str
    file: str
    code: str


def blocks() -> Iterator[Block]:
    """Every piece of code on the page that says what language it is in."""
    for match in re.finditer(r"^```(\w+) ?(\S*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        yield Block(*match.groups())


BLOCKS: Final = tuple(blocks())
CUT: Final = [block for block in BLOCKS if block.file.startswith("examples/")]
PYTHON: Final = [block.code for block in BLOCKS if block.language == "python" and not block.file]
TESTS: Final = [name for code in PYTHON for name, _ in TEST.findall(code)]


@pytest.fixture
def page(tmp_path: Path) -> Mapping[str, Any]:  # what a module holds may be anything
    """The page as one module, with the files it names beside it."""
    for block in BLOCKS:
        if block.file and block not in CUT:
            path = tmp_path / block.file
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.code)
    source = tmp_path / "writing_plugins.py"
    source.write_text("\n\n".join(PYTHON))
    spec = spec_from_file_location(source.stem, source)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


@pytest.mark.parametrize("name", TESTS)
async def test_the_pages_tests_pass(name: str, page: Mapping[str, Any], proxy: StartProxy) -> None:
    """Each test that the page shows is run, with the plugins that the page shows."""
    takes_proxy = dict(pair for code in PYTHON for pair in TEST.findall(code))[name] == "proxy"
    await page[name](*([proxy] if takes_proxy else []))


def test_every_plugin_on_the_page_is_tested_there(page: Mapping[str, Any]) -> None:
    """A class with a name that nobody runs would be decoration."""
    plugins = {name for name, member in page.items() if isinstance(member, type) and "name" in vars(member)}
    tested = {name for name in plugins if any(f"{name}," in code or f"{name}(" in code for code in PYTHON)}
    assert len(plugins) >= 4
    assert plugins == tested


@pytest.mark.parametrize("block", CUT, ids=lambda block: f"{block.file}-{block.code.split(maxsplit=2)[1]}")
def test_pieces_of_the_example_are_those_of_the_example(block: Block) -> None:
    """What is said to come from a file stands in it, line for line."""
    assert block.code in (ROOT / block.file).read_text()


def test_configurations_are_valid() -> None:
    """A file with what the page shows would be accepted, but for plugins that are not installed here."""
    found = [block.code for block in BLOCKS if block.language == "yaml"]
    assert found
    for code in found:
        document = ConfigDocument.parse(code, "config.yaml", {})
        assert document.validate(Config) is not None, document.mistakes


def test_commands_exist() -> None:
    """Every `llmproxy` command on the page is one."""
    shell = "".join(block.code for block in BLOCKS if block.language == "sh")
    named = {*re.findall(r"^llmproxy (\w+)", shell, re.MULTILINE), *re.findall(r"`llmproxy (\w+)", PAGE.read_text())}
    assert len(named) > 4
    assert named <= SUMMARIES.keys()


def test_the_whole_kit_is_on_the_page() -> None:
    """Nothing in `llmproxy.testing` is left for readers of its source alone."""
    text = PAGE.read_text()
    assert [name for name in testing.__all__ if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text)] == []
    assert f"`{GROUP}`" in text
