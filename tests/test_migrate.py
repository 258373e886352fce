"""Migrations: applied once, in order, by any number of processes, and never quietly different from their files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.db import Postgres
from llmproxy.errors import ConfigError, StorageError
from llmproxy.migrate import Applied, Component, Migration, core_component, migrate, pending, unapplied
from llmproxy.testing.database import make_postgres
from tests.processes import spawn

MIGRATE = """
import asyncio, sys
from pathlib import Path
from llmproxy.migrate import Component, migrate
print(len(asyncio.run(migrate(sys.argv[1], [Component("core", Path(sys.argv[2]))]))))
"""


def component(directory: Path, *texts: str, name: str = "core") -> Component:
    """A component with one file for each text."""
    directory.mkdir(exist_ok=True)
    for number, text in enumerate(texts, start=1):
        (directory / f"{number:04}_step.sql").write_text(text)
    return Component(name, directory)


async def fetch_value(url: str, query: str) -> object:
    """The single value of a query on a connection of its own."""
    postgres = make_postgres(url)
    await postgres.open()
    row = await postgres.fetch_row(query)
    await postgres.close()
    assert row is not None
    return next(iter(row.values()))


async def test_core_applies_to_an_empty_database_once(empty_database_url: str) -> None:
    """The first run applies core's files, `pending` says so beforehand, the second run applies nothing."""
    components = [core_component()]
    files = sorted(path.name for path in core_component().directory.glob("*.sql"))
    assert [migration.name for migration in await pending(empty_database_url, components)] == files
    assert [migration.name for migration in await migrate(empty_database_url, components)] == files
    assert await pending(empty_database_url, components) == []
    assert await migrate(empty_database_url, components) == []


async def test_components_apply_in_order(empty_database_url: str, tmp_path: Path) -> None:
    """A plugin's files come after core's and may use its tables; each is recorded under its own component."""
    core = component(tmp_path / "core", "CREATE TABLE a (x int)", "ALTER TABLE a ADD y int")
    plugin = component(tmp_path / "plugin", "CREATE VIEW b AS SELECT y FROM a", name="plugin")
    applied = await migrate(empty_database_url, [core, plugin])
    assert [(one.component, one.version) for one in applied] == [("core", 1), ("core", 2), ("plugin", 1)]
    assert await migrate(empty_database_url, [core]) == []


def test_eight_processes_at_once(empty_database_url: str) -> None:
    """Eight processes that migrate an empty database at the same moment all succeed; one of them did the work."""
    directory = core_component().directory
    processes = [spawn(MIGRATE, empty_database_url, str(directory)) for _ in range(8)]
    results = [(process.communicate(), process.returncode) for process in processes]
    assert [code for _, code in results] == [0] * 8, results
    assert sorted(output.strip() for (output, _), _ in results) == ["0"] * 7 + [str(len(list(directory.glob("*.sql"))))]


async def test_concurrent_index_outside_a_transaction(empty_database_url: str, tmp_path: Path) -> None:
    """A file that says so runs outside a transaction, statement by statement, while others wait for the lock."""
    texts = (
        "CREATE TABLE a (x int, y int)",
        "-- transaction: false\nCREATE INDEX CONCURRENTLY a_x ON a (x);\nCREATE INDEX CONCURRENTLY\n  a_y ON a (y);\n",
    )
    one = component(tmp_path / "core", *texts)
    counts = await asyncio.gather(*(migrate(empty_database_url, [one]) for _ in range(4)))
    assert sorted(len(applied) for applied in counts) == [0, 0, 0, 2]
    assert await fetch_value(empty_database_url, "SELECT count(*) FROM pg_indexes WHERE tablename = 'a'") == 2


async def test_a_killed_run_is_resumed(empty_database_url: str, tmp_path: Path) -> None:
    """After kill -9 in the middle of a migration the next run finishes the work, without a trace of the first."""
    first, second = "CREATE TABLE a (x int)", "INSERT INTO a VALUES (1); SELECT pg_sleep(120)"
    component(tmp_path / "core", first, second)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)%' AND pid <> pg_backend_pid()"
    watcher = make_postgres(empty_database_url)
    await watcher.open()
    with spawn(MIGRATE, empty_database_url, str(tmp_path / "core")) as process:
        await until(watcher, running, 1)
        process.kill()
    await watcher.close()
    core = component(tmp_path / "core", first, "INSERT INTO a VALUES (2)")
    assert [migration.version for migration in await migrate(empty_database_url, [core])] == [2]
    assert await fetch_value(empty_database_url, "SELECT string_agg(x::text, ',') FROM a") == "2"


async def until(database: Postgres, query: str, expected: object) -> None:
    """Wait until a query's single value is the expected one."""
    async with asyncio.timeout(20):
        while True:
            row = await database.fetch_row(query)
            if row is not None and next(iter(row.values())) == expected:
                return
            await asyncio.sleep(0.02)


async def test_a_failing_migration_leaves_nothing(empty_database_url: str, tmp_path: Path) -> None:
    """A migration that Postgres refuses is named, is not applied by half, and keeps those before it."""
    core = component(tmp_path / "core", "CREATE TABLE a (x int)", "CREATE TABLE b (x int); SELECT nonsense")
    with pytest.raises(StorageError, match=r"core/0002_step\.sql failed: .*nonsense"):
        await migrate(empty_database_url, [core])
    assert await fetch_value(empty_database_url, "SELECT to_regclass('b')") is None
    assert [migration.version for migration in await pending(empty_database_url, [core])] == [2]


async def test_an_edited_file_is_refused(empty_database_url: str, tmp_path: Path) -> None:
    """A file that changed after it was applied is named; another line end is no change."""
    core = component(tmp_path / "core", "SELECT 1;\nSELECT 2;\n")
    await migrate(empty_database_url, [core])
    (core.directory / "0001_step.sql").write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")
    assert await pending(empty_database_url, [core]) == []
    component(core.directory, "SELECT 1;\nSELECT 3;\n")
    with pytest.raises(ConfigError, match=r"core/0001_step\.sql was changed after it was applied"):
        await migrate(empty_database_url, [core])


async def test_a_newer_database_is_refused(empty_database_url: str, tmp_path: Path) -> None:
    """A database with a migration that the files lack is left alone, with a sentence that says what to do."""
    core = component(tmp_path / "core", "SELECT 1", "SELECT 2")
    await migrate(empty_database_url, [core])
    (core.directory / "0002_step.sql").unlink()
    with pytest.raises(ConfigError, match=r"core/0002_step\.sql, which this release does not know"):
        await migrate(empty_database_url, [core])


@pytest.mark.parametrize(
    ("names", "mistake"),
    [
        (["0001_a.sql", "0003_c.sql"], "core/0003_c.sql: number 0002 was expected"),
        (["0001_a.sql", "0001_b.sql"], "core/0001_b.sql: number 0002 was expected"),
        (["0002_a.sql"], "core/0002_a.sql: number 0001 was expected"),
        (["1_a.sql"], "core/1_a.sql: its name has to be like"),
        ([], "There are no migrations"),
    ],
)
async def test_wrong_numbers_are_refused(tmp_path: Path, names: Sequence[str], mistake: str) -> None:
    """Gaps, duplicates and odd names are refused before any connection is made."""
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(ConfigError, match=mistake):
        await migrate("postgresql://localhost:1/none", [Component("core", tmp_path)])


@given(total=st.integers(1, 9), done=st.integers(0, 9))
def test_unapplied_is_the_rest(total: int, done: int) -> None:
    """Whatever was applied, what is missing is the rest in order; more than there is, is refused."""
    files = [Migration("core", n, f"{n:04}_x.sql", f"SELECT {n}") for n in range(1, max(total, done) + 1)]
    records = [Applied(one.component, one.version, one.name, one.checksum) for one in files[:done]]
    if done > total:
        with pytest.raises(ConfigError):
            unapplied(files[:total], records)
    else:
        assert unapplied(files[:total], records) == files[done:total]


async def test_an_unreachable_server_is_named() -> None:
    """No server is a StorageError that names the host and never the password."""
    with pytest.raises(StorageError, match=r"localhost:1 \(.+\);") as raised:
        await migrate("postgresql://me:hunter2@localhost:1/none", [core_component()])
    assert "hunter2" not in str(raised.value)
