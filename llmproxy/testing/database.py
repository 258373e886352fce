"""Databases for tests: each a copy of one migrated template, so that a fresh one costs little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final
from urllib.parse import urlsplit
from uuid import uuid4

import structlog

from llmproxy.config import DatabaseConfig
from llmproxy.db import Postgres
from llmproxy.migrate import Component, migrate
from llmproxy.services import SystemClock
from llmproxy.tasks import BackgroundTasks


def make_postgres(url: str, *, pool_size: int = 5) -> Postgres:
    """A Postgres with the real clock and background tasks, still to be opened."""
    log = structlog.get_logger()
    return Postgres(url, DatabaseConfig(pool_size=pool_size), SystemClock(), log, BackgroundTasks(log))


class TestDatabases:
    """Fresh databases on one server.

    Args:
        server_url: A database whose user may create others.
        components: Whose migrations the databases have.
    """

    # Its name is not a test's, whatever pytest thinks.
    __test__: ClassVar[bool] = False

    def __init__(self, server_url: str, components: Sequence[Component]) -> None:
        self._server_url: Final = server_url
        self._components: Final = components
        self._template: str | None = None

    async def create(self) -> str:
        """The URL of a new, migrated database."""
        if self._template is None:
            template = await self.create_empty()
            await migrate(template, self._components)
            self._template = _name(template)
        return await self._create(self._template)

    async def create_empty(self) -> str:
        """The URL of a new database with nothing in it."""
        return await self._create("template0")

    async def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        await self._execute(f"DROP DATABASE IF EXISTS {_name(url)} WITH (FORCE)")

    async def close(self) -> None:
        """Remove the template."""
        if self._template is not None:
            await self._execute(f"DROP DATABASE IF EXISTS {self._template} WITH (FORCE)")
            self._template = None

    async def _create(self, template: str) -> str:
        name = f"llmproxy_test_{uuid4().hex}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return urlsplit(self._server_url)._replace(path=f"/{name}").geturl()

    async def _execute(self, statement: str) -> None:
        server = make_postgres(self._server_url, pool_size=2)
        await server.open()
        try:
            await server.execute(statement)
        finally:
            await server.close()


def _name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")
