"""Very many keys: a change is read alone, whatever else there is, and none is ever missed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.db import Postgres
from llmproxy.errors import Unauthenticated
from llmproxy.key_snapshot import Change, KeyRows, KeySnapshot
from llmproxy.key_tables import PAGE_ROWS
from llmproxy.keys import KeyRing, key_hash
from llmproxy.queries import Queries
from llmproxy.services import Row
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import Clock, wait_until
from llmproxy.testing.database import make_postgres
from tests.test_faults_storage import in_front_of

LOG = structlog.wrap_logger(structlog.ReturnLogger())
MANY = PAGE_ROWS + 500
WORKSPACES = "INSERT INTO workspaces (id) VALUES ('acme'), ('initech')"
FILL = """
INSERT INTO virtual_keys (id, workspace, key_sha256, key_hint)
SELECT 'key_' || n, 'acme', encode(sha256(convert_to('sk-' || n, 'UTF8')), 'hex'), 'sk'
FROM generate_series($1::integer, $2::integer) AS n
"""


@dataclass
class Counting:
    """A database that notes what was read, and reads while its gate is open."""

    database: Postgres
    readings: list[tuple[object, ...]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def __getattr__(self, name: str) -> Any:  # whatever Postgres has
        return getattr(self.database, name)

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """The rows."""
        self.readings.append(args)
        await self.gate.wait()
        return await self.database.fetch(query, *args)


@pytest.fixture
async def counting(database: Postgres) -> Counting:
    """A database with many keys."""
    await database.execute(WORKSPACES)
    await database.execute(FILL, 1, MANY)
    return Counting(database)


@pytest.fixture
async def ring(counting: Counting, tmp_path: Path) -> AsyncIterator[KeyRing]:
    """A ring that keeps up with it, and remembers in a file."""
    tasks = BackgroundTasks(LOG)
    ring = KeyRing(Queries(), Clock(datetime(2026, 1, 1, tzinfo=UTC)), LOG, KeySnapshot(tmp_path / "keys.json"))
    await ring.start(counting, tasks)
    yield ring
    await tasks.cancel_all()


def opens(ring: KeyRing, key: str) -> bool:
    """Whether a key opens anything now."""
    try:
        return bool(ring.authenticate({"authorization": f"Bearer {key}"}))
    except Unauthenticated:
        return False


def heard(ring: KeyRing) -> int:
    """How many keys are known to have changed and are still to be read."""
    return len(ring._tables._changed_keys)


def read(counting: Counting) -> list[object]:
    """The ids of the keys that were read by name."""
    return [each for args in counting.readings if args and isinstance(args[0], list) for each in args[0]]


async def test_every_key_is_known_and_was_read_once(ring: KeyRing, counting: Counting) -> None:
    """Page by page, from before a change could be missed; hearing of changes begins before the reading does."""
    assert all(opens(ring, f"sk-{number}") for number in range(1, MANY + 1))
    assert not opens(ring, f"sk-{MANY + 1}")
    # The workspaces, two pages of keys, and one that is empty.
    assert len(counting.readings) == 4


async def test_a_changed_key_is_read_alone(ring: KeyRing, counting: Counting) -> None:
    """One query, for one key."""
    counting.readings.clear()
    await counting.database.execute("UPDATE virtual_keys SET revoked_at = now() WHERE id = 'key_7'")
    await wait_until(lambda: not opens(ring, "sk-7"), seconds=2)
    assert counting.readings == [(["key_7"],)]
    assert opens(ring, "sk-8")


async def test_what_changes_during_a_reading_is_read_at_once(ring: KeyRing, counting: Counting) -> None:
    """A burst of notifications costs one query for the first of them and one for all the others."""
    counting.readings.clear()
    counting.gate.clear()
    for number in range(1, 51):
        await counting.database.execute("UPDATE virtual_keys SET revoked_at = now() WHERE id = $1", f"key_{number}")
    # All but those that are being read.
    await wait_until(lambda: heard(ring) + len(read(counting)) == 50, seconds=2)
    counting.gate.set()
    await wait_until(lambda: not any(opens(ring, f"sk-{number}") for number in range(1, 51)), seconds=2)
    assert len(counting.readings) == 2


async def test_when_most_keys_change_all_are_read(ring: KeyRing, counting: Counting) -> None:
    """In pages, so that no request waits for a reading of all of them."""
    await counting.database.execute("UPDATE virtual_keys SET revoked_at = now()")
    await wait_until(lambda: not any(opens(ring, f"sk-{number}") for number in range(1, MANY + 1)), seconds=5)
    assert all(len(args[0]) <= PAGE_ROWS for args in counting.readings if args and isinstance(args[0], list))


async def test_a_deleted_key_is_unknown(ring: KeyRing, counting: Counting) -> None:
    """Also when another takes over its hash."""
    await counting.database.execute("DELETE FROM virtual_keys WHERE id IN ('key_1', 'key_2')")
    await counting.database.execute("UPDATE virtual_keys SET key_sha256 = $1 WHERE id = 'key_3'", key_hash("sk-2"))
    await wait_until(lambda: not opens(ring, "sk-1") and not opens(ring, "sk-3"), seconds=2)
    assert ring.authenticate({"x-api-key": "sk-2"}).key_id == "key_3"


async def test_a_workspace_changes_for_all_its_keys(ring: KeyRing, counting: Counting) -> None:
    """Without any of them being read again."""
    assert ring.authenticate({"x-api-key": "sk-1"}).region is None
    counting.readings.clear()
    await counting.database.execute("UPDATE workspaces SET region = 'eu' WHERE id = 'acme'")
    await wait_until(lambda: ring.authenticate({"x-api-key": "sk-1"}).region == "eu", seconds=2)
    assert counting.readings == [(["acme"],)]


async def test_what_was_missed_is_made_good(database_url: str, database: Postgres) -> None:
    """A key that is revoked while no notification can come is revoked once the connection is back."""
    await database.execute(WORKSPACES)
    await database.execute(FILL, 1, 10)
    tasks = BackgroundTasks(LOG)
    async with in_front_of(database_url) as (relay, url):
        remote = make_postgres(url)
        await remote.open()
        ring = KeyRing(Queries(), Clock(), LOG)
        await ring.start(remote, tasks)
        assert opens(ring, "sk-1")
        relay.refuse()
        relay.cut()
        await database.execute("UPDATE virtual_keys SET revoked_at = now() WHERE id = 'key_1'")
        await database.execute("DELETE FROM virtual_keys WHERE id = 'key_2'")
        assert opens(ring, "sk-1")
        await relay.accept()
        await wait_until(lambda: not opens(ring, "sk-1") and not opens(ring, "sk-2"), seconds=10)
        assert opens(ring, "sk-3")
        await tasks.cancel_all()
        await remote.close()


# What is remembered

IDS = st.sampled_from(["a", "b", "c", "d"])
CHANGES = st.builds(
    lambda ids, kept, owner: Change(
        workspace_ids=[owner],
        workspaces=[{"id": owner, "models": ["*"], "region": None, "bodies": None}] if kept else [],
        key_ids=sorted(ids),
        keys=[
            {"id": each, "key_sha256": f"sha-{each}", "document": f"{each} of {owner}"} for each in sorted(ids & kept)
        ],
    ),
    st.frozensets(IDS),
    st.frozensets(IDS),
    IDS,
)


@given(before=CHANGES, changes=st.lists(CHANGES, max_size=6))
def test_what_is_remembered_is_what_was_read(before: Change, changes: list[Change]) -> None:
    """After any changes the file holds what the memory does: no key comes back that was taken away."""
    with tempfile.TemporaryDirectory() as directory:
        snapshot, rows = KeySnapshot(Path(directory) / "keys.json"), KeyRows()
        rows.take(before)
        snapshot.save(rows)
        for change in changes:
            rows.take(change)
            snapshot.add(change, rows)
        assert KeySnapshot(Path(directory) / "keys.json").load() == rows


def test_a_file_of_changes_alone_is_never_written(tmp_path: Path) -> None:
    """When a change cannot be added, the next one brings everything with it."""
    snapshot, rows = KeySnapshot(tmp_path / "keys.json"), KeyRows()
    first = Change(key_ids=["a"], keys=[{"id": "a", "key_sha256": "sha-a", "document": "{}"}])
    rows.take(first)
    snapshot.save(rows)
    (tmp_path / "keys.json").unlink()
    with pytest.raises(FileNotFoundError):
        snapshot.add(first, rows)
    snapshot.add(Change(key_ids=["b"]), rows)
    assert snapshot.load() == rows


def test_a_file_does_not_grow_without_end(tmp_path: Path) -> None:
    """Changes to few keys are written as one whole again and again."""
    snapshot, rows = KeySnapshot(tmp_path / "keys.json"), KeyRows()
    change = Change(key_ids=["a"], keys=[{"id": "a", "key_sha256": "sha-a", "document": "{}"}])
    for _ in range(3_000):
        rows.take(change)
        snapshot.add(change, rows)
    assert len((tmp_path / "keys.json").read_bytes().splitlines()) <= 1_002
    assert snapshot.load() == rows
