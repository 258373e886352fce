"""Entries in Redis or Valkey, which all workers and replicas share. Imported only where it is configured.

A server that is slow or gone costs a request at most one timeout, and most requests nothing: after a failure it is left
alone for a while, and everything is a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from aiocache.backends.redis import RedisCache
from aiocache.serializers import NullSerializer
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from llmproxy.api import Clock, ConfigError, Log

T = TypeVar("T")

# After a failure: long enough to spare requests the wait, short enough that nobody misses the cache for long.
_PAUSE_SECONDS: Final = 1.0
# Writing happens behind the answer, so it may take longer; and so may looking through all keys.
_WRITE_SECONDS: Final = 2.0
_FORGET_SECONDS: Final = 60.0
# How long a claim outlives a worker that died; one that lives claims again before that.
_CLAIM_SECONDS: Final = 6
_SCAN_COUNT: Final = 1000
# Takes the claim, or renews it when it is the holder's own: in one step, on the server's own clock.
_CLAIM: Final = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
_RELEASE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end return 1"


class RedisStore:
    """A Redis or Valkey server, through aiocache.

    Args:
        timeout_seconds: Longest wait of a request for it.

    Raises ConfigError when the URL says what no connection understands.
    """

    is_shared = True

    def __init__(
        self, url: str, *, key_prefix: str, connections: int, timeout_seconds: float, clock: Clock, log: Log
    ) -> None:
        self._prefix = key_prefix
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._log = log
        self._rests_until_monotonic = 0.0
        self._is_suspect = False
        self._cache = _cache(url, connections, timeout_seconds)
        # aiocache has no types for its client.
        self._client: Redis = self._cache.client
        # Nor has Redis for its pools.
        make_connection: Callable[[], object] = self._client.connection_pool.make_connection
        try:
            make_connection()
        except TypeError as error:
            raise ConfigError("plugins.caching.url: its query has a parameter that Redis does not know") from error

    async def get(self, key: str) -> bytes | None:
        """What is kept under a key."""
        value: bytes | None = await self._answered(self._cache.get(self._name(key)), self._timeout_seconds)
        return value

    async def put(self, key: str, value: bytes, ttl_seconds: float) -> None:
        """Keep it for so long."""
        # A float makes aiocache say it in milliseconds.
        await self._answered(self._cache.set(self._name(key), value, ttl=float(ttl_seconds)), _WRITE_SECONDS)

    async def forget(self, pattern: str) -> int | None:
        """Drop everything under keys that match."""
        return await self._answered(self._forget(self._name(pattern)), _FORGET_SECONDS)

    async def claim(self, key: str, holder: str) -> bool:
        """Whether the holder has the claim; without a server to ask, everybody has."""
        claiming = self._client.eval(_CLAIM, 1, self._name(f"{key}:claim"), holder, str(_CLAIM_SECONDS))
        return await self._answered(_awaitable(claiming), self._timeout_seconds) != 0

    async def release(self, key: str, holder: str) -> None:
        """Give up a claim."""
        releasing = self._client.eval(_RELEASE, 1, self._name(f"{key}:claim"), holder)
        await self._answered(_awaitable(releasing), _WRITE_SECONDS)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def _name(self, key: str) -> str:
        return f"{self._prefix}:{key}"

    async def _forget(self, pattern: str) -> int:
        names = [name async for name in self._client.scan_iter(match=pattern, count=_SCAN_COUNT)]
        for start in range(0, len(names), _SCAN_COUNT):
            await self._client.unlink(*names[start : start + _SCAN_COUNT])
        return len(names)

    async def _answered(self, asking: Awaitable[T], timeout_seconds: float) -> T | None:
        """What the server answers; None when it does not, or is not asked for it did not lately."""
        now = self._clock.monotonic()
        if now < self._rests_until_monotonic:
            _discard(asking)
            return None
        if self._is_suspect:
            # One request tries whether it is back; the others need not wait for that as well.
            self._rests_until_monotonic = now + _PAUSE_SECONDS
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await asking
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return None
        if self._is_suspect:
            self._is_suspect = False
            self._rests_until_monotonic = 0.0
            self._log.info("cache_back")
        return answer

    def _failed(self, error: Exception) -> None:
        if not self._is_suspect:
            self._log.warning("cache_lost", error=type(error).__name__)
        self._is_suspect = True
        self._rests_until_monotonic = self._clock.monotonic() + _PAUSE_SECONDS


def _cache(url: str, connections: int, timeout_seconds: float) -> RedisCache:
    # What a URL can say is a connection's business; the library's types for it are its own.
    options: dict[str, Any] = dict(parse_url(url))
    return RedisCache(
        # Values as they are: nothing that Redis holds is ever executed, or decoded as text.
        serializer=NullSerializer(encoding=None),
        timeout=0,
        endpoint=options.pop("host", "127.0.0.1"),
        port=options.pop("port", 6379),
        db=options.pop("db", 0),
        password=options.pop("password", None),
        pool_max_size=connections,
        create_connection_timeout=timeout_seconds,
        # The usual pool raises when all connections are in use.
        connection_pool_class=BlockingConnectionPool,
        connection_pool_kwargs={**options, "timeout": timeout_seconds, "retry": Retry(NoBackoff(), 0)},
    )


# The library types what it returns for both of its clients, the blocking one included.
def _awaitable(returned: Any) -> Awaitable[Any]:
    awaitable: Awaitable[Any] = returned
    return awaitable


def _discard(asking: Awaitable[object]) -> None:
    """Never begin it, without the warning that a forgotten coroutine would cause."""
    close = getattr(asking, "close", None)
    if close is not None:
        close()
