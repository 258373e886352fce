"""Workspaces: those of the configuration, and those made through the admin API, which win where both have one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Final

from pydantic import Field

from llmproxy.admin.documents import Body, Word, shown
from llmproxy.audit_notary import ActionLog
from llmproxy.config import MAX_DAYS, KeptBodies
from llmproxy.errors import BadRequest, Conflict, NotFound
from llmproxy.keys import Workspace
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Database

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class WorkspaceSettings(Body):
    """All there is to set about a workspace."""

    models: Annotated[tuple[Word, ...], Field(min_length=1)] = ("*",)
    region: Word | None = None
    bodies: KeptBodies | None = None
    bodies_retention_days: Annotated[int, Field(ge=1, le=MAX_DAYS)] | None = None


class StoredWorkspaces:
    """The workspaces in Postgres, next to those of the configuration."""

    def __init__(
        self,
        database: Database,
        queries: Queries,
        actions: ActionLog,
        configured: Callable[[], Mapping[str, Workspace]],
    ) -> None:
        self._database = database
        self._actions = actions
        self._queries = queries
        self._configured = configured

    async def list(self, after: str | None, limit: int) -> Document:
        """A page of workspaces by their ids, after the id `after`, and where each is defined. Raises StorageError."""
        rows = await self._database.fetch(self._queries.page_of_workspaces, after, limit + 1)
        stored = {row["id"]: {**shown(row), "source": "database"} for row in rows}
        configured = {
            name: _configured(name, each) for name, each in self._configured().items() if after is None or name > after
        }
        found = [each for _, each in sorted((configured | stored).items())]
        return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}

    async def put(self, name: str, settings: WorkspaceSettings) -> Document:
        """Make a workspace, or replace all its settings. Raises BadRequest, StorageError."""
        if not _NAME.fullmatch(name):
            message = "A workspace's id has up to 100 letters, digits, dots, dashes and underscores."
            raise BadRequest(message, param="id")
        values = (settings.models, settings.region, settings.bodies, settings.bodies_retention_days)
        async with self._database.transaction() as connection:
            row = await connection.fetch_row(self._queries.put_workspace, name, *values)
            await self._actions.record(connection, "workspace_changed", name, **settings.model_dump())
        return {**shown(row or {}), "source": "database"}

    async def delete(self, name: str) -> Document:
        """Remove a workspace; one that the configuration has too is then as it stands there.

        Raises Conflict while it has active keys or when only the configuration has it, NotFound, StorageError.
        """
        is_configured = name in self._configured()
        async with self._database.transaction() as connection:
            if await connection.fetch_row(self._queries.lock_workspace, name) is None:
                raise _not_stored(is_configured=is_configured)
            active = await connection.fetch_row(self._queries.count_active_keys, name)
            if active and active["keys"] and not is_configured:
                raise Conflict(f"The workspace has active keys ({active['keys']}); revoke them first.")
            await connection.execute(self._queries.delete_workspace, name)
            await self._actions.record(connection, "workspace_deleted", name)
        return {"id": name, "deleted": True}


def _configured(name: str, workspace: Workspace) -> Document:
    return {"id": name, **asdict(workspace), "created_at": None, "source": "config"}


def _not_stored(*, is_configured: bool) -> Conflict | NotFound:
    if is_configured:
        return Conflict("This workspace stands in the configuration file; remove it there and reload.")
    return NotFound("There is no workspace with this id.", param="id")
