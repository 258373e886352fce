"""The example plugin as a stranger's: installed beside llmproxy in a fresh environment, tested and enabled there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
EXAMPLE = CHECKOUT / "examples" / "llmproxy-quiet-hours"
CONFIG = """
providers: {demo: {}}
plugins:
  quiet_hours: {opens: "08:30", closes: "18:00"}
"""


def run(*command: str | Path, cwd: Path, expected: int = 0) -> str:
    """What a command prints; the test fails when it ends otherwise than expected."""
    ours = ("LLMPROXY_", "PYTHON", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    if url := os.environ.get("LLMPROXY_TEST_DATABASE_URL"):
        kept["LLMPROXY_TEST_DATABASE_URL"] = url
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False, timeout=55)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with wheels of llmproxy and the example, and this one's packages for all others.

    The path file appends a plain folder: path files in there are not read, so nothing leads to the checkout.
    """
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False, symlinks=True)
    python = root / "bin" / "python"
    wheels = [wheel_of(source, root / "dist") for source in (CHECKOUT, EXAMPLE)]
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", *wheels, cwd=root)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root).strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return root / "bin"


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel of a project."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / source.name, cwd=source)
    (wheel,) = (folder / source.name).glob("*.whl")
    return wheel


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration file that enables the example."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    """With nothing but what is installed: the fixture comes by llmproxy's entry point, the database in a wheel."""
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("README.md", "pyproject.toml", "tests/test_quiet_hours.py"):
        (tmp_path / name).write_text((EXAMPLE / name).read_text())
    output = run(installed / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path)
    assert "17 passed" in output
    origin = run(installed / "python", "-c", "import llmproxy_quiet_hours as p; print(p.__file__)", cwd=tmp_path)
    assert Path(origin.strip()).is_relative_to(installed.parent)


def test_it_is_typed_against_what_is_installed(installed: Path, tmp_path: Path) -> None:
    """llmproxy's types reach a plugin's author, and hold for the example and its tests at mypy's strictest."""
    for folder in ("llmproxy_quiet_hours", "tests"):
        shutil.copytree(EXAMPLE / folder, tmp_path / folder)
    python = ("--python-executable", installed / "python")
    run(sys.executable, "-m", "mypy", "--strict", "--no-incremental", *python, ".", cwd=tmp_path)


def test_it_is_listed_as_enabled(installed: Path, config: Path) -> None:
    """`llmproxy plugins` finds it by its entry point and names the distribution that brings it."""
    output = run(installed / "llmproxy", "plugins", "--config", config, cwd=config.parent)
    [line] = [line for line in output.splitlines() if "quiet_hours" in line]
    assert "llmproxy-quiet-hours 1.0.0" in line


def test_its_configuration_is_checked(installed: Path, config: Path) -> None:
    """`llmproxy check` accepts a right section, and names the place of what is wrong in another."""
    run(installed / "llmproxy", "check", "--config", config, cwd=config.parent)
    config.write_text(CONFIG.replace("opens", "open"))
    output = run(installed / "llmproxy", "check", "--config", config, cwd=config.parent, expected=1)
    assert "config.yaml:4:17: plugins.quiet_hours.open: " in output
    assert "did you mean 'opens'" in output


def test_installed_is_not_enabled(installed: Path, tmp_path: Path) -> None:
    """Without its name in the configuration the plugin is known, and nothing of it runs."""
    config = tmp_path / "config.yaml"
    config.write_text("providers: {demo: {}}\n")
    hooks = run(installed / "llmproxy", "hooks", "--config", config, cwd=tmp_path)
    assert "quiet_hours" not in hooks
