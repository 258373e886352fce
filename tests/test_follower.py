"""What all workers share is taken over whenever it changes, in the right order, and in spite of a lost database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from llmproxy.api import Database, Follower, StorageError
from llmproxy.db import Postgres
from llmproxy.services import Clock as AnyClock
from llmproxy.services import SystemClock
from llmproxy.testing import make_services, wait_until
from llmproxy.testing.clock import Clock

CHANNEL = "changes"


class Shared:
    """A number in Postgres, and what one worker knows of it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.known: list[int] = []
        self.asked = 0
        self.before_it_is_taken_over: Callable[[], asyncio.Future[None]] | None = None

    async def read(self) -> None:
        """Take it over."""
        self.asked += 1
        row = await self.database.fetch_row("SELECT number FROM shared")
        if self.before_it_is_taken_over is not None:
            await self.before_it_is_taken_over()
        self.known.append(row["number"] if row else 0)

    async def change(self, number: int) -> None:
        """Another worker changes it, and says so."""
        await self.database.execute("UPDATE shared SET number = $1", number)
        await self.database.execute(f"NOTIFY {CHANNEL}")


@pytest.fixture
async def shared(database: Postgres) -> Shared:
    """It is 1."""
    await database.execute("CREATE TABLE shared AS SELECT 1 AS number")
    return Shared(database)


def make_follower(shared: Shared, read: Callable[[], Awaitable[None]], clock: AnyClock) -> Follower:
    """A worker's."""
    return Follower(make_services(database=shared.database, clock=clock), CHANNEL, read, failure="not_read")


async def test_what_changes_is_read_until_nobody_wants_it(shared: Shared) -> None:
    """At the start, and whenever somebody says so; not after the stop."""
    follower = make_follower(shared, shared.read, SystemClock())
    await follower.start()
    assert shared.known[0] == 1
    await shared.change(2)
    await wait_until(lambda: shared.known[-1] == 2)
    await shared.change(3)
    await wait_until(lambda: shared.known[-1] == 3)
    follower.stop()
    other = Shared(shared.database)
    witness = make_follower(other, other.read, SystemClock())
    await witness.start()
    await shared.change(4)
    await wait_until(lambda: other.known[-1] == 4)
    witness.stop()
    assert shared.known[-1] == 3


async def test_what_was_read_before_does_not_replace_what_was_read_later(shared: Shared) -> None:
    """However long it takes to take over what was read."""
    follower = make_follower(shared, shared.read, SystemClock())
    slow: list[asyncio.Future[None]] = []

    def hold() -> asyncio.Future[None]:
        slow.append(asyncio.get_running_loop().create_future())
        if len(slow) > 1:
            slow[-1].set_result(None)
        return slow[-1]

    shared.before_it_is_taken_over = hold
    earlier = asyncio.get_running_loop().create_task(follower.read())
    await wait_until(lambda: len(slow) == 1)
    await shared.change(2)
    later = asyncio.get_running_loop().create_task(follower.read())
    # Time enough to ask, had it not to wait.
    await asyncio.sleep(0)
    assert shared.asked == 1
    slow[0].set_result(None)
    await asyncio.gather(earlier, later)
    assert shared.known == [1, 2]


class Failing:
    """Reads in vain as often as it is told to."""

    def __init__(self, shared: Shared, error: Exception) -> None:
        self.failures = 0
        self._shared = shared
        self._error = error

    async def read(self) -> None:
        """Read, or fail."""
        if self.failures:
            self.failures -= 1
            raise self._error
        await self._shared.read()


UNREACHABLE = StorageError("The database cannot be reached; try again.")


@pytest.mark.parametrize("error", [UNREACHABLE, LookupError("number")])
async def test_what_could_not_be_read_is_read_later(shared: Shared, error: Exception) -> None:
    """Also when nobody says again that it has changed, for the word is spent."""
    clock, reader = Clock(), Failing(shared, error)
    follower = make_follower(shared, reader.read, clock)
    await follower.start()
    assert shared.known[0] == 1
    reader.failures = 1
    await shared.change(2)
    await wait_until(lambda: reader.failures == 0)
    await clock.advance(2)
    await wait_until(lambda: shared.known[-1] == 2)
    follower.stop()


async def test_it_begins_without_a_database(shared: Shared) -> None:
    """What cannot be read at the start is read later; who has it read at once is told."""
    clock, reader = Clock(), Failing(shared, UNREACHABLE)
    follower = make_follower(shared, reader.read, clock)
    reader.failures = 3
    with pytest.raises(StorageError):
        await follower.read()
    await follower.start()
    await wait_until(lambda: reader.failures == 0)
    assert shared.known == []
    await clock.advance(2)
    await wait_until(lambda: shared.known[-1:] == [1])
    follower.stop()
