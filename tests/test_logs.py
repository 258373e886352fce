"""The gateway's log, as those find it who read it by machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson

from tests.processes import ROOT

WRITER = """
from llmproxy.config import LoggingConfig
from llmproxy.logs import make_log
log = make_log(LoggingConfig(format="json"))
for number in range(2000):
    log.warning("note", number=number, text="x" * 200)
"""


def test_lines_of_several_workers_never_run_into_each_other(tmp_path: Path) -> None:
    """Workers share one standard error, so a line and its end have to arrive together."""
    file = tmp_path / "stderr.txt"
    with file.open("ab") as shared:
        writers = [subprocess.Popen([sys.executable, "-c", WRITER], stderr=shared, cwd=ROOT) for _ in range(4)]
        assert [writer.wait() for writer in writers] == [0] * 4
    lines = file.read_bytes().splitlines()
    assert len(lines) == 8000
    assert all(orjson.loads(line)["event"] == "note" for line in lines)
