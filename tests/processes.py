"""Real Python processes for tests that start, wait for, and kill them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def spawn(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that runs `code`; its output can be read, its input written. Use it in a `with`."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
