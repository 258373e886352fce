"""Where entries are kept: one interface, and the store in the worker's memory."""

from __future__ import annotations

from typing import Protocol

from llmproxy_plugins.caching.memory import LRUCache


class Store(Protocol):
    """Keeps bytes under keys. None of its methods raises: what cannot be had is not there.

    Attributes:
        is_shared: Whether other workers keep theirs in the same place.
    """

    is_shared: bool

    async def get(self, key: str) -> bytes | None:
        """What is kept under a key."""

    async def put(self, key: str, value: bytes, ttl_seconds: float) -> None:
        """Keep it for so long, if there is room."""

    async def forget(self, pattern: str) -> int | None:
        """Drop everything under keys that match a shell-style pattern, and say how much that was, if it is known."""

    async def claim(self, key: str, holder: str) -> bool:
        """Whether the holder is, for some seconds, the one worker of all that makes what belongs under a key.

        Claiming again what one holds makes it last longer.
        """

    async def release(self, key: str, holder: str) -> None:
        """Give up a claim."""

    async def close(self) -> None:
        """Let go of what is open."""


class MemoryStore:
    """One worker's own memory: fast, gone with the worker, and nobody else's."""

    is_shared = False

    def __init__(self, cache: LRUCache) -> None:
        self._cache = cache

    async def get(self, key: str) -> bytes | None:
        """What is kept under a key."""
        value: bytes | None = await self._cache.get(key)
        return value

    async def put(self, key: str, value: bytes, ttl_seconds: float) -> None:
        """Keep it for so long."""
        await self._cache.set(key, value, ttl=ttl_seconds)

    async def forget(self, pattern: str) -> int:
        """Drop everything under keys that match."""
        return self._cache.forget(pattern)

    async def claim(self, key: str, holder: str) -> bool:
        """Nobody else keeps anything here, so there is nobody to wait for."""
        return True

    async def release(self, key: str, holder: str) -> None:
        """Nothing was taken."""

    async def close(self) -> None:
        """Nothing is open."""
