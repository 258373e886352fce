"""A worker process: one event loop with one app, from its first request to its last."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from llmproxy.app import App
from llmproxy.config import Config
from llmproxy.errors import ConfigError, LLMProxyError
from llmproxy.services import Log
from llmproxy.state import StateDirectory
from llmproxy.supervisor import CANNOT_START, WorkerSeat


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What all workers of one gateway have in common; `config` is what `config_path` held when it started."""

    config: Config
    config_path: Path | None
    database_url: str
    state: StateDirectory
    admin_key: str
    log: Log


class _Order(Enum):
    """What a worker may be told while it serves."""

    RELOAD = auto()
    STOP = auto()


def run_worker(seat: WorkerSeat, settings: WorkerSettings) -> int:
    """Serve until told to stop, or until the supervisor is gone; returns the exit code."""
    return asyncio.run(_work(seat, settings))


async def _work(seat: WorkerSeat, settings: WorkerSettings) -> int:
    # Before anything is read, so that an order which comes while starting is carried out after it.
    orders = _listen_for_orders(seat)
    try:
        app = _app(seat, settings)
        await app.start(seat.listener)
    except LLMProxyError as error:
        sys.stderr.write(f"{error.message}\n")
        return CANNOT_START
    seat.announce_ready()
    while await orders.get() is not _Order.STOP:
        await _reload(app, settings.log)
    await app.stop()
    return 0


def _listen_for_orders(seat: WorkerSeat) -> asyncio.Queue[_Order]:
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[_Order] = asyncio.Queue()

    def stop_for_good() -> None:
        # At its end a pipe stays readable, and would call again and again.
        loop.remove_reader(seat.supervisor_alive)
        orders.put_nowait(_Order.STOP)

    loop.add_signal_handler(signal.SIGTERM, orders.put_nowait, _Order.STOP)
    loop.add_signal_handler(signal.SIGHUP, orders.put_nowait, _Order.RELOAD)
    loop.add_reader(seat.supervisor_alive, stop_for_good)
    return orders


def _app(seat: WorkerSeat, settings: WorkerSettings) -> App:
    return App(
        config=settings.config,
        config_path=settings.config_path,
        database_url=settings.database_url,
        state=settings.state,
        admin_key=settings.admin_key,
        log=settings.log,
        reload_all=seat.reload_all,
    )


async def _reload(app: App, log: Log) -> None:
    try:
        await app.reload()
    except LLMProxyError as error:
        mistakes = error.mistakes if isinstance(error, ConfigError) else (error.message,)
        log.warning("reload_refused", worker=os.getpid(), mistakes=mistakes)
