"""What holds the project together: locked dependencies, links and the scripts that CI runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
DECLARED = {
    "runtime": PROJECT["project"]["dependencies"],
    "build": GROUPS["build"],
    "dev": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["fast"],
        *(line for name in ("build", "lint", "test") for line in GROUPS[name]),
    ],
}


def locked(name: str) -> dict[str, str]:
    """Package and version of every pin in a lock file."""
    text = (CHECKOUT / "requirements" / f"{name}.txt").read_text()
    return {canonicalize_name(match[1]): match[2] for match in re.finditer(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


@pytest.mark.parametrize("name", DECLARED)
def test_lock_satisfies_what_is_declared(name: str) -> None:
    """Every declared dependency is locked at a version that its declaration allows; if not, run `make lock`."""
    pins = locked(name)
    wrong = [
        requirement
        for requirement in map(Requirement, DECLARED[name])
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"), prereleases=True)
        or canonicalize_name(requirement.name) not in pins
    ]
    assert wrong == []


def test_locks_agree() -> None:
    """What runs in production is what was tested: the lock files never differ on a version."""
    tested = locked("dev")
    assert {**tested, **locked("build"), **locked("runtime")} == tested


def test_locks_name_no_registry() -> None:
    """Pins are hashes; which registry serves them is the machine's own configuration."""
    locks = [*(CHECKOUT / "requirements").glob("*.txt"), CHECKOUT / "tests/node/package-lock.json"]
    assert [path.name for path in locks if "://" in path.read_text()] == []


def test_node_packages_are_pinned_by_hash() -> None:
    """Every package of the Node tests has an integrity hash in its lock file."""
    packages = json.loads((CHECKOUT / "tests/node/package-lock.json").read_text())["packages"]
    installed = {path: entry for path, entry in packages.items() if path}
    assert installed
    assert [path for path, entry in installed.items() if "integrity" not in entry] == []


@pytest.mark.parametrize(("link", "folder"), [("llmproxy_plugins", "plugins"), ("llmproxy/migrations", "migrations")])
def test_checkout_has_the_names_of_an_installation(link: str, folder: str) -> None:
    """The checkout's links lead to the folders that the wheel installs under these names."""
    assert (CHECKOUT / link).is_symlink()
    assert (CHECKOUT / link).resolve() == (CHECKOUT / folder).resolve()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder that, as the whole PATH, makes a machine with bash and nothing to install packages with."""
    bash = shutil.which("bash")
    assert bash
    (tmp_path / "bash").symlink_to(bash)
    return tmp_path


@pytest.mark.parametrize(
    ("parts", "ci", "code", "named"),
    [
        ([], "true", 0, ""),
        (["bash:bash"], "true", 0, ""),
        (["bash:bash", "redis-server:redis"], "true", 1, "missing: redis-server (Debian package redis)"),
        (["redis-server:redis"], "", 0, "missing: redis-server (Debian package redis)"),
    ],
)
def test_missing_system_parts_are_named(machine: Path, parts: list[str], ci: str, code: int, named: str) -> None:
    """A program that is not there is named with its package, which fails a CI run and nobody else's."""
    command: list[str | Path] = [machine / "bash", CHECKOUT / "tools/system_parts", *parts]
    done = subprocess.run(
        command, env={"PATH": str(machine), "CI": ci}, capture_output=True, text=True, check=False, timeout=10
    )
    assert done.returncode == code, done.stderr
    assert named in done.stderr


@pytest.mark.parametrize("script", [".ci/run", "tools/npm", "tools/system_parts"])
def test_scripts_can_be_run(script: str) -> None:
    """Scripts are executable as they come out of version control."""
    assert os.access(CHECKOUT / script, os.X_OK)


def test_contributing_names_files_that_exist() -> None:
    """The contribution guide leads nowhere that is not there."""
    words = re.findall(r"`([\w./-]+\.\w+|[\w./-]+/)`", (CHECKOUT / "CONTRIBUTING.md").read_text())
    paths = [word for word in words if "/" in word]
    assert paths
    assert [path for path in paths if not (CHECKOUT / path).exists()] == []
