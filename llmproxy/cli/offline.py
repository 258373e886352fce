"""Configuration and database for commands that serve nothing themselves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from llmproxy.audit_notary import ActionLog, Notary
from llmproxy.cli.settings import Settings
from llmproxy.config import Config, DatabaseConfig
from llmproxy.config_document import load_config
from llmproxy.current_prices import CurrentPrices
from llmproxy.db import Postgres
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.errors import StorageError, Unavailable
from llmproxy.exchanges import OwnExchanges
from llmproxy.logs import make_log
from llmproxy.migrate import core_component, migrate, pending
from llmproxy.queries import Queries
from llmproxy.quotas import Quotas
from llmproxy.services import Clock, Database, Log, Services, SystemClock
from llmproxy.state import StateDirectory
from llmproxy.tasks import BackgroundTasks
from llmproxy.upstream import ProviderTransport, UpstreamHTTP

EMBEDDED = "embedded"

T = TypeVar("T")


def offline_services(settings: Settings, log: Log) -> Services:
    """Services to read a configuration with: nothing behind them is open, and nothing runs."""
    clock, tasks = SystemClock(), BackgroundTasks(log)
    database = Postgres("", DatabaseConfig(), clock, log, tasks)
    return Services(
        clock=clock,
        database=database,
        http=UpstreamHTTP(ProviderTransport()),
        log=log,
        tasks=tasks,
        exchanges=OwnExchanges(_nothing_is_served, clock),
        pricing=CurrentPrices(_nothing_is_served),
        quotas=Quotas(database, Queries(), clock, log, tasks),
        state_directory=settings.state_path.resolve(),
    )


def _nothing_is_served() -> NoReturn:
    raise Unavailable("Nothing is served by this command; ask a gateway that runs.")


def read_core(settings: Settings) -> Config:
    """The core of the configuration, without looking into sections of others. Raises ConfigError."""
    config, document = load_config(settings.config_path, os.environ)
    document.raise_if_mistaken()
    return config


def action_log(settings: Settings, config: Config, queries: Queries, clock: Clock) -> ActionLog:
    """Where what is done at the command line is recorded."""
    state, log = StateDirectory(settings.state_path), make_log(config.logging)
    notary = Notary(queries, state.audit_keys(config.audit), clock, log, state.audit_anchor)
    return ActionLog(notary, "command line")


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
