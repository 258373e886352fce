"""What Postgres holds for all workers, read anew whenever one of them says on a channel that it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from llmproxy.errors import StorageError
from llmproxy.services import Services

RETRY_SECONDS: Final = 2.0


class Follower:
    """Has it read at the start and after each change; what could not be read is read later.

    Args:
        read: Takes over everything there is. May raise StorageError. It is never called again before it returns, so
            that what was read before does not replace what was read later.
        failure: The event that is logged when it cannot be read.
        retry_seconds: How long after that it is read again.
    """

    def __init__(
        self,
        services: Services,
        channel: str,
        read: Callable[[], Awaitable[None]],
        *,
        failure: str,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._services = services
        self._channel = channel
        self._read = read
        self._failure = failure
        self._retry_seconds = retry_seconds
        self._reading = asyncio.Lock()
        self._is_stale = asyncio.Event()
        self._stop_listening: Callable[[], None] = lambda: None
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read, and follow what changes. Without a database that begins when there is one."""
        self.follow()
        with suppress(StorageError):
            await self.read()

    def follow(self) -> None:
        """The same without waiting: it is read once changes are heard of."""
        database = self._services.database
        self._stop_listening = database.listen(self._channel, lambda _: self.read_soon(), self.read_soon)
        self._following = self._services.tasks.start(f"following {self._channel}", self._follow())

    def stop(self) -> None:
        """Follow no more."""
        self._stop_listening()
        if self._following is not None:
            self._following.cancel()

    def read_soon(self) -> None:
        """Have it read without waiting for that."""
        self._is_stale.set()

    async def read(self) -> None:
        """Read now. Raises StorageError."""
        async with self._reading:
            try:
                await self._read()
            except Exception:
                self.read_soon()
                raise

    async def _follow(self) -> None:
        while True:
            await self._is_stale.wait()
            self._is_stale.clear()
            try:
                await self.read()
            except Exception as error:  # noqa: BLE001 - whatever one read runs into, the next change must be read
                reason = error.message if isinstance(error, StorageError) else repr(error)
                self._services.log.warning(self._failure, error=reason)
                await self._services.clock.sleep(self._retry_seconds)
