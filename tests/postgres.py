"""Fixtures for a real Postgres: the embedded one, or the server of LLMPROXY_TEST_DATABASE_URL."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmproxy.db import Postgres
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.migrate import core_component
from llmproxy.testing.database import TestDatabases, make_postgres


@contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary directory that a server of another user can be in; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def copy_home(source: Path, target: Path) -> None:
    """Copy a stopped server's home; `cp` keeps the owner, which shutil does not."""
    subprocess.run(["/bin/cp", "-a", source, target], check=True)


@pytest.fixture
def state_directory() -> Iterator[Path]:
    """An empty state directory."""
    with open_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def initialised_home() -> Iterator[Path]:
    """The home of a stopped server, to be copied: initialising takes a while."""
    with open_directory() as directory:
        server = EmbeddedPostgres(directory)
        server.start()
        server.stop()
        yield server.home


@pytest.fixture
def embedded(state_directory: Path, initialised_home: Path) -> Iterator[EmbeddedPostgres]:
    """An embedded server of the test's own, initialised but not started."""
    copy_home(initialised_home, state_directory / "postgres")
    server = EmbeddedPostgres(state_directory)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def server_url(llmproxy_server_url: str) -> str:
    """A server that the whole session shares, also with the kit's own fixtures."""
    return llmproxy_server_url


@pytest.fixture(scope="session")
def test_databases(server_url: str) -> Iterator[TestDatabases]:
    """Fresh databases on the session's server."""
    databases = TestDatabases(server_url, [core_component()])
    yield databases
    asyncio.run(databases.close())


@pytest.fixture
def database_url(test_databases: TestDatabases) -> Iterator[str]:
    """A fresh, migrated database."""
    url = asyncio.run(test_databases.create())
    yield url
    asyncio.run(test_databases.drop(url))


@pytest.fixture
def empty_database_url(test_databases: TestDatabases) -> Iterator[str]:
    """A fresh database with nothing in it."""
    url = asyncio.run(test_databases.create_empty())
    yield url
    asyncio.run(test_databases.drop(url))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Postgres]:
    """An open pool on a fresh, migrated database."""
    postgres = make_postgres(database_url)
    await postgres.open()
    yield postgres
    await postgres.close()
