"""Purges, on every worker and replica: what was made before one is not found after it.

A purge gives what it is for a new generation. Generations are part of the keys that entries are stored under, so that
an answer that was on its way during the purge, or on a machine that heard of it late, stays behind in the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self
from uuid import uuid4

import orjson
from pydantic import Field, ValidationError, model_validator

from llmproxy.api import Answer, BadRequest, Follower, Log, RouteRequest, Section, Services, StorageError
from llmproxy_plugins.caching.keys import Key, tag
from llmproxy_plugins.caching.stores import Store

_CHANNEL: Final = "caching_purges"
# No entry lives longer than 30 days, so a generation that began before that has nothing to be told apart from.
_PRUNE: Final = "DELETE FROM caching_generations WHERE began_at < now() - interval '31 days'"
_BEGIN: Final = """
INSERT INTO caching_generations (scope, generation) VALUES ($1, $2)
ON CONFLICT (scope) DO UPDATE SET generation = excluded.generation, began_at = now()
"""
_NOTIFY: Final = "NOTIFY caching_purges"
_ALL: Final = "SELECT scope, generation FROM caching_generations"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a purge is for, by tags of keys; an empty tag stands for any."""

    tenant: str = ""
    model: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The scope as text."""
        return f"{self.tenant}:{self.model}:{self.digest}"

    @property
    def pattern(self) -> str:
        """What the keys of all its entries match."""
        return f"{self.tenant or '*'}:{self.model or '*'}:{self.digest or '*'}:*"


class Generations:
    """Which generation every scope is in, as far as this worker knows.

    Args:
        store: What is dropped from at a purge.
    """

    def __init__(self, services: Services, store: Store) -> None:
        self._database = services.database
        self._store = store
        self._follower = Follower(services, _CHANNEL, self._read, failure="cache_purges_unknown")
        self._current: dict[str, str] = {}
        self._is_known = False
        self._purging: set[str] = set()

    async def startup(self) -> None:
        """Learn of the purges so far, and of those to come."""
        await self._follower.start()

    def shutdown(self) -> None:
        """Learn of no more."""
        self._follower.stop()

    def stored_key(self, key: Key) -> str | None:
        """Where an entry of today's generation is stored; None as long as past purges are not known."""
        if not self._is_known:
            return None
        scopes = (
            Scope(),
            Scope(tenant=key.tenant),
            Scope(model=key.model),
            Scope(key.tenant, key.model),
            Scope(digest=key.digest),
        )
        generations = [self._current.get(scope.name, "") for scope in scopes] if self._current else []
        return f"{key.prefix}:{tag(','.join(generations)) if any(generations) else ''}"

    async def purge(self, scope: Scope) -> int | None:
        """Make nothing that was kept for a scope be found again, by anybody. Raises StorageError.

        Says how many answers were dropped from the store, if that is known.
        """
        self._purging.add(scope.name)
        try:
            async with self._database.transaction() as connection:
                await connection.execute(_PRUNE)
                await connection.execute(_BEGIN, scope.name, uuid4().hex)
                await connection.execute(_NOTIFY)
            # It stands, and as long as it cannot be read nothing is found at all.
            with suppress(StorageError):
                await self._follower.read()
        finally:
            self._purging.discard(scope.name)
        return await self._store.forget(scope.pattern)

    async def _read(self) -> None:
        try:
            rows = await self._database.fetch(_ALL)
        except StorageError:
            # Better no cache than one that serves what was purged.
            self._is_known = False
            raise
        before, self._current = self._current, {row["scope"]: row["generation"] for row in rows}
        self._is_known = True
        await self._forget(name for name in self._current if self._current[name] != before.get(name))

    async def _forget(self, purged: Iterable[str]) -> None:
        # Whoever purges drops it himself, to count it, and where the store is shared, for everybody.
        if not self._store.is_shared:
            for name in set(purged) - self._purging:
                await self._store.forget(Scope(*name.split(":")).pattern)


class PurgeRequest(Section):
    """What to purge: all that is given must hold of an entry; `all` stands alone."""

    all: bool = Field(default=False, description="Everything.")
    workspace: str | None = Field(default=None, description="What the requests of a workspace made.")
    model: str | None = Field(default=None, description="What was asked of a model, by the name asked for.")
    key: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="One answer's `x-llmproxy-cache-key`.")

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        named = [self.workspace is not None or self.model is not None, self.key is not None, self.all]
        if sum(named) != 1:
            raise ValueError("give workspace or model or both, or key, or all")
        return self


class PurgeEndpoint:
    """`POST /admin/v1/cache/purge`.

    Args:
        tenant: The workspaces that one's answers are shared between.
    """

    def __init__(self, generations: Generations, tenant: Callable[[str], tuple[str, ...]], log: Log) -> None:
        self._generations = generations
        self._tenant = tenant
        self._log = log

    async def __call__(self, request: RouteRequest) -> Answer:
        """Purge what the body says."""
        try:
            wanted = PurgeRequest.model_validate_json(request.body or b"{}")
        except ValidationError as error:
            mistakes = "; ".join(_told(each["loc"], each["msg"]) for each in error.errors())
            raise BadRequest(f"The purge cannot be made: {mistakes}.") from error
        dropped = await self._generations.purge(self._scope(wanted))
        named = {**wanted.model_dump(exclude_defaults=True), "dropped": dropped}
        self._log.info("cache_purged", **named)
        body = orjson.dumps({"object": "cache.purge", **named})
        return Answer(200, (("content-type", "application/json"),), body)

    def _scope(self, wanted: PurgeRequest) -> Scope:
        tenant = self._tenant(wanted.workspace) if wanted.workspace is not None else None
        return Scope(
            tenant=tag(orjson.dumps(tenant).decode()) if tenant else "",
            model=tag(wanted.model) if wanted.model is not None else "",
            digest=wanted.key or "",
        )


def _told(place: tuple[str | int, ...], message: str) -> str:
    """A mistake with the member it is in, without the library's own words."""
    return f"{'.'.join(map(str, place))} {message.removeprefix('Value error, ')}".strip()
