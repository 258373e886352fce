"""The keys as they were last read, in a file: what a worker that starts during a database outage goes by.

It holds hashes, never keys, and every change is added to it as it is read, so no restart brings back a revoked key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from llmproxy.request import Document
from llmproxy.services import Row

# As many keys stand in one line; fewer changes than this are never worth writing the file anew.
_FEW: Final = 1_000


class Change(NamedTuple):
    """What the tables hold by now of some rows; those of the named ones that are not among them are gone.

    Attributes:
        keys: For each its id, the hash of the key, and the rest of the row as JSON.
    """

    workspace_ids: Sequence[str] = ()
    workspaces: Sequence[Row] = ()
    key_ids: Sequence[str] = ()
    keys: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class KeyRows:
    """What the tables hold.

    A key's row stays the text it came as until the key is used: of a hundred thousand keys few ever are, and texts cost
    neither the time to take apart nor the garbage collector's.

    Attributes:
        keys: The rows by the hash of the key.
        hashes: The hashes by the id of the key.
    """

    workspaces: dict[str, Row] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def take(self, change: Change) -> set[str]:
        """Bring the rows up to date, and say which hashes that is about."""
        for workspace_id in change.workspace_ids:
            self.workspaces.pop(workspace_id, None)
        self.workspaces.update((row["id"], row) for row in change.workspaces)
        touched = {self.hashes.pop(key_id) for key_id in change.key_ids if key_id in self.hashes}
        for key_hash in touched:
            self.keys.pop(key_hash, None)
        for row in change.keys:
            self.hashes[row["id"]] = row["key_sha256"]
            self.keys[row["key_sha256"]] = row["document"]
        return touched.union(row["key_sha256"] for row in change.keys)

    def whole(self) -> Iterator[Change]:
        """All of them, as changes to nothing, none of which is large."""
        yield Change(workspaces=list(self.workspaces.values()))
        rest = iter(self.hashes.items())
        while some := list(islice(rest, _FEW)):
            yield Change(keys=[{"id": i, "key_sha256": sha256, "document": self.keys[sha256]} for i, sha256 in some])


class KeySnapshot:
    """The file: a line for each change, from nothing to what was last read. Its methods block, and raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changes = 0
        self._is_whole = False

    def save(self, rows: KeyRows) -> None:
        """Replace it; a reader sees the old or the new, never half of one."""
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        with fresh.open("wb") as file:
            file.writelines(map(_line, rows.whole()))
        fresh.replace(self._path)
        self._changes, self._is_whole = 0, True

    def add(self, change: Change, rows: KeyRows) -> None:
        """Add a change that `rows` have taken.

        Once as much was added as there is, and after a failure, the file is written anew.
        """
        self._changes += len(change.key_ids) + len(change.workspace_ids)
        if not self._is_whole or self._changes > max(len(rows.keys), _FEW):
            return self.save(rows)
        self._is_whole = False
        # One that is missing is not made: it would hold changes to nothing.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, _line(change))
        finally:
            os.close(descriptor)
        self._is_whole = True
        return None

    def load(self) -> KeyRows:
        """The rows, as the database would give them. Raises ValueError when they are not what was saved."""
        lines = self._path.read_bytes().splitlines()
        rows = KeyRows()
        try:
            for change in [_read(line) for line in lines or [b""]]:
                rows.take(change)
        except (LookupError, TypeError) as error:
            raise ValueError(f"{self._path} is not what was saved") from error
        return rows


def _line(change: Change) -> bytes:
    return orjson.dumps(change._asdict()) + b"\n"


def _read(line: bytes) -> Change:
    document: Mapping[str, list[Document]] = orjson.loads(line)
    return Change._make(document[name] for name in Change._fields)
