"""The gateway as operators run it: a supervisor with its workers, started, killed in parts, and stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import orjson
import psutil

from llmproxy.request import Document
from llmproxy.testing import wait_until
from tests.processes import ROOT

STOP_SECONDS: Final = 20
_ADDRESS: Final = re.compile(r"http://127\.0\.0\.1:(\d+)")


class GatewayProcess:
    """`llmproxy serve` on a free port, used as `async with`.

    Attributes:
        port: Where it serves.
    """

    def __init__(self, config: str, directory: Path) -> None:
        self.port = 0
        self._state = directory / ".llmproxy"
        self._config = directory / "config.yaml"
        self._output = directory / "stdout.txt"
        self._log = directory / "stderr.txt"
        self._config.write_text(config)

    async def __aenter__(self) -> Self:
        options = ("--config", str(self._config), "--state-dir", str(self._state), "--port", "0")
        with self._output.open("wb") as output, self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - starting a process blocks for a moment only
                [sys.executable, "-m", "llmproxy", "serve", *options],
                cwd=ROOT,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )
        await wait_until(self._has_started, 30)
        assert self.port, self._log.read_text()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def journal(self) -> Path:
        """Where the workers keep their journals."""
        return self._state / "journal"

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers that live, oldest first."""
        return sorted(child.pid for child in psutil.Process(self._process.pid).children() if _is_alive(child))

    def kill_worker(self) -> None:
        """kill -9 of the worker that has lived longest."""
        os.kill(self.workers[0], signal.SIGKILL)

    def kill(self) -> None:
        """kill -9 of the supervisor and all its workers at once; nothing when they have ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def stop(self) -> int:
        """Ask it to drain; returns its exit code."""
        self._process.terminate()
        await wait_until(lambda: self._process.poll() is not None, STOP_SECONDS)
        return self._process.wait()

    def log(self) -> list[Document]:
        """What it has logged so far."""
        return [orjson.loads(line) for line in self._log.read_bytes().splitlines() if line.startswith(b"{")]

    def _has_started(self) -> bool:
        if match := _ADDRESS.search(self._output.read_text()):
            self.port = int(match[1])
        return bool(self.port) or self._process.poll() is not None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        # It ended between being listed and being asked.
        return False
