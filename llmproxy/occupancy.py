"""Who is inside: so that what they use is not closed under them."""

from __future__ import annotations

import asyncio


class Occupancy:
    """Counts those inside its `with`, and tells when nobody is."""

    def __init__(self) -> None:
        self._count = 0
        self._left = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether nobody is inside."""
        return not self._count

    def enter(self) -> None:
        """One more, who will `leave` from somewhere else."""
        self._count += 1

    def leave(self) -> None:
        """One less."""
        self._count -= 1
        if not self._count:
            self._left.set()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_error: object) -> None:
        self.leave()

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        # Whoever enters before the waiter runs again is inside all the same.
        while self._count:
            self._left.clear()
            await self._left.wait()
