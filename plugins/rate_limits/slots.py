"""How many requests run at the same time, in all workers together: each holds slots of a limit, and hands them out.

What a worker holds it may use without asking anybody. One that is not heard of any more has nothing to hold: its slots
are free again after `LIFETIME_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import uuid4

from llmproxy.api import Services, StorageError
from llmproxy_plugins.rate_limits.limits import Rule

CHANNEL: Final = "rate_limits_slots"
LIFETIME_SECONDS: Final = 15.0
HEARTBEAT_SECONDS: Final = 3.0
IDLE_SECONDS: Final = 10.0
# How long a request waits for what other workers hold, do not use and have been told of.
_PAUSES_SECONDS: Final = (0.05, 0.15)
# How long a refusal is believed.
_REFUSED_SECONDS: Final = 0.25
_CALL_SECONDS: Final = 2.0
_AWAY_SECONDS: Final = 0.5
_SPARE: Final = 8

_HOLD: Final = "SELECT rate_limits_hold($1, $2, $3, $4, $5, $6) AS held"
_CONFIRM: Final = "UPDATE rate_limits_slots SET seen_at = clock_timestamp() WHERE holder = $1 RETURNING name"
_FORGET: Final = """
DELETE FROM rate_limits_slots WHERE (holder = $1 AND held = 0) OR seen_at < clock_timestamp() - $2::interval
"""
_LEAVE: Final = "DELETE FROM rate_limits_slots WHERE holder = $1"


class SlotsTaken(Exception):
    """All slots of a limit are in use."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule.name)
        self.rule = rule


@dataclass(slots=True)
class _Pool:
    """The slots of one limit that this worker holds."""

    cap: int
    held: int = 0
    used: int = 0
    waiting: int = 0
    used_at: float = 0.0
    confirmed_at: float = float("-inf")
    refused_until: float = float("-inf")
    calling: asyncio.Lock = field(default_factory=asyncio.Lock)


class Slots:
    """The slots of one worker."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._clock = services.clock
        # A new name each time: what an earlier plugin holds, before a reload, still counts until it is done.
        self._holder = uuid4().hex
        self._pools: dict[str, _Pool] = {}
        self._away_until = float("-inf")
        self._stop_listening: Callable[[], None] = lambda: None
        self._upkeep: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to hear of other workers' wants, and let them know that this one lives."""
        self._stop_listening = self._services.database.listen(CHANNEL, self._give_way, lambda: None)
        self._upkeep = self._services.tasks.start("rate limit slots", self._keep_house())

    async def stop(self) -> None:
        """Let others have what this worker holds."""
        if self._upkeep is None:
            return
        self._stop_listening()
        self._upkeep.cancel()
        try:
            await self._services.database.execute(_LEAVE, self._holder)
        except StorageError as error:
            self._services.log.warning("rate_limit_slots_kept", error=error.message)

    async def acquire(self, rules: Sequence[Rule], *, fail_open: bool) -> None:
        """Take a slot of each, or none.

        Raises SlotsTaken, and StorageError when the database is needed and cannot be reached.

        Args:
            fail_open: Take them all the same when the database cannot be reached.
        """
        taken: list[Rule] = []
        try:
            for rule in rules:
                await self._acquire(rule, fail_open=fail_open)
                taken.append(rule)
        except BaseException:
            self.release(taken)
            raise

    def release(self, rules: Sequence[Rule]) -> None:
        """Have others use them."""
        for rule in rules:
            self._pools[rule.name].used -= 1

    # One limit

    async def _acquire(self, rule: Rule, *, fail_open: bool) -> None:
        pool = self._pools.setdefault(rule.name, _Pool(rule.cap))
        pool.cap = rule.cap
        pool.waiting += 1
        try:
            await self._wait_for_room(rule, pool)
        except StorageError:
            if not fail_open:
                raise
        finally:
            pool.waiting -= 1
        # No await since there was room.
        pool.used += 1
        pool.used_at = self._clock.monotonic()

    async def _wait_for_room(self, rule: Rule, pool: _Pool) -> None:
        for pause_seconds in (*_PAUSES_SECONDS, None):
            if self._has_room(pool):
                return
            if self._clock.monotonic() < pool.refused_until:
                break
            await self._grow(rule.name, pool)
            if self._has_room(pool):
                return
            if pause_seconds is None or pool.held >= pool.cap:
                pool.refused_until = self._clock.monotonic() + _REFUSED_SECONDS
                break
            await self._clock.sleep(pause_seconds)
        raise SlotsTaken(rule)

    def _has_room(self, pool: _Pool) -> bool:
        is_known = self._clock.monotonic() - pool.confirmed_at < LIFETIME_SECONDS / 2
        return is_known and pool.used < min(pool.held, pool.cap)

    async def _grow(self, name: str, pool: _Pool) -> None:
        async with pool.calling:
            if not self._has_room(pool) and not (pool.held >= pool.cap and self._is_confirmed(pool)):
                needed = min(pool.used + pool.waiting, pool.cap)
                pool.held = await self._hold(name, pool, needed, needed + max(_SPARE, pool.used))

    def _is_confirmed(self, pool: _Pool) -> bool:
        return self._clock.monotonic() - pool.confirmed_at < LIFETIME_SECONDS / 2

    async def _shrink(self, name: str, pool: _Pool) -> None:
        async with pool.calling:
            if pool.held > pool.used:
                # Before others hear that there is room: whatever becomes of the call, what is given is not used.
                pool.held = pool.used
                pool.held = min(pool.held, await self._hold(name, pool, pool.held, pool.held))

    async def _hold(self, name: str, pool: _Pool, needed: int, wanted: int) -> int:
        """Hold so many from now on, and say how many it became. Raises StorageError."""
        now = self._clock.monotonic()
        if now < self._away_until:
            raise _away()
        lifetime = timedelta(seconds=LIFETIME_SECONDS)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                row = await self._services.database.fetch_row(
                    _HOLD, name, self._holder, needed, wanted, pool.cap, lifetime
                )
        except (TimeoutError, StorageError) as error:
            self._away_until = now + _AWAY_SECONDS
            raise _away() from error
        pool.confirmed_at = now
        return int(row["held"]) if row else 0

    def _give_way(self, name: str) -> None:
        pool = self._pools.get(name)
        if pool is not None and pool.held > pool.used:
            self._services.tasks.start("rate limit slots", self._try_to_shrink(name, pool))

    async def _try_to_shrink(self, name: str, pool: _Pool) -> None:
        try:
            await self._shrink(name, pool)
        except StorageError as error:
            self._services.log.warning("rate_limit_slots_kept", error=error.message)

    # Keeping house

    async def _keep_house(self) -> None:
        while True:
            await self._clock.sleep(HEARTBEAT_SECONDS)
            try:
                await self.confirm()
            except StorageError as error:
                self._services.log.warning("rate_limit_slots_not_confirmed", error=error.message)

    async def confirm(self) -> None:
        """Let others know that this worker lives, and have what lies idle. Raises StorageError."""
        if not self._pools:
            return
        now = self._clock.monotonic()
        rows = await self._services.database.fetch(_CONFIRM, self._holder)
        known = {row["name"] for row in rows}
        for name, pool in list(self._pools.items()):
            if name in known:
                pool.confirmed_at = now
            elif pool.used:
                await self._restore(name, pool)
            if now - pool.used_at > IDLE_SECONDS:
                await self._shrink(name, pool)
            if not (pool.held or pool.used or pool.waiting):
                del self._pools[name]
        lifetime = timedelta(seconds=LIFETIME_SECONDS)
        await self._services.database.execute(_FORGET, self._holder, lifetime)

    async def _restore(self, name: str, pool: _Pool) -> None:
        """Hold again what is in use, after the others had to take this worker for dead."""
        async with pool.calling:
            pool.held = await self._hold(name, pool, pool.used, pool.used)


def _away() -> StorageError:
    return StorageError(
        "The database cannot be reached, and what this worker may use without it is used up; try again later.",
        retry_after_seconds=_AWAY_SECONDS,
    )
