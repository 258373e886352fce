"""The pool: transactions, one kind of error, notifications, and a server that goes away and comes back."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config import DatabaseConfig
from llmproxy.db import REJECTED, Postgres, location
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.errors import ConfigError, StorageError
from llmproxy.queries import Queries
from llmproxy.services import Database, SystemClock
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import wait_until
from llmproxy.testing.database import make_postgres


async def reconnected(postgres: Postgres) -> None:
    """Wait until calls work again."""
    async with asyncio.timeout(20):
        while True:
            try:
                await postgres.execute("SELECT 1")
            except StorageError:
                await asyncio.sleep(0.01)
            else:
                return


async def test_calls_and_types(database: Postgres) -> None:
    """Each call is a transaction of its own; json comes and goes as documents, numeric as Decimal, rows as dicts."""
    facade: Database = database
    await facade.execute("CREATE TABLE t (n int, body jsonb, cost numeric)")
    await facade.execute_many(
        "INSERT INTO t VALUES ($1, $2, $3)", [(1, {"a": [1, "ü"]}, Decimal("0.000001")), (2, None, None)]
    )
    assert await facade.fetch("SELECT * FROM t ORDER BY n") == [
        {"n": 1, "body": {"a": [1, "ü"]}, "cost": Decimal("0.000001")},
        {"n": 2, "body": None, "cost": None},
    ]
    assert await facade.fetch_row("SELECT n FROM t WHERE n = $1", 3) is None


async def test_a_transaction_is_all_or_nothing(database: Postgres) -> None:
    """What raises inside a transaction undoes it and passes unchanged, whatever it is."""
    await database.execute("CREATE TABLE t (n int)")

    async def write_and_fail() -> None:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        await write_and_fail()
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO t VALUES (2)")
    assert await database.fetch("SELECT n FROM t") == [{"n": 2}]


async def test_a_transaction_that_is_cancelled_leaves_nothing_behind(database: Postgres) -> None:
    """At whatever step: the event loop hears of no error, the pool works on, and only what was committed stays."""
    await database.execute("CREATE TABLE t (n int)")
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context["message"]))

    async def write() -> None:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")

    begun = written = 0
    while written < 5:
        task = loop.create_task(write())
        for _ in range(begun * 3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        begun += 1
        written += not task.cancelled()
    assert complaints == []
    # A commit may be through before its cancellation, so there may be more rows than were told of.
    assert written <= len(await database.fetch("SELECT n FROM t")) < begun


async def test_a_batch_is_all_or_nothing(database: Postgres) -> None:
    """One bad row of execute_many leaves none."""
    await database.execute("CREATE TABLE t (n int PRIMARY KEY)")
    with pytest.raises(StorageError) as raised:
        await database.execute_many("INSERT INTO t VALUES ($1)", [(1,), (2,), (1,)])
    assert raised.value.error_code == REJECTED
    assert await database.fetch("SELECT n FROM t") == []


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT $1::text", "nul \0"),
        ("SELECT $1::text", "surrogate \ud800"),
        ("SELECT $1::jsonb", {"a": "\ud800"}),
        ("SELECT $1::jsonb", {"a": "\0"}),
        ("SELECT $1::int", 2**40),
        ("SELECT $1::bigint", 2**70),
        ("SELECT $1::uuid", "no uuid"),
        ("INSERT INTO workspaces (id, bodies) VALUES ('a', $1)", "some"),
        ("INSERT INTO workspaces (id) VALUES ($1)", None),
    ],
)
async def test_content_that_is_refused_says_so(database: Postgres, query: str, value: object) -> None:
    """What a row's own content causes has a code of its own: sending it again cannot help."""
    with pytest.raises(StorageError) as raised:
        await database.execute(query, value)
    assert raised.value.error_code == REJECTED


@pytest.mark.parametrize(
    ("query", "values", "told"),
    [
        ("SELECT * FROM nowhere", (), 'could not do what it was asked: relation "nowhere" does not exist.'),
        ("INSERT INTO workspaces (id) VALUES ('sk-1'), ('sk-1')", (), "violates unique constraint"),
        ("SELECT $1::uuid", ("sk-1",), "refuses what it was given: invalid input for query argument $1."),
        ("SELECT ('sk-' || $1::int)::uuid", (1,), "refuses what it was given: invalid input syntax for type uuid."),
    ],
)
async def test_the_operator_is_told_the_reason(
    database: Postgres, query: str, values: tuple[object, ...], told: str
) -> None:
    """Why the database refused is said for the operator alone, and without the values that it was given."""
    with pytest.raises(StorageError) as raised:
        await database.execute(query, *values)
    assert told in raised.value.for_operator
    assert "sk-1" not in raised.value.for_operator
    assert raised.value.message.endswith("; the log says why.")


@pytest.mark.parametrize("query", ["SELECT * FROM nowhere", "SELEC", "SELECT pg_terminate_backend(pg_backend_pid())"])
async def test_other_errors_are_worth_another_try(database: Postgres, query: str) -> None:
    """A missing table or a lost connection is not the row's fault, and the pool goes on."""
    with pytest.raises(StorageError) as raised:
        await database.execute(query)
    assert raised.value.error_code == "storage_unavailable"
    assert raised.value.__cause__ is not None
    assert await database.fetch_row("SELECT 1 AS one") == {"one": 1}


async def test_a_slow_statement_is_ended(database_url: str) -> None:
    """A statement over its time is ended by the server."""
    log = structlog.get_logger()
    config = DatabaseConfig(statement_seconds=0.1)
    postgres = Postgres(database_url, config, SystemClock(), log, BackgroundTasks(log))
    await postgres.open()
    with pytest.raises(StorageError, match="did not answer in time"):
        await postgres.execute("SELECT pg_sleep(60)")
    await postgres.close()


async def test_the_pool_is_bounded(database_url: str) -> None:
    """However many calls at once, there are never more connections than the pool's size."""
    postgres = make_postgres(database_url, pool_size=3)
    await postgres.open()
    query = "SELECT pg_backend_pid() AS pid, pg_sleep(0.01)"
    rows = await asyncio.gather(*(postgres.fetch_row(query) for _ in range(20)))
    await postgres.close()
    assert 1 <= len({row["pid"] for row in rows if row is not None}) <= 3


async def test_a_server_missing_at_start_is_named() -> None:
    """The error names the server and what to do, and never the password."""
    postgres = make_postgres("postgresql://me:hunter2@localhost:1/none")
    with pytest.raises(StorageError, match=r"localhost:1 .*check that it runs") as raised:
        await postgres.open()
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__}"


@given(host=st.from_regex(r"[a-z]{0,9}|\[[0-9a-f:]{2,9}\]", fullmatch=True), port=st.text(max_size=6))
def test_a_location_never_shows_the_password(host: str, port: str) -> None:
    """Whatever host and port look like, what is said about a URL holds neither user nor password."""
    said = location(f"postgresql://USER:HUNTER@{host}:{port}/name")
    assert said
    assert "USER" not in said.upper()
    assert "HUNTER" not in said.upper()


async def test_before_open_it_says_so() -> None:
    """A pool that was never opened is a StorageError, not a crash."""
    with pytest.raises(StorageError, match="not open"):
        await make_postgres("postgresql://localhost/none").fetch("SELECT 1")


async def test_notifications_reach_their_channel(database: Postgres) -> None:
    """Listening reports one gap at its start, then the payloads of its own channel only."""
    heard: list[str] = []
    gaps: list[str] = []
    database.listen("llmproxy_keys", lambda payload: heard.append(f"key {payload}"), lambda: gaps.append("keys"))
    await wait_until(lambda: gaps == ["keys"])
    database.listen("llmproxy_workspaces", heard.append, lambda: gaps.append("workspaces"))
    await wait_until(lambda: gaps == ["keys", "workspaces"])
    await database.execute("INSERT INTO workspaces (id) VALUES ('acme')")
    await database.execute("UPDATE workspaces SET region = 'eu'")
    key = "INSERT INTO virtual_keys (id, workspace, key_sha256, key_hint) VALUES ('k1', 'acme', repeat('a', 64), 'sk')"
    await database.execute(key)
    await database.execute("DELETE FROM virtual_keys")
    await wait_until(lambda: len(heard) == 4)
    assert heard == ["acme", "acme", "key k1", "key k1"]


async def test_a_listener_that_fails_leaves_the_others(database: Postgres) -> None:
    """One mistaken on_gap does not make the other channels deaf."""
    heard: list[str] = []
    database.listen("one", heard.append, lambda: heard.remove("absent"))
    database.listen("two", heard.append, lambda: heard.append("gap"))
    await wait_until(lambda: heard == ["gap"])
    await database.execute("NOTIFY two, 'still here'")
    await wait_until(lambda: heard == ["gap", "still here"])


async def test_who_stops_listening_hears_no_more(database: Postgres) -> None:
    """Others on the same channel do: a plugin that a reload has replaced must not be called for ever."""
    heard: list[str] = []
    stop = database.listen("news", lambda payload: heard.append(f"old {payload}"), lambda: heard.append("old gap"))
    database.listen("news", lambda payload: heard.append(f"new {payload}"), lambda: heard.append("new gap"))
    await wait_until(lambda: len(heard) == 2)
    stop()
    stop()
    async with asyncio.timeout(10):
        while heard != ["new end"]:
            heard.clear()
            await database.execute("NOTIFY news, 'end'")
            await wait_until(lambda: "new end" in heard)
    await database.execute("NOTIFY news, 'again'")
    await wait_until(lambda: "new again" in heard)
    assert heard == ["new end", "new again"]


async def test_a_lost_server_comes_back(embedded: EmbeddedPostgres) -> None:
    """While the server is gone calls fail at once; afterwards they work again and listeners hear of the gap."""
    postgres = make_postgres(embedded.start())
    await postgres.open()
    heard: list[str] = []
    gaps: list[None] = []
    postgres.listen("news", heard.append, lambda: gaps.append(None))
    await wait_until(lambda: len(gaps) == 1)
    await asyncio.to_thread(embedded.stop)
    async with asyncio.timeout(2):
        with pytest.raises(StorageError, match="cannot be reached"):
            await postgres.execute("SELECT 1")
    await asyncio.to_thread(embedded.start)
    await reconnected(postgres)
    await wait_until(lambda: len(gaps) == 2)
    await postgres.execute("NOTIFY news, 'again'")
    await wait_until(lambda: heard == ["again"])
    await postgres.close()


async def test_a_transaction_whose_server_is_lost_is_a_storage_error(embedded: EmbeddedPostgres) -> None:
    """A server that goes away inside a transaction is one StorageError, and nothing was written."""
    postgres = make_postgres(embedded.start())
    await postgres.open()
    await postgres.execute("CREATE TABLE t (n int)")

    async def write_and_lose() -> None:
        async with postgres.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            await asyncio.to_thread(embedded.stop)

    with pytest.raises(StorageError):
        await write_and_lose()
    await asyncio.to_thread(embedded.start)
    await reconnected(postgres)
    assert await postgres.fetch("SELECT n FROM t") == []
    await postgres.close()


def test_queries_are_found_by_name(tmp_path: Path) -> None:
    """Queries of all files of a directory are items and attributes."""
    (tmp_path / "a.sql").write_text(
        "-- What these are for.\n\n-- name: one\nSELECT 1;\n\n-- name: two\nSELECT\n    2;\n"
    )
    (tmp_path / "b.sql").write_text("-- name: three\nSELECT 3;\n")
    queries = Queries(tmp_path)
    assert dict(queries) == {"one": "SELECT 1;", "two": "SELECT\n    2;", "three": "SELECT 3;"}
    assert queries.two == queries["two"]
    with pytest.raises(AttributeError, match="no query is called four"):
        _ = queries.four
    with pytest.raises(KeyError):
        _ = queries["four"]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;", "one stands twice"),
        ("-- name: one\n-- name: two\nSELECT 2;", "one is empty"),
        ("SELECT 1;", r"has no `-- name:` line"),
        ("-- nothing here", "There are no queries"),
    ],
)
def test_mistakes_in_queries_are_refused(tmp_path: Path, text: str, mistake: str) -> None:
    """A name that stands twice, a query without name or text, and an empty directory are errors at construction."""
    (tmp_path / "a.sql").write_text(text)
    with pytest.raises(ConfigError, match=mistake):
        Queries(tmp_path)
