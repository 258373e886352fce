"""Virtual keys in Postgres: made, listed, changed and revoked. Workers hear of each change by themselves."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, Field, model_validator

from llmproxy.admin.documents import MAX_LIMIT, Body, Word, page, shown
from llmproxy.audit_notary import ActionLog
from llmproxy.errors import BadRequest, Conflict, NotFound
from llmproxy.keys import key_hash, new_key
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Clock, Connection, Database, Row

_HINT_CHARACTERS: Final = 10
_AUDITED: Final = ("workspace", "name", "models", "feature", "user_id", "expires_at")
_CENTURY_SECONDS: Final = 3_155_760_000
_Patterns = Annotated[tuple[Word, ...], Field(min_length=1)]


class _Expiring(Body):
    expires_at: AwareDatetime | None = None
    expires_in_seconds: float | None = Field(default=None, gt=0, le=_CENTURY_SECONDS)

    @model_validator(mode="after")
    def _one_end(self) -> _Expiring:
        if self.expires_at is not None and self.expires_in_seconds is not None:
            raise ValueError("Send either 'expires_at' or 'expires_in_seconds', not both")
        return self

    def end(self, now: datetime) -> datetime | None:
        """When the key stops working; None for never."""
        if self.expires_in_seconds is not None:
            return now + timedelta(seconds=self.expires_in_seconds)
        return self.expires_at


class NewKey(_Expiring):
    """A key to be made, or with `key_sha256` one that exists elsewhere and is taken over."""

    workspace: Word
    name: str = Field(default="", max_length=200)
    models: _Patterns = ("*",)
    feature: Word | None = None
    user: Word | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)  # the operator's own notes
    key_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class KeyChanges(_Expiring):
    """What is to change about a key; null takes an attribution or an end away."""

    name: str = Field(default="", max_length=200)
    models: _Patterns = ("*",)
    feature: Word | None = None
    user: Word | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)  # the operator's own notes


class StoredKeys:
    """The keys in Postgres.

    Args:
        actions: Hears of each change.
        configured_workspaces: The names of the workspaces that the configuration defines.
    """

    def __init__(
        self,
        database: Database,
        queries: Queries,
        clock: Clock,
        actions: ActionLog,
        configured_workspaces: Callable[[], Collection[str]],
    ) -> None:
        self._database = database
        self._actions = actions
        self._queries = queries
        self._clock = clock
        self._configured_workspaces = configured_workspaces

    async def create(self, wanted: NewKey) -> Document:
        """Make a key; `key` in the result is the only time that it is shown.

        Raises BadRequest for an unknown workspace, Conflict when an imported key is there already, StorageError.
        """
        key = new_key() if wanted.key_sha256 is None else None
        async with self._database.transaction() as connection:
            await self._check_workspace(connection, wanted.workspace)
            row = await connection.fetch_row(
                self._queries.create_key,
                f"key_{secrets.token_hex(8)}",
                wanted.workspace,
                wanted.name,
                wanted.key_sha256 or key_hash(key or ""),
                key[:_HINT_CHARACTERS] if key else "",
                wanted.models,
                wanted.feature,
                wanted.user,
                wanted.metadata,
                wanted.end(self._clock.now()),
            )
            if row is None:
                raise Conflict("A key with this SHA-256 is already there.", param="key_sha256")
            facts = {name: row[name] for name in _AUDITED}
            await self._actions.record(connection, "key_created", row["id"], **facts, is_imported=key is None)
        return {**_public(row), "key": key} if key else _public(row)

    async def find(self, workspace: str | None, after: str | None, limit: int) -> Document:
        """A page of keys, the oldest first, after the key of the id `after`. Raises BadRequest, StorageError."""
        last = await self._database.fetch_row(self._queries.find_key, after) if after is not None else None
        if after is not None and last is None:
            raise BadRequest("'after' must be the id of a key.", param="after")
        whose, owner = (self._queries.keys_of_workspace, [workspace]) if workspace is not None else ("", [])
        query = self._queries.page_of_keys.format(whose=whose)
        place = (last["created_at"], after) if last else (None, None)
        rows = await self._database.fetch(query, *place, limit + 1, *owner)
        return page([_public(row) for row in rows], limit)

    async def get(self, key_id: str) -> Document:
        """One key. Raises NotFound, StorageError."""
        return _found(await self._database.fetch_row(self._queries.find_key, key_id))

    async def update(self, key_id: str, changes: KeyChanges) -> Document:
        """Change what was sent and leave the rest. Raises NotFound, StorageError."""
        sent = changes.model_fields_set
        values = (
            changes.name if "name" in sent else None,
            changes.models if "models" in sent else None,
            "feature" in sent,
            changes.feature,
            "user" in sent,
            changes.user,
            changes.metadata if "metadata" in sent else None,
            bool(sent & {"expires_at", "expires_in_seconds"}),
            changes.end(self._clock.now()),
        )
        async with self._database.transaction() as connection:
            changed = _found(await connection.fetch_row(self._queries.update_key, key_id, *values))
            facts = {name: changed[name] for name in changed if name in sent}
            await self._actions.record(connection, "key_changed", key_id, **facts)
        return changed

    async def revoke(self, key_id: str) -> Document:
        """Make a key worthless for good; doing so twice is harmless. Raises NotFound, StorageError."""
        async with self._database.transaction() as connection:
            revoked = _found(await connection.fetch_row(self._queries.revoke_key, key_id))
            await self._actions.record(connection, "key_revoked", key_id, workspace=revoked["workspace"])
        return revoked

    async def _check_workspace(self, connection: Connection, name: str) -> None:
        configured = self._configured_workspaces()
        if name in configured or await connection.fetch_row(self._queries.lock_workspace, name):
            return
        stored = [row["id"] for row in await connection.fetch(self._queries.page_of_workspaces, None, MAX_LIMIT)]
        near = get_close_matches(name, [*configured, *stored], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "make it first, or choose another."
        raise BadRequest(f"There is no workspace {name!r}; {hint}", param="workspace")


def _found(row: Row | None) -> Document:
    if row is None:
        raise NotFound("There is no key with this id.", param="id")
    return _public(row)


def _public(row: Row) -> Document:
    """A key without its hash, which would let its reader recognise the key elsewhere."""
    return {name: value for name, value in shown(row).items() if name != "key_sha256"}
