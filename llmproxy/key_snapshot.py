"""The keys as they were last read, in a file: what a worker that starts during a database outage goes by.

It holds hashes, never keys, and is replaced whole after each reading, so no restart brings back a revoked key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from llmproxy.exchange import Document
from llmproxy.services import Row

_TIMES: Final = ("expires_at", "revoked_at")


class KeyRows(NamedTuple):
    """What the tables hold."""

    workspaces: Sequence[Row] = ()
    keys: Sequence[Row] = ()


class KeySnapshot:
    """The file. Both methods block, and raise OSError or ValueError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, rows: KeyRows) -> None:
        """Replace it; a reader sees the old or the new, never half of one."""
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_bytes(orjson.dumps(rows._asdict()))
        fresh.replace(self._path)

    def load(self) -> KeyRows:
        """The rows, as the database would give them."""
        document: Mapping[str, list[Document]] = orjson.loads(self._path.read_bytes())
        try:
            return KeyRows(document["workspaces"], [_key(row) for row in document["keys"]])
        except (LookupError, TypeError) as error:
            raise ValueError(f"{self._path} is not what was saved") from error


def _key(row: Document) -> Document:
    return {**row, **{name: datetime.fromisoformat(row[name]) for name in _TIMES if row[name] is not None}}
