"""Answers in the worker's own memory: an aiocache backend that is bounded in bytes and forgets what nobody asks for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Final

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

# What an entry costs beside its value: its key, its place in the order, and the objects around both.
_OVERHEAD_BYTES: Final = 500


class LRUCache(BaseCache):
    """A cache of bytes under string keys: least recently used first to go, none later than its time.

    Args:
        max_bytes: What all values may take, overheads included.
        monotonic: Gives the seconds that times to live are counted in.
    """

    def __init__(self, max_bytes: int, monotonic: Callable[[], float]) -> None:
        # Nothing here can wait, so nothing needs a timeout.
        BaseCache.__init__(self, serializer=NullSerializer(), timeout=0)
        self._max_bytes = max_bytes
        self._monotonic = monotonic
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self.size_bytes = 0

    def forget(self, pattern: str) -> int:
        """Drop every entry whose key matches a shell-style pattern, and say how many."""
        found = [key for key in self._entries if fnmatchcase(key, pattern)]
        for key in found:
            self._drop(key)
        return len(found)

    # What aiocache's own methods come down to; `_conn`, `encoding` and `_cas_token` are for servers.

    async def _get(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        found = self._entries.get(key)
        if found is None:
            return None
        value, expires_monotonic = found
        if expires_monotonic <= self._monotonic():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def _set(self, key: str, value: bytes, ttl: float, _cas_token: object = None, _conn: object = None) -> bool:
        self._drop(key)
        if _size(value) > self._max_bytes:
            return False
        self._entries[key] = value, self._monotonic() + ttl
        self.size_bytes += _size(value)
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    async def _delete(self, key: str, _conn: object = None) -> int:
        return int(self._drop(key))

    async def _exists(self, key: str, _conn: object = None) -> bool:
        return await self._get(key) is not None

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        self.forget("*" if namespace is None else f"{namespace}*")
        return True

    def _drop(self, key: str) -> bool:
        found = self._entries.pop(key, None)
        if found is not None:
            self.size_bytes -= _size(found[0])
        return found is not None


def _size(value: bytes) -> int:
    return len(value) + _OVERHEAD_BYTES
