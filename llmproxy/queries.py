"""Named queries: SQL lives in .sql files, under `-- name: x` lines, and is looked up by that name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from llmproxy.errors import ConfigError

SQL_DIRECTORY: Final = Path(__file__).parent / "sql"
NAME_LINE: Final = re.compile(r"^-- name: *(\w+) *$", re.MULTILINE)


class Queries(Mapping[str, str]):
    """The queries of a directory's .sql files, by name, as items and as attributes; read once.

    Args:
        directory: Where the files are; core's own by default.

    Raises:
        ConfigError: a name stands twice, a query has no name or no text, or the directory has no queries.
    """

    def __init__(self, directory: Path = SQL_DIRECTORY) -> None:
        self._texts: dict[str, str] = {}
        for file in sorted(directory.glob("*.sql")):
            self._add(file)
        if not self._texts:
            raise ConfigError(f"There are no queries in {directory}; install the package again.")

    def _add(self, file: Path) -> None:
        head, *sections = NAME_LINE.split(file.read_text(encoding="utf-8"))
        if any(line and not line.startswith("--") for line in head.splitlines()):
            raise ConfigError(f"{file}: the first query has no `-- name:` line.")
        for name, text in zip(sections[::2], sections[1::2], strict=True):
            if name in self._texts or not text.strip():
                raise ConfigError(f"{file}: the query {name} {'stands twice' if text.strip() else 'is empty'}.")
            self._texts[name] = text.strip()

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __getattr__(self, name: str) -> str:
        try:
            return self._texts[name]
        except KeyError:
            raise AttributeError(f"no query is called {name}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)
