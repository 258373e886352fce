"""Postgres: a bounded pool, transactions, and notifications. No exception of the driver leaves this module."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg
import orjson

from llmproxy.config import DatabaseConfig
from llmproxy.errors import StorageError
from llmproxy.services import Clock, Connection, Log, Row, Tasks

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    AnyConnection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

# StorageError.error_code of what Postgres refuses for what it holds: sending it again cannot help.
REJECTED: Final = "storage_rejected"
# SQLSTATE classes of what a row's own content can cause: data, constraints, limits.
REJECTED_CLASSES: Final = ("22", "23", "54")
# Classes of a server that is gone, full or going down: connection, resources, operator.
LOST_CLASSES: Final = ("08", "53", "57")

IDLE_CONNECTION_SECONDS: Final = 300
# The server ends a statement that runs too long; this much later we give up on the server itself.
GRACE_SECONDS: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5
HEARTBEAT_SECONDS: Final = 10


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the driver and the network raise into StorageError, which says whether trying again can help."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise _storage_error(error) from error


def _storage_error(error: Exception) -> StorageError:
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, asyncpg.QueryCanceledError | TimeoutError):
        return StorageError("The database did not answer in time; try again.")
    if isinstance(error, asyncpg.DataError) or state[:2] in REJECTED_CLASSES:
        # What follows a colon is what was given, which may be anybody's secret.
        reason = _first_line(error).partition(":")[0]
        return StorageError("The database refuses what it was given", code=REJECTED, reason=reason)
    if isinstance(error, asyncpg.PostgresError) and state[:2] not in LOST_CLASSES:
        return StorageError("The database could not do what it was asked", reason=_first_line(error))
    return StorageError("The database cannot be reached; try again.")


def _first_line(error: Exception) -> str:
    """What went wrong, without the details, which quote rows."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def location(url: str) -> str:
    """The server of a database URL as a person would say it: host and port, never user or password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or parse_qs(parts.query).get("host", ["localhost"])[0]
        return f"{host}:{parts.port}" if parts.port else host
    except ValueError:
        return "the configured address"


async def _set_up(connection: AnyConnection) -> None:
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=lambda value: orjson.dumps(value).decode(), decoder=orjson.loads
        )


@contextmanager
def _or_terminated(connection: AnyConnection) -> Iterator[None]:
    # Cancelled as a transaction begins or ends, nobody knows whether it is in one, the driver least of all.
    try:
        yield
    except asyncio.CancelledError:
        connection.terminate()
        raise


class PostgresConnection:
    """A pooled connection inside a transaction."""

    def __init__(self, connection: AnyConnection) -> None:
        self._connection = connection

    async def execute(self, query: str, *args: object) -> None:
        """Run a statement and forget its rows. Raises StorageError."""
        with storage_errors():
            await self._connection.execute(query, *args)

    async def execute_many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once per row, all or nothing. Raises StorageError."""
        with storage_errors():
            await self._connection.executemany(query, rows)

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """All rows of a query. Raises StorageError."""
        with storage_errors():
            # As dicts, for the driver's record iterates over its values, which no Mapping does.
            return [dict(row) for row in await self._connection.fetch(query, *args)]

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        """The first row, None when there is none. Raises StorageError."""
        with storage_errors():
            row = await self._connection.fetchrow(query, *args)
        return None if row is None else dict(row)


@dataclass(frozen=True, slots=True, eq=False)
class _Subscription:
    channel: str
    on_notify: Callable[[str], None]
    on_gap: Callable[[], None]

    def notified(self, *notification: object) -> None:
        """The driver's callback: connection, process id, channel, payload."""
        self.on_notify(str(notification[-1]))


class _Listener:
    """One connection of its own for all channels, made again whenever it is lost."""

    def __init__(self, connect: Callable[[], Awaitable[AnyConnection]], clock: Clock, log: Log) -> None:
        self._connect = connect
        self._clock = clock
        self._log = log
        self._subscriptions: list[_Subscription] = []
        self._changed = asyncio.Event()

    def add(self, subscription: _Subscription) -> None:
        self._subscriptions.append(subscription)
        self._changed.set()

    def remove(self, subscription: _Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._changed.set()

    async def run(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                connection = await self._connect()
                pause_seconds = FIRST_PAUSE_SECONDS
                await self._serve(connection)
            except StorageError as error:
                self._log.warning("database_listener_lost", error=error.for_operator, retry_after_seconds=pause_seconds)
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)

    async def _serve(self, connection: AnyConnection) -> None:
        connection.add_termination_listener(lambda _: self._changed.set())
        served: list[_Subscription] = []
        try:
            with storage_errors():
                while True:
                    self._changed.clear()
                    await self._catch_up(connection, served)
                    await self._wait(connection)
        finally:
            connection.terminate()

    async def _catch_up(self, connection: AnyConnection, served: list[_Subscription]) -> None:
        wanted = list(self._subscriptions)
        for subscription in [each for each in served if each not in wanted]:
            await connection.remove_listener(subscription.channel, subscription.notified)
            served.remove(subscription)
        for subscription in [each for each in wanted if each not in served]:
            await connection.add_listener(subscription.channel, subscription.notified)
            served.append(subscription)
            self._report_gap(subscription)

    def _report_gap(self, subscription: _Subscription) -> None:
        try:
            subscription.on_gap()
        except Exception as error:  # noqa: BLE001 - one listener's mistake must not make the others deaf
            self._log.error("database_listener_failed", channel=subscription.channel, error=repr(error))

    async def _wait(self, connection: AnyConnection) -> None:
        """Until a subscription was added; raises when the connection is lost, also when it went silent."""
        while not self._changed.is_set():
            await connection.fetchval("SELECT 1", timeout=GRACE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._changed.wait()


class Postgres:
    """A pool of connections to one server; each of its own calls is a transaction of its own.

    A server that is lost makes calls raise StorageError at once; they work again when it is back.
    """

    def __init__(self, url: str, config: DatabaseConfig, clock: Clock, log: Log, tasks: Tasks) -> None:
        self._url = url
        self._config = config
        self._tasks = tasks
        self._listener = _Listener(self._connect, clock, log)
        self._listening: asyncio.Task[None] | None = None
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self, *, required: bool = True) -> None:
        """Make the pool; when the server is `required`, prove that it is there. Raises StorageError, naming it."""
        config = self._config
        try:
            with storage_errors():
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=config.pool_size,
                    max_inactive_connection_lifetime=IDLE_CONNECTION_SECONDS,
                    init=_set_up,
                    timeout=config.connect_seconds,
                    command_timeout=config.statement_seconds + GRACE_SECONDS,
                    server_settings=self._settings(),
                )
            if required:
                await self.fetch("SELECT 1")
        except StorageError as error:
            raise unusable(self._url, error) from error

    async def close(self) -> None:
        """Stop listening and close every connection; calls in progress get some seconds to end."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        if self._pool is not None:
            # After the pause the pool ends its connections by itself.
            with suppress(StorageError), storage_errors():
                async with asyncio.timeout(GRACE_SECONDS):
                    await self._pool.close()

    def _settings(self) -> dict[str, str]:
        milliseconds = str(int(self._config.statement_seconds * 1000))
        # What the audit's hashes are made of is written as text; no server's own settings may change it.
        formats = {"timezone": "UTC", "datestyle": "ISO"}
        return {"application_name": "llmproxy", "statement_timeout": milliseconds, **formats}

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        with storage_errors():
            return await asyncpg.connect(
                self._url, timeout=self._config.connect_seconds, server_settings=self._settings()
            )

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[AnyConnection]:
        if self._pool is None:
            raise StorageError("The database is not open.")
        with storage_errors():
            connection = await self._pool.acquire(timeout=self._config.connect_seconds)
        try:
            yield connection
        finally:
            # A connection that broke is thrown away; what broke it has been raised already.
            with suppress(StorageError), storage_errors():
                await self._pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Several statements, all or nothing. Raises StorageError."""
        async with self._acquired() as connection:
            transaction = connection.transaction()
            with storage_errors(), _or_terminated(connection):
                await transaction.start()
            try:
                yield PostgresConnection(connection)
            except BaseException:
                with suppress(StorageError), storage_errors():
                    await transaction.rollback()
                raise
            with storage_errors(), _or_terminated(connection):
                await transaction.commit()

    async def execute(self, query: str, *args: object) -> None:
        """Run a statement and forget its rows. Raises StorageError."""
        async with self._acquired() as connection:
            await PostgresConnection(connection).execute(query, *args)

    async def execute_many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once per row, all or nothing. Raises StorageError."""
        async with self._acquired() as connection:
            await PostgresConnection(connection).execute_many(query, rows)

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """All rows of a query. Raises StorageError."""
        async with self._acquired() as connection:
            return await PostgresConnection(connection).fetch(query, *args)

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        """The first row, None when there is none. Raises StorageError."""
        async with self._acquired() as connection:
            return await PostgresConnection(connection).fetch_row(query, *args)

    def listen(self, channel: str, on_notify: Callable[[str], None], on_gap: Callable[[], None]) -> Callable[[], None]:
        """Call `on_notify(payload)` for each NOTIFY on the channel, until what is returned is called.

        `on_gap` is called whenever notifications may have been missed: when listening starts, and after each
        reconnection.
        """
        subscription = _Subscription(channel, on_notify, on_gap)
        self._listener.add(subscription)
        if self._listening is None:
            self._listening = self._tasks.start("database listener", self._listener.run())
        return partial(self._listener.remove, subscription)


def unusable(url: str, error: StorageError) -> StorageError:
    """The error for a server that cannot be connected to, which names it and says why."""
    # The driver's messages name user and database, never a password; an empty one is a timeout.
    reason = str(error.__cause__).rstrip(".") or "no answer in time"
    return StorageError(
        f"No PostgreSQL can be used at {location(url)} ({reason}); "
        "check that it runs and that `database.url` is right.",
    )
