"""`llmproxy serve`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

import click

from llmproxy.accepted import AcceptedConfig
from llmproxy.cli.exposure import exposures
from llmproxy.cli.greeting import Greeting
from llmproxy.cli.migrate import components
from llmproxy.cli.offline import database_server, offline_services
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import Config, LoggingConfig, ServerConfig
from llmproxy.errors import ConfigError
from llmproxy.gateway import ConfigSource, Configuration, refuse_fixed, resolve_configuration
from llmproxy.logs import make_log
from llmproxy.migrate import migrate
from llmproxy.seat import allow_open_files
from llmproxy.services import Log
from llmproxy.state import StateDirectory
from llmproxy.supervisor import Supervisor, listening_sockets
from llmproxy.tls import ServerTLS
from llmproxy.worker import WorkerSettings, run_worker


@click.command("serve")
@click.option("--host", help="Address to listen on; other than loopback asks for strong keys.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes any free one.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that share the port.")
@shared_options
@pass_settings
def command(settings: Settings, /, **given: object) -> None:
    """Serve requests until told to stop.

    SIGTERM or Ctrl-C lets running requests end first, a second one does not; SIGHUP reloads the configuration.
    """
    # Otherwise a signal that comes while starting would leave the embedded database running.
    signal.signal(signal.SIGTERM, _exit)
    allow_open_files()
    source = ConfigSource.read(settings.config_path)
    configuration = resolve_configuration(source, offline_services(settings, make_log(LoggingConfig())))
    server = configuration.config.server.model_copy(update={k: v for k, v in given.items() if v is not None})
    sys.exit(_serve(settings, source, configuration, server))


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _serve(settings: Settings, source: ConfigSource, configuration: Configuration, server: ServerConfig) -> int:
    config, state = configuration.config, StateDirectory(settings.state_path)
    admin_key, log = state.admin_key(os.environ), make_log(config.logging)
    if mistakes := tuple(exposures(server.host, config, admin_key)):
        raise ConfigError(*mistakes)
    if server.tls is not None:
        # The workers load the files themselves; this says once what is wrong with them.
        ServerTLS(server.tls, log)
    with _listening(server) as listeners, database_server(config, state) as url:
        asyncio.run(migrate(url, components(configuration)))
        accepted = AcceptedConfig(source)
        candidate = partial(_candidate, settings, source, config, server.host, log)
        worker = WorkerSettings(config, accepted, candidate, url, state, admin_key, log)
        greeting = Greeting(configuration, server, state, listeners[0].getsockname()[1], is_json=settings.json)
        return Supervisor(
            listeners,
            partial(run_worker, settings=worker),
            accept=lambda: accepted.replace(candidate()),
            on_ready=greeting.print,
            drain_seconds=server.drain_seconds,
            log=log,
        ).run()


@contextmanager
def _listening(server: ServerConfig) -> Iterator[Sequence[socket.socket]]:
    listeners = listening_sockets(server.host, server.port, server.workers)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def _candidate(settings: Settings, source: ConfigSource, running: Config, host: str, log: Log) -> ConfigSource:
    """The configuration on disk, which may be taken over. Raises an LLMProxyError when it may not."""
    found = ConfigSource.read(source.path)
    wanted = resolve_configuration(found, offline_services(settings, log)).config
    refuse_fixed(running, wanted)
    # What is checked at the start must hold after a reload too.
    if mistakes := tuple(exposures(host, wanted, None)):
        raise ConfigError(*mistakes)
    return found
