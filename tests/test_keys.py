"""Virtual keys: where they are taken from, what is wrong with them, and how soon a change is in force."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from llmproxy.config import WorkspaceConfig
from llmproxy.db import Postgres
from llmproxy.errors import StorageError, Unauthenticated, Unavailable
from llmproxy.exchange import Principal
from llmproxy.key_snapshot import KeySnapshot
from llmproxy.keys import KeyRing, key_hash, new_key
from llmproxy.queries import Queries
from llmproxy.services import Row
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import Clock, wait_until

KEY = "sk-" + "k" * 43
INSERT = """
INSERT INTO virtual_keys (id, workspace, name, key_sha256, key_hint, models, expires_at)
VALUES ($1, $2, 'ci', $3, 'sk-k', $4, $5)
"""
LOG = structlog.wrap_logger(structlog.ReturnLogger())


def ring(clock: Clock | None = None) -> KeyRing:
    """A ring with one workspace of the configuration."""
    made = KeyRing(Queries(), clock or Clock(), LOG)
    made.configure({"acme": WorkspaceConfig(keys=(SecretStr(KEY),), models=("openai/*",), region="eu")})
    return made


@pytest.fixture
async def stored(database: Postgres) -> AsyncIterator[KeyRing]:
    """A ring that keeps up with Postgres."""
    made, tasks = ring(Clock(datetime(2026, 1, 1, tzinfo=UTC))), BackgroundTasks(LOG)
    await made.start(database, tasks)
    yield made
    await tasks.cancel_all()


def bearer(key: str) -> dict[str, str]:
    """The usual header."""
    return {"authorization": f"Bearer {key}"}


def test_a_new_key_holds_256_random_bits() -> None:
    """And no two are the same."""
    made = {new_key() for _ in range(1000)}
    assert len(made) == 1000
    assert all(key.startswith("sk-") and len(key) == 46 for key in made)


def test_what_is_stored_is_the_plain_sha256_in_hex() -> None:
    """So that keys of other gateways that store the same can be taken over without being reissued."""
    assert key_hash("sk-1") == hashlib.sha256(b"sk-1").hexdigest()


@pytest.mark.parametrize(
    "headers",
    [
        bearer(KEY),
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"x-goog-api-key": KEY},
        {"authorization": "Basic abc", "x-api-key": KEY},
    ],
)
def test_a_key_is_taken_from_wherever_sdks_put_it(headers: dict[str, str]) -> None:
    """Authorization, or the header of Anthropic's, Azure's or Google's SDK."""
    expected = Principal("acme", "config:acme:1", workspace_models=("openai/*",), region="eu")
    assert ring().authenticate(headers) == expected


@pytest.mark.parametrize("headers", [{}, bearer(""), {"authorization": KEY}, {"x-api-key": ""}])
def test_a_missing_key_is_said_to_be_missing(headers: dict[str, str]) -> None:
    """The error tells how to send one."""
    with pytest.raises(Unauthenticated, match="Authorization: Bearer") as caught:
        ring().authenticate(headers)
    assert caught.value.error_code == "missing_api_key"


@pytest.mark.parametrize("key", ["sk-wrong", KEY + "x", "\udcff\udcfe", "x" * 100_000])
def test_an_unknown_key_is_refused_and_not_repeated(key: str) -> None:
    """Whatever bytes it consists of."""
    with pytest.raises(Unauthenticated) as caught:
        ring().authenticate(bearer(key))
    assert caught.value.error_code == "invalid_api_key"
    assert key not in caught.value.message


async def test_a_stored_key_is_in_force_within_a_second(stored: KeyRing, database: Postgres) -> None:
    """Postgres notifies every worker; nothing is asked of it per request."""
    await database.execute(INSERT, "key_1", "acme", key_hash("sk-new"), ["gpt-*"], None)
    await wait_until(lambda: "key_1" in known(stored), seconds=1)
    principal = stored.authenticate(bearer("sk-new"))
    assert principal == Principal("acme", "key_1", "ci", ("gpt-*",), ("openai/*",), "eu")


async def test_a_revoked_key_is_out_of_force_within_a_second(stored: KeyRing, database: Postgres) -> None:
    """And is said to be revoked."""
    await database.execute(INSERT, "key_1", "acme", key_hash("sk-new"), ["*"], None)
    await wait_until(lambda: "key_1" in known(stored), seconds=1)
    await database.execute("UPDATE virtual_keys SET revoked_at = now()")
    await wait_until(lambda: known(stored)["key_1"], seconds=1)
    with pytest.raises(Unauthenticated) as caught:
        stored.authenticate(bearer("sk-new"))
    assert caught.value.error_code == "revoked_api_key"


async def test_a_key_expires_by_the_clock(database: Postgres) -> None:
    """To the moment, without anybody touching it."""
    clock, tasks = Clock(datetime(2026, 1, 1, tzinfo=UTC)), BackgroundTasks(LOG)
    expires_at = clock.now() + timedelta(seconds=10)
    await database.execute(INSERT, "key_1", "acme", key_hash("sk-new"), ["*"], expires_at)
    keys = ring(clock)
    await keys.start(database, tasks)
    assert keys.authenticate(bearer("sk-new")).key_id == "key_1"
    await clock.advance(10)
    with pytest.raises(Unauthenticated) as caught:
        keys.authenticate(bearer("sk-new"))
    assert caught.value.error_code == "expired_api_key"
    await tasks.cancel_all()


async def test_a_stored_workspace_wins_over_the_file(stored: KeyRing, database: Postgres) -> None:
    """What was set through the API is the later word, for keys of both kinds."""
    await database.execute("INSERT INTO workspaces (id, models, region) VALUES ('acme', '{local/*}', 'us')")
    await wait_until(lambda: stored.authenticate(bearer(KEY)).region == "us", seconds=1)
    assert stored.authenticate(bearer(KEY)).workspace_models == ("local/*",)


async def test_what_is_known_stays_in_force_without_a_database(stored: KeyRing, database: Postgres) -> None:
    """A lost database makes nobody unknown."""
    await database.execute(INSERT, "key_1", "acme", key_hash("sk-new"), ["*"], None)
    await wait_until(lambda: "key_1" in known(stored), seconds=1)
    await database.close()
    with pytest.raises(StorageError):
        await database.fetch("SELECT 1")
    assert stored.authenticate(bearer("sk-new")).key_id == "key_1"


async def test_a_key_whose_workspace_is_gone_opens_nothing(stored: KeyRing, database: Postgres) -> None:
    """Its limits went with the workspace, so the key must not outlive it."""
    await database.execute(INSERT, "key_1", "acme", key_hash("sk-new"), ["*"], None)
    await wait_until(lambda: "key_1" in known(stored), seconds=1)
    stored.configure({})
    with pytest.raises(Unauthenticated) as caught:
        stored.authenticate(bearer("sk-new"))
    assert caught.value.error_code == "unknown_workspace"


async def test_a_revocation_that_could_not_be_read_is_read_again(database: Postgres) -> None:
    """A notification that was heard is not lost because the tables could not be read just then."""
    clock, tasks, faulty = Clock(), BackgroundTasks(LOG), Faulty(database)
    keys = ring(clock)
    await database.execute(INSERT, "key_1", "acme", key_hash("sk-new"), ["*"], None)
    await keys.start(faulty, tasks)
    faulty.failures = 1
    await database.execute("UPDATE virtual_keys SET revoked_at = now()")
    await wait_until(lambda: faulty.failures == 0, seconds=2)
    await wait_until(lambda: clock.sleepers > 0, seconds=2)
    await clock.advance(1)
    await wait_until(lambda: known(keys)["key_1"], seconds=2)
    await tasks.cancel_all()


async def test_without_a_database_and_a_memory_of_it_nobody_is_let_in(database: Postgres) -> None:
    """A key of the file may be revoked where nobody can look, so the answer is to come back."""
    keys, tasks = ring(), BackgroundTasks(LOG)
    await database.close()
    await keys.start(database, tasks)
    with pytest.raises(Unavailable) as caught:
        keys.authenticate(bearer(KEY))
    assert caught.value.retry_after_seconds == 1
    await tasks.cancel_all()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"keys": []}', b"\xff"])
async def test_a_damaged_memory_counts_as_none(database: Postgres, tmp_path: Path, damage: bytes) -> None:
    """Whatever stands in the file."""
    (tmp_path / "keys.json").write_bytes(damage)
    keys, tasks = KeyRing(Queries(), Clock(), LOG, KeySnapshot(tmp_path / "keys.json")), BackgroundTasks(LOG)
    await database.close()
    await keys.start(database, tasks)
    with pytest.raises(Unavailable):
        keys.authenticate(bearer(KEY))
    await tasks.cancel_all()


class Faulty:
    """A database whose next readings fail."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self.failures = 0

    def __getattr__(self, name: str) -> Any:  # whatever Postgres has
        return getattr(self._database, name)

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """Rows, or a failure."""
        if self.failures:
            self.failures -= 1
            raise StorageError("The database did not answer in time; try again.")
        return await self._database.fetch(query, *args)


def known(keys: KeyRing) -> dict[str, bool]:
    """The stored keys, and whether each is revoked."""
    rows = [json.loads(document) for document in keys._tables.rows.keys.values()]
    return {row["id"]: row["revoked_at"] is not None for row in rows}
