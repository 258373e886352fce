"""Virtual keys: made at random, kept as SHA-256, held in memory by every worker and kept current by notifications."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from llmproxy.config import WorkspaceConfig
from llmproxy.errors import StorageError, Unauthenticated, Unavailable
from llmproxy.exchange import Principal
from llmproxy.key_snapshot import KeyRows, KeySnapshot
from llmproxy.queries import Queries
from llmproxy.services import Clock, Database, Log, Row, Tasks

RETRY_SECONDS: Final = 1.0
MIN_KEY_CHARACTERS: Final = 16
MIN_DISTINCT_CHARACTERS: Final = 8
DEFAULT_WORKSPACE: Final = "default"
_HEADERS: Final = ("x-api-key", "api-key", "x-goog-api-key")


def new_key() -> str:
    """A new key: `sk-` and 256 random bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def is_weak(key: str) -> bool:
    """Whether a key is short or uniform enough to be guessed."""
    return len(key) < MIN_KEY_CHARACTERS or len(set(key)) < MIN_DISTINCT_CHARACTERS


def key_hash(key: str) -> str:
    """The SHA-256 of a key in hex: all that is ever stored. Keys are random, so no salt or slow hash is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def credential_in(headers: Mapping[str, str]) -> str:
    """The key a client sent, in any of the places where SDKs put it. Raises Unauthenticated when there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    for name in _HEADERS:
        if value := headers.get(name):
            return value
    raise Unauthenticated("No API key was sent; send one as 'Authorization: Bearer sk-…'.", code="missing_api_key")


@dataclass(frozen=True, slots=True)
class VirtualKey:
    """A key as the workers know it."""

    principal: Principal
    expires_at: datetime | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant's settings."""

    models: tuple[str, ...] = ("*",)
    region: str | None = None
    bodies: str | None = None


class KeyRing:
    """Every key and workspace, from the configuration and from Postgres, answered from memory.

    Postgres tells of each change by NOTIFY, so an edit or a revocation is in force within a second and a request
    never waits for the database. While Postgres is away, what was last read stays in force.

    Args:
        snapshot: Where what was last read outlives the process.
    """

    def __init__(self, queries: Queries, clock: Clock, log: Log, snapshot: KeySnapshot | None = None) -> None:
        self._queries = queries
        self._clock = clock
        self._log = log
        self._snapshot = snapshot
        self._sections: Mapping[str, WorkspaceConfig] = {}
        self._rows = KeyRows()
        self._workspaces: dict[str, Workspace] = {}
        self._keys: dict[str, VirtualKey] = {}
        self._stale = asyncio.Event()
        self._is_behind = False
        self._is_blind = False

    def configure(self, sections: Mapping[str, WorkspaceConfig]) -> None:
        """Take over the workspaces and keys of a configuration, instead of the last one's. Cannot fail."""
        self._sections = sections
        self._rebuild()

    async def start(self, database: Database, tasks: Tasks) -> None:
        """Read every key once, or the snapshot when there is no database, then keep up with changes."""
        await self._try_to_read(database)
        if self._is_behind:
            await self._recall()
        for channel in ("llmproxy_keys", "llmproxy_workspaces"):
            database.listen(channel, lambda _payload: self._stale.set(), self._stale.set)
        tasks.start("keys", self._keep_current(database))

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Whose key this is.

        Raises Unauthenticated when it is missing, unknown, expired or revoked, Unavailable when that cannot be told.
        """
        key = self._keys.get(key_hash(credential_in(headers)))
        # A key of the file may be revoked in the database, so without having read it nobody is let in.
        if self._is_blind or (key is None and self._is_behind):
            raise Unavailable("API keys cannot be looked up at the moment; try again shortly.", retry_after_seconds=1)
        if key is None:
            raise Unauthenticated("This API key is not known here; check that it is complete.")
        if key.revoked:
            raise Unauthenticated("This API key has been revoked; ask for a new one.", code="revoked_api_key")
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            raise Unauthenticated("This API key has expired; ask for a new one.", code="expired_api_key")
        if key.principal.workspace not in self._workspaces:
            raise Unauthenticated(
                "The workspace of this API key is gone; ask for a key of another.", code="unknown_workspace"
            )
        return key.principal

    def workspace(self, name: str) -> Workspace | None:
        """A workspace's settings; what Postgres says wins over the configuration."""
        return self._workspaces.get(name)

    def configured_workspaces(self) -> Mapping[str, Workspace]:
        """The workspaces that the configuration file defines."""
        return {name: _configured(section) for name, section in self._sections.items()}

    async def _keep_current(self, database: Database) -> None:
        while True:
            await self._stale.wait()
            self._stale.clear()
            await self._try_to_read(database)
            if self._is_behind:
                # The notification is spent, and the listening connection may never have been lost.
                await self._clock.sleep(RETRY_SECONDS)
                self._stale.set()

    async def _try_to_read(self, database: Database) -> None:
        try:
            workspaces = await database.fetch(self._queries["list_workspaces"])
            self._rows = KeyRows(workspaces, await database.fetch(self._queries["list_keys"]))
        except StorageError as error:
            self._is_behind = True
            self._log.warning("keys_not_read", error=str(error))
            return
        self._is_behind = self._is_blind = False
        self._rebuild()
        await self._remember()

    async def _remember(self) -> None:
        if self._snapshot is None:
            return
        try:
            await asyncio.to_thread(self._snapshot.save, self._rows)
        except (OSError, ValueError, TypeError) as error:
            self._log.warning("keys_not_remembered", error=str(error))

    async def _recall(self) -> None:
        try:
            if self._snapshot is None:
                raise FileNotFoundError
            self._rows = await asyncio.to_thread(self._snapshot.load)
        except (OSError, ValueError) as error:
            self._is_blind = True
            self._log.warning("keys_not_recalled", error=repr(error))
        self._rebuild()

    def _rebuild(self) -> None:
        """Every key with its workspace's settings as they are now; what is stored wins over the file."""
        workspaces = {name: _configured(section) for name, section in self._sections.items()}
        self._workspaces = workspaces | {row["id"]: _stored(row) for row in self._rows.workspaces}
        keys = {
            key_hash(key.get_secret_value()): VirtualKey(self._principal(name, f"config:{name}:{number}"))
            for name, section in self._sections.items()
            for number, key in enumerate(section.keys, 1)
        }
        self._keys = keys | {row["key_sha256"]: self._stored_key(row) for row in self._rows.keys}

    def _principal(self, workspace: str, key_id: str) -> Principal:
        settings = self._workspaces.get(workspace, Workspace())
        return Principal(workspace, key_id, workspace_models=settings.models, region=settings.region)

    def _stored_key(self, row: Row) -> VirtualKey:
        principal = replace(
            self._principal(row["workspace"], row["id"]),
            key_name=row["name"],
            models=tuple(row["models"]),
            feature=row["feature"],
            user=row["user_id"],
        )
        return VirtualKey(principal, row["expires_at"], revoked=row["revoked_at"] is not None)


def _configured(section: WorkspaceConfig) -> Workspace:
    return Workspace(section.models, section.region, section.bodies)


def _stored(row: Row) -> Workspace:
    return Workspace(tuple(row["models"]), row["region"], row["bodies"])
