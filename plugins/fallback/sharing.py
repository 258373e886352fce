"""Cool-downs in Postgres, so that all workers and replicas leave alone what one of them has found failing.

Only changes are written, never a request's outcome. While Postgres is away each worker goes by what it sees itself,
and tells the others when it is back.
"""

from __future__ import annotations

from typing import Final

from llmproxy.api import Connection, Follower, Row, Services, StorageError
from llmproxy_plugins.fallback.health import CoolDown, Health, TargetKey

_CHANNEL: Final = "fallback_cool_downs"
# Cool-downs may be over soon.
_RETRY_SECONDS: Final = 1.0
# Over before the others could know of it.
_LEAST_SECONDS: Final = 1.0

_BEGIN: Final = """
    INSERT INTO fallback_cool_downs (provider, model, credential, reason, until, repeats)
    VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5), $6)
    ON CONFLICT (provider, model, credential) DO UPDATE SET
        reason = excluded.reason,
        until = greatest(fallback_cool_downs.until, excluded.until),
        repeats = excluded.repeats
"""
_END: Final = "DELETE FROM fallback_cool_downs WHERE (provider, model, credential) = ($1, $2, $3)"
# What nobody has asked for since says nothing any more.
_CLEAN: Final = "DELETE FROM fallback_cool_downs WHERE until < now() - interval '1 day'"
# Seconds from now, for the workers' clocks may differ.
_READ: Final = """
    SELECT provider, model, credential, reason, repeats, extract(epoch FROM until - now())::float8 AS left_seconds
    FROM fallback_cool_downs
"""


class SharedHealth:
    """Keeps one worker's health and the table alike; to be told with `changed` of each change."""

    def __init__(self, health: Health, services: Services) -> None:
        self._health = health
        self._database = services.database
        self._clock = services.clock
        self._unwritten: set[TargetKey] = set()
        # Those that have a row, as far as is known: when one is gone, somebody has found the target well.
        self._shared: set[TargetKey] = set()
        self._follower = Follower(
            services, _CHANNEL, self._exchange, failure="fallback_health_not_shared", retry_seconds=_RETRY_SECONDS
        )

    def start(self) -> None:
        """Write and read whenever there is something to write, or to read."""
        self._follower.follow()

    def stop(self) -> None:
        """Share it no more."""
        self._follower.stop()

    def changed(self, key: TargetKey) -> None:
        """A target has begun to cool down, or has recovered."""
        if self._concerns_others(key):
            self._unwritten.add(key)
            self._follower.read_soon()
        else:
            self._unwritten.discard(key)

    def _concerns_others(self, key: TargetKey) -> bool:
        cool_down = self._health.cool_down(key)
        if cool_down is None:
            return key in self._shared
        return cool_down.until - cool_down.began >= _LEAST_SECONDS

    async def reset(self, key: TargetKey) -> None:
        """Have every worker take a target for well. Raises StorageError; here it is done all the same."""
        self._health.forget(key)
        self._shared.add(key)
        self._unwritten.add(key)
        self._follower.read_soon()
        await self._follower.read()

    async def _exchange(self) -> None:
        """Write what is new here, and take over what is new there."""
        while self._unwritten:
            await self._write(self._unwritten.pop())
        self._adopt({_key(row): row for row in await self._database.fetch(_READ)})

    async def _write(self, key: TargetKey) -> None:
        # Before it is there, for the target may recover in the meantime, and then it has to go again.
        self._shared.add(key)
        try:
            await self._store(key, self._health.cool_down(key))
        except StorageError:
            self._unwritten.add(key)
            raise

    async def _store(self, key: TargetKey, cool_down: CoolDown | None) -> None:
        async with self._database.transaction() as connection:
            if cool_down is None:
                await connection.execute(_END, *_columns(key))
            else:
                left_seconds = cool_down.until - self._clock.monotonic()
                written = (cool_down.reason, left_seconds, cool_down.repeats)
                await connection.execute(_BEGIN, *_columns(key), *written)
                await connection.execute(_CLEAN)
            await _notify(connection)

    def _adopt(self, rows: dict[TargetKey, Row]) -> None:
        now = self._clock.monotonic()
        for key, row in rows.items():
            # What has changed here while the table was read is the newer word.
            if key not in self._unwritten:
                until = now + row["left_seconds"]
                self._health.adopt(key, CoolDown(row["reason"], min(now, until), until, row["repeats"]))
        for key in self._shared - rows.keys() - self._unwritten:
            self._health.recover(key)
        self._shared = set(rows)


async def _notify(connection: Connection) -> None:
    await connection.execute("SELECT pg_notify($1, '')", _CHANNEL)


def _columns(key: TargetKey) -> tuple[str, str, str]:
    return key.provider, key.model, key.credential or ""


def _key(row: Row) -> TargetKey:
    return TargetKey(row["provider"], row["model"], row["credential"] or None)
