"""The wheel as a stranger gets it: built here, installed into an environment of its own, used from an empty folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import llmproxy

CHECKOUT = Path(__file__).parent.parent
# Folder in the checkout: what it is called in an installation.
TREES = {"llmproxy": "llmproxy", "plugins": "llmproxy_plugins", "migrations": "llmproxy/migrations"}


def environment() -> dict[str, str]:
    """This process's environment without what could lead the installation back to the checkout or to other state."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LLMPROXY_", "PYTHON"))}


def run(*command: str | Path, cwd: Path) -> str:
    """Run to the end and return standard output; anything but success fails the test with what it said."""
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=CHECKOUT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, and this environment's packages for its dependencies.

    The path file appends a plain folder: path files in there are not read, so nothing leads to the checkout.
    """
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False, symlinks=True)
    python = root / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=root)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root).strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root / "bin"


def test_wheel_holds_the_three_trees_and_nothing_else(wheel: Path) -> None:
    """Every file of the packages, the plugins and the migrations is in the wheel under its installed name."""
    expected = {
        f"{name}/{path.relative_to(CHECKOUT / folder).as_posix()}"
        for folder, name in TREES.items()
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {"llmproxy/py.typed", "llmproxy/migrations/0001_core.sql", "llmproxy_plugins/__init__.py"} <= names


def test_wheel_says_what_it_is(wheel: Path) -> None:
    """Version, licence and the lowest Python stand in the metadata, and the licence travels along."""
    archive = zipfile.ZipFile(wheel)
    folder = f"llmproxy-{llmproxy.__version__}.dist-info"
    metadata = message_from_string(archive.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == llmproxy.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert f"{folder}/licenses/LICENSE" in archive.namelist()


def test_every_entry_point_loads(installed: Path, tmp_path: Path) -> None:
    """What other programs find llmproxy by can be imported from an installation."""
    code = (
        "from importlib.metadata import distribution; import llmproxy;"
        "[point.load() for point in distribution('llmproxy').entry_points]; print(llmproxy.__file__)"
    )
    origin = run(installed / "python", "-I", "-c", code, cwd=tmp_path).strip()
    assert Path(origin).is_relative_to(installed.parent)


def test_command_prints_its_version(installed: Path, tmp_path: Path) -> None:
    """`llmproxy --version` names the version that was built."""
    assert llmproxy.__version__ in run(installed / "llmproxy", "--version", cwd=tmp_path)


def test_serves_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """`llmproxy serve` answers with no configuration and no checkout nearby, and leaves cleanly when asked to."""
    port = free_port()
    with Path(tmp_path, "log").open("wb") as log:
        command: list[str | Path] = [installed / "llmproxy", "serve", "--port", str(port)]
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=environment())
        try:
            ready = wait_until_ready(server, port, seconds=30)
            server.send_signal(signal.SIGTERM)
            code = server.wait(timeout=20)
        finally:
            server.kill()
            server.wait()
    output = Path(tmp_path, "log").read_text()
    assert ready, output
    assert code == 0, output


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until_ready(server: subprocess.Popen[bytes], port: int, *, seconds: float) -> bool:
    """Whether the gateway says it is ready before the deadline; a process that has ended never will."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False
