"""Schema migrations: plain SQL files, core's first and then the plugins', each recorded with its checksum.

Not a library: those tried fail when many processes start at once on an empty database, leave a lock behind when
one is killed, or do not notice an edited file. A blocking advisory lock would not do either, since its waiters
hold a snapshot that CREATE INDEX CONCURRENTLY waits for; so the lock is polled.

A file is `NNNN_name.sql`, numbered from 0001 without gaps, and runs in one transaction together with its record.
With `-- transaction: false` as its first line it runs outside one, statement by statement (each ends with `;` at
the end of a line); killed half way it runs again, so it has to bear that.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from llmproxy.db import storage_errors, unusable
from llmproxy.errors import ConfigError, StorageError

POLL_SECONDS: Final = 0.1
CONNECT_SECONDS: Final = 10
LOCK_KEY: Final = int.from_bytes(hashlib.sha256(b"llmproxy migrations").digest()[:8], signed=True)
FILE_NAME: Final = re.compile(r"(\d{4})_\w+\.sql")
OUTSIDE_TRANSACTION: Final = "-- transaction: false"
RECORDS: Final = """
CREATE TABLE IF NOT EXISTS llmproxy_migrations (
    component text NOT NULL,
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (component, version)
)
"""


@dataclass(frozen=True, slots=True)
class Component:
    """Core or a plugin: who owns the migrations in a directory."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: a step of a component's schema."""

    component: str
    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, whatever line ends a checkout gave it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration as the database has it on record."""

    component: str
    version: int
    name: str
    checksum: str


def core_component() -> Component:
    """Core's own migrations: package data when installed, the directory beside the package in a checkout."""
    package = Path(str(importlib.resources.files("llmproxy")))
    installed = package / "migrations"
    return Component("core", installed if installed.is_dir() else package.parent / "migrations")


async def migrate(
    database_url: str, components: Sequence[Component], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Sequence[Migration]:
    """Apply what is missing, in order, and return it; any number of processes may do so at once.

    Raises:
        ConfigError: files are numbered wrongly, were edited after they were applied, or the database is newer.
        StorageError: the database cannot be reached, or refuses a migration; those before it stay applied.
    """
    migrations = read_migrations(components)
    async with _connected(database_url) as connection:
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
            await sleep(POLL_SECONDS)
        await connection.execute(RECORDS)
        missing = unapplied(migrations, await _applied(connection))
        for migration in missing:
            await _apply(connection, migration)
    return missing


async def pending(database_url: str, components: Sequence[Component]) -> Sequence[Migration]:
    """What `migrate` would apply, without touching anything. Raises as `migrate` does."""
    migrations = read_migrations(components)
    async with _connected(database_url) as connection:
        return unapplied(migrations, await _applied(connection))


def read_migrations(components: Iterable[Component]) -> Sequence[Migration]:
    """All files of all components, in the order they apply. Raises ConfigError on a wrong name or number."""
    return [migration for component in components for migration in _read(component)]


def unapplied(migrations: Sequence[Migration], applied: Iterable[Applied]) -> Sequence[Migration]:
    """Those not yet recorded, in order. Raises ConfigError when the records contradict the files."""
    files = {(migration.component, migration.version): migration for migration in migrations}
    components = {migration.component for migration in migrations}
    # A plugin that is not enabled now keeps its tables and records.
    records = {(record.component, record.version): record for record in applied if record.component in components}
    if mistakes := [mistake for key, record in records.items() if (mistake := _mistake(record, files.get(key)))]:
        raise ConfigError(*mistakes)
    return [migration for key, migration in files.items() if key not in records]


def _mistake(record: Applied, file: Migration | None) -> str | None:
    place = f"{record.component}/{record.name}"
    if file is None:
        return f"The database has migration {place}, which this release does not know: start the newer release."
    if (file.name, file.checksum) != (record.name, record.checksum):
        return f"Migration {place} was changed after it was applied: restore it, and put the change in a new one."
    return None


def _read(component: Component) -> Sequence[Migration]:
    files = sorted(component.directory.glob("*.sql"))
    mistakes = [
        f"Migration {component.name}/{file.name}: {mistake}."
        for number, file in enumerate(files, start=1)
        if (mistake := _name_mistake(file.name, number))
    ]
    if mistakes or not files:
        raise ConfigError(*mistakes or (f"There are no migrations in {component.directory}; install it again.",))
    return [
        Migration(component.name, number, file.name, file.read_text(encoding="utf-8"))
        for number, file in enumerate(files, start=1)
    ]


def _name_mistake(name: str, number: int) -> str | None:
    if not FILE_NAME.fullmatch(name):
        return "its name has to be like 0001_name.sql"
    return None if int(name[:4]) == number else f"number {number:04} was expected here, without gaps or duplicates"


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    # A migration may take long; but when its process dies the server has to notice while it still runs.
    settings = {"application_name": "llmproxy migrate", "statement_timeout": "0"}
    try:
        with storage_errors():
            connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS, server_settings=settings)
    except StorageError as error:
        raise unusable(url, error) from error
    try:
        with storage_errors():
            await connection.execute("SET client_connection_check_interval = '1s'")
            yield connection
    finally:
        connection.terminate()


async def _applied(connection: asyncpg.Connection[asyncpg.Record]) -> Sequence[Applied]:
    if await connection.fetchval("SELECT to_regclass('llmproxy_migrations')") is None:
        return []
    rows = await connection.fetch("SELECT component, version, name, checksum FROM llmproxy_migrations ORDER BY 1, 2")
    return [Applied(*row) for row in rows]


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    try:
        if migration.text.startswith(OUTSIDE_TRANSACTION):
            for statement in filter(str.strip, re.split(r"(?<=;)[ \t]*$", migration.text, flags=re.MULTILINE)):
                await connection.execute(statement)
            await _record(connection, migration)
            return
        async with connection.transaction():
            await connection.execute(migration.text)
            await _record(connection, migration)
    except asyncpg.PostgresError as error:
        place = f"{migration.component}/{migration.name}"
        raise StorageError(f"Migration {place} failed: {error}. Nothing after it was applied.") from error


async def _record(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO llmproxy_migrations (component, version, name, checksum) VALUES ($1, $2, $3, $4)",
        migration.component,
        migration.version,
        migration.name,
        migration.checksum,
    )
