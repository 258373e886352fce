"""Virtual keys: made at random, kept as SHA-256, held in memory by every worker and kept current by notifications."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson

from llmproxy.config import WorkspaceConfig
from llmproxy.errors import Unauthenticated, Unavailable
from llmproxy.exchange import Principal
from llmproxy.key_snapshot import KeySnapshot
from llmproxy.key_tables import KeyTables
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Clock, Database, Log, Row, Tasks

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
    bodies_retention_days: int | None = None


_NO_SETTINGS: Final = Workspace()


class KeyRing:
    """Every key and workspace, from the configuration and from Postgres, answered from memory.

    Postgres tells of each change by NOTIFY, so an edit or a revocation is in force within a second and a request
    never waits for the database. While Postgres is away, what was last read stays in force.

    Args:
        snapshot: Where what was last read outlives the process.
    """

    def __init__(self, queries: Queries, clock: Clock, log: Log, snapshot: KeySnapshot | None = None) -> None:
        self._clock = clock
        self._tables = KeyTables(queries, clock, log, snapshot, self._forget)
        self._sections: Mapping[str, WorkspaceConfig] = {}
        # The workspace and id of each, by its hash.
        self._configured_keys: Mapping[str, tuple[str, str]] = {}
        self._workspaces: Mapping[str, Workspace] = {}
        # Keys by their hashes, each made when it is first used.
        self._keys: dict[str, VirtualKey] = {}

    def configure(self, sections: Mapping[str, WorkspaceConfig]) -> None:
        """Take over the workspaces and keys of a configuration, instead of the last one's. Cannot fail."""
        self._sections = sections
        self._configured_keys = {
            key_hash(key.get_secret_value()): (name, f"config:{name}:{number}")
            for name, section in sections.items()
            for number, key in enumerate(section.keys, 1)
        }
        self._forget(None)

    async def start(self, database: Database, tasks: Tasks) -> None:
        """Read every key once, or the snapshot when there is no database, then keep up with changes."""
        await self._tables.start(database, tasks)

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Whose key this is.

        Raises Unauthenticated when it is missing, unknown, expired or revoked, Unavailable when that cannot be told.
        """
        sha256 = key_hash(credential_in(headers))
        key = self._keys.get(sha256) or self._find(sha256)
        # A key of the file may be revoked in the database, so without having read it nobody is let in.
        if self._tables.is_blind or (key is None and self._tables.is_behind):
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

    def configured_body_days(self) -> Mapping[str, int | None]:
        """How long each of those workspaces wants its bodies kept; None where it does not say."""
        return {name: section.bodies_retention_days for name, section in self._sections.items()}

    def _forget(self, changed: set[str] | None) -> None:
        """Have keys made anew; with None all of them, as the settings of workspaces may have changed."""
        if changed is None:
            stored = {name: _stored(row) for name, row in self._tables.rows.workspaces.items()}
            self._workspaces = {**self.configured_workspaces(), **stored}
            self._keys = {}
            return
        for sha256 in changed:
            self._keys.pop(sha256, None)

    def _find(self, sha256: str) -> VirtualKey | None:
        """The key of a hash; what is stored wins over the file."""
        document = self._tables.rows.keys.get(sha256)
        if document is not None:
            key = self._stored_key(orjson.loads(document))
        elif (configured := self._configured_keys.get(sha256)) is not None:
            settings = self._settings(configured[0])
            key = VirtualKey(Principal(*configured, workspace_models=settings.models, region=settings.region))
        else:
            return None
        self._keys[sha256] = key
        return key

    def _settings(self, workspace: str) -> Workspace:
        return self._workspaces.get(workspace, _NO_SETTINGS)

    def _stored_key(self, row: Document) -> VirtualKey:
        settings = self._settings(row["workspace"])
        principal = Principal(
            row["workspace"],
            row["id"],
            key_name=row["name"],
            models=tuple(row["models"]),
            workspace_models=settings.models,
            region=settings.region,
            feature=row["feature"],
            user=row["user_id"],
        )
        expires_at = datetime.fromisoformat(row["expires_at"]) if row["expires_at"] else None
        return VirtualKey(principal, expires_at, revoked=row["revoked_at"] is not None)


def _configured(section: WorkspaceConfig) -> Workspace:
    return Workspace(section.models, section.region, section.bodies, section.bodies_retention_days)


def _stored(row: Row) -> Workspace:
    # A snapshot that an older release wrote has no days.
    return Workspace(tuple(row["models"]), row["region"], row["bodies"], row.get("bodies_retention_days"))
