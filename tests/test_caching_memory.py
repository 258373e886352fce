"""The in-process backend: bounded in bytes, whatever is put into it, and true to its times."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.testing import Clock
from llmproxy_plugins.caching.memory import LRUCache

MAX_BYTES = 20_000


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8_000)), max_size=80))
def test_the_bound_holds_and_the_newest_is_there(puts: list[tuple[int, int]]) -> None:
    """After every put the values take no more than `max_bytes`, and the last one that fits can be had."""

    async def fill() -> None:
        cache = LRUCache(MAX_BYTES, Clock().monotonic)
        for key, size_bytes in puts:
            await cache.set(str(key), b"x" * size_bytes, ttl=60.0)
            assert cache.size_bytes <= MAX_BYTES
            assert await cache.get(str(key)) == b"x" * size_bytes
        kept = [await cache.get(str(key)) for key in range(31)]
        assert sum(len(value) for value in kept if value is not None) <= cache.size_bytes <= MAX_BYTES

    asyncio.run(fill())


async def test_what_is_asked_for_stays() -> None:
    """The least recently used entry goes first."""
    cache = LRUCache(MAX_BYTES, Clock().monotonic)
    for key in "abc":
        await cache.set(key, b"x" * 6_000, ttl=60.0)
    await cache.get("a")
    await cache.set("d", b"x" * 6_000, ttl=60.0)
    assert [key for key in "abcd" if await cache.exists(key)] == ["a", "c", "d"]


async def test_an_entry_lives_for_its_own_time() -> None:
    """Setting a key again gives it a new life; one that is too large leaves nothing, not even the old value."""
    clock = Clock()
    cache = LRUCache(MAX_BYTES, clock.monotonic)
    await cache.set("a", b"1", ttl=10.0)
    await cache.set("b", b"1", ttl=30.0)
    await clock.advance(9)
    await cache.set("a", b"2", ttl=10.0)
    await clock.advance(9)
    assert (await cache.get("a"), await cache.get("b")) == (b"2", b"1")
    await clock.advance(1)
    assert await cache.get("a") is None
    await cache.set("b", b"x" * MAX_BYTES, ttl=10.0)
    assert (await cache.get("b"), cache.size_bytes) == (None, 0)


async def test_entries_are_dropped_by_pattern() -> None:
    """`forget` takes shell-style patterns, as Redis does."""
    cache = LRUCache(MAX_BYTES, Clock().monotonic)
    for key in ("a:1:x", "a:2:x", "b:1:x"):
        await cache.set(key, b"1", ttl=10.0)
    cache.forget("a:*:*")
    assert [key for key in ("a:1:x", "a:2:x", "b:1:x") if await cache.get(key)] == ["b:1:x"]
