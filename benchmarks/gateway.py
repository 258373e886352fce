"""llmproxy as it is operated: `python -m llmproxy serve` with its own database, a key and a configuration file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import aiohttp
import orjson
import psutil
from yarl import URL

from benchmarks.processes import ROOT, first_line, stop
from benchmarks.traffic import API_KEY
from llmproxy.embedded_files import home

ADMIN_KEY: Final = "sk-benchmarks-admin-93b1e7d0c25f4a68"
WORKSPACE: Final = "acme"
_CONFIG: Final = """\
server: {{host: 127.0.0.1, port: 0, workers: 1}}
database: {{url: embedded}}
logging: {{level: warning}}
providers:
  bench: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: of-the-vendor}}
workspaces:
  {workspace}: {{keys: ["{key}"]}}
prices:
  - {{match: "bench/*", input_usd_per_mtok: 1, output_usd_per_mtok: 2}}
plugins: []
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that serves."""

    port: int
    workers: tuple[psutil.Process, ...]
    database: psutil.Process

    @property
    def worker(self) -> psutil.Process:
        """The first of its workers, which mostly is the only one."""
        return self.workers[0]

    async def recorded(self, since: datetime, workspace: str | None = None) -> int:
        """How many requests that came since then the ledger in Postgres holds, of one workspace or of all."""
        # By what has a single group: what the question costs counts as the gateway's.
        query = {"by": "day", "since": since.isoformat()} | ({"workspace": workspace} if workspace else {})
        url = URL(f"http://127.0.0.1:{self.port}/admin/v1/spend").with_query(query)
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            answer.raise_for_status()
            return int((await answer.json())["total"]["requests"])


@dataclass(frozen=True, slots=True)
class Installation:
    """A state directory and a configuration, to start a gateway from again and again."""

    directory: Path

    @property
    def journal(self) -> Path:
        """Where its gateways keep what is not in Postgres yet."""
        return self.directory / "state" / "journal"

    def edit(self, edits: Mapping[str, str]) -> None:
        """Replace parts of the configuration. Raises ValueError when one is not there.

        Args:
            edits: What takes the place of each part.
        """
        config = self.directory / "config.yaml"
        text = config.read_text()
        for old, new in edits.items():
            if old not in text:
                raise ValueError(f"{old!r} is not in the configuration.")
            text = text.replace(old, new)
        config.write_text(text)

    @contextmanager
    def serving(self, program: str = "llmproxy") -> Iterator[Gateway]:
        """A gateway, from the moment it says that it serves.

        Args:
            program: The module that is run.
        """
        command = [sys.executable, "-m", program, "serve", "--json"]
        paths = ["--config", str(self.directory / "config.yaml"), "--state-dir", str(self.directory / "state")]
        environment = {**os.environ, "LLMPROXY_ADMIN_KEY": ADMIN_KEY}
        with subprocess.Popen(
            [*command, *paths], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield self._gateway(first_line(process))
            finally:
                stop(process)

    def _gateway(self, greeting: str) -> Gateway:
        document = orjson.loads(greeting)
        supervisor = psutil.Process(document["pid"])
        postmaster = psutil.Process(int((self._database / "postmaster.pid").read_text().split()[0]))
        workers = tuple(child for child in supervisor.children() if child != postmaster)
        return Gateway(int(document["url"].rpartition(":")[2]), workers, postmaster)

    @property
    def _database(self) -> Path:
        return home((self.directory / "state").resolve()) / "data"


@contextmanager
def installation(directory: Path, upstream_port: int) -> Iterator[Installation]:
    """A configuration in an empty directory; what its database leaves elsewhere is removed in the end."""
    (directory / "config.yaml").write_text(_CONFIG.format(port=upstream_port, key=API_KEY, workspace=WORKSPACE))
    try:
        yield Installation(directory)
    finally:
        shutil.rmtree(home((directory / "state").resolve()), ignore_errors=True)
