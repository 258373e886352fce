"""Configuration and database for commands that serve nothing themselves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from llmproxy.cli.settings import Settings
from llmproxy.config import Config, DatabaseConfig
from llmproxy.config_document import load_config
from llmproxy.db import Postgres
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.errors import StorageError, Unavailable
from llmproxy.exchanges import OwnExchanges
from llmproxy.logs import make_log
from llmproxy.migrate import core_component, migrate, pending
from llmproxy.services import Database, Log, Services, SystemClock
from llmproxy.state import StateDirectory
from llmproxy.tasks import BackgroundTasks
from llmproxy.upstream import HTTPTransport, UpstreamHTTP

EMBEDDED = "embedded"

T = TypeVar("T")


def offline_services(settings: Settings, log: Log) -> Services:
    """Services to read a configuration with: nothing behind them is open, and nothing runs."""
    clock, tasks = SystemClock(), BackgroundTasks(log)
    return Services(
        clock=clock,
        database=Postgres("", DatabaseConfig(), clock, log, tasks),
        http=UpstreamHTTP(HTTPTransport()),
        log=log,
        tasks=tasks,
        exchanges=OwnExchanges(_nothing_is_served, clock),
        state_directory=settings.state_path.resolve(),
    )


def _nothing_is_served() -> NoReturn:
    raise Unavailable("Nothing is served by this command; ask a gateway that runs.")


def read_core(settings: Settings) -> Config:
    """The core of the configuration, without looking into sections of others. Raises ConfigError."""
    config, document = load_config(settings.config_path, os.environ)
    document.raise_if_mistaken()
    return config


@contextmanager
def database_server(config: Config, state: StateDirectory) -> Iterator[str]:
    """The URL of the database; the embedded server runs at least as long as the block. Raises StorageError."""
    url = config.database.url.get_secret_value()
    if url != EMBEDDED:
        yield url
        return
    server = EmbeddedPostgres(state.path)
    try:
        yield server.start()
    finally:
        server.stop()


def with_database(settings: Settings, config: Config, work: Callable[[Database], Awaitable[T]]) -> T:
    """What `work` makes of the database, whose schema is up to date. Raises StorageError, ConfigError."""
    with database_server(config, StateDirectory(settings.state_path)) as url:
        return asyncio.run(_connected(url, config, work))


async def _connected(url: str, config: Config, work: Callable[[Database], Awaitable[T]]) -> T:
    await _check_schema(url, config)
    log = make_log(config.logging)
    database = Postgres(url, config.database, SystemClock(), log, BackgroundTasks(log))
    await database.open()
    try:
        return await work(database)
    finally:
        await database.close()


async def _check_schema(url: str, config: Config) -> None:
    """The embedded database is nobody else's, so it is migrated; changing another takes a decision."""
    if config.database.url.get_secret_value() == EMBEDDED:
        await migrate(url, [core_component()])
    elif await pending(url, [core_component()]):
        raise StorageError("The database's schema is not up to date; run 'llmproxy migrate' first.")
