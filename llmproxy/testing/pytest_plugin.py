"""The fixtures that an installed llmproxy brings to pytest."""

# ruff: noqa: PLC0415 - pytest imports this wherever llmproxy is installed: only who uses a fixture waits for the gateway.

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llmproxy.testing.database import TestDatabases
    from llmproxy.testing.running_proxy import StartProxy


@pytest.fixture(scope="session")
def llmproxy_server_url() -> Iterator[str]:
    """A PostgreSQL for the whole session: the one that LLMPROXY_TEST_DATABASE_URL names, or an embedded one."""
    from llmproxy.embedded import EmbeddedPostgres

    if url := os.environ.get("LLMPROXY_TEST_DATABASE_URL"):
        yield url
        return
    # Started by root, the server is another user's, and may still be closing files when it is told to stop.
    with tempfile.TemporaryDirectory(prefix="llmproxy-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)
        server = EmbeddedPostgres(directory)
        yield server.start()
        server.stop()


@pytest.fixture(scope="session")
def llmproxy_databases(llmproxy_server_url: str) -> Iterator[TestDatabases]:
    """Fresh databases with the gateway's own tables."""
    from llmproxy.migrate import core_component
    from llmproxy.testing.database import TestDatabases

    databases = TestDatabases(llmproxy_server_url, [core_component()])
    yield databases
    asyncio.run(databases.close())


@pytest.fixture
def proxy(llmproxy_databases: TestDatabases) -> StartProxy:
    """What starts a gateway for a test, with the plugins and the upstream that the test wants."""
    from llmproxy.testing.running_proxy import StartProxy

    return StartProxy(llmproxy_databases)
