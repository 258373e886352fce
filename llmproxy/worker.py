"""A worker process: one event loop with one app, from its first request to its last."""

from __future__ import annotations

import asyncio
import gc
import importlib
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from llmproxy.accepted import AcceptedConfig
from llmproxy.app import App
from llmproxy.config import Config, EventLoop
from llmproxy.errors import LLMProxyError
from llmproxy.seat import CANNOT_START, WorkerSeat, log_refusal
from llmproxy.services import Log
from llmproxy.state import StateDirectory


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What all workers of one gateway have in common.

    Attributes:
        config: The core of the configuration that the gateway was started with.
        accepted: The configuration to serve.
        check: Raises an LLMProxyError when the supervisor would not accept the configuration on disk.
        group: Tells them from the workers of another gateway, and of an earlier start.
    """

    config: Config
    accepted: AcceptedConfig
    check: Callable[[], object]
    database_url: str
    state: StateDirectory
    admin_key: str
    log: Log
    group: str = field(default_factory=lambda: secrets.token_hex(8))


class _Order(Enum):
    """What a worker may be told while it serves."""

    RELOAD = auto()
    STOP = auto()


def run_worker(seat: WorkerSeat, settings: WorkerSettings) -> int:
    """Serve until told to stop, or until the supervisor is gone; returns the exit code."""
    with asyncio.Runner(loop_factory=_loop_factory(settings.config.server.event_loop)) as runner:
        return runner.run(_work(seat, settings))


def _loop_factory(name: EventLoop) -> Callable[[], asyncio.AbstractEventLoop] | None:
    return None if name == "asyncio" else importlib.import_module(name).new_event_loop


async def _work(seat: WorkerSeat, settings: WorkerSettings) -> int:
    # Before anything is read, so that an order which comes while starting is carried out after it.
    orders = _listen_for_orders(seat)
    try:
        app = _app(seat, settings)
        await app.start(seat.listener)
    except LLMProxyError as error:
        sys.stderr.write(f"{error.message}\n")
        return CANNOT_START
    # What there is now stays, so the collector need not walk through all of it again and again while requests wait.
    gc.freeze()
    seat.announce_ready()
    while await orders.get() is not _Order.STOP:
        await _reload(app, seat, settings.log)
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
    def reload_all() -> None:
        settings.check()
        seat.reload_all()

    return App(
        config=settings.config,
        read_source=settings.accepted.read,
        database_url=settings.database_url,
        state=settings.state,
        admin_key=settings.admin_key,
        log=settings.log,
        reload_all=reload_all,
        group=settings.group,
    )


async def _reload(app: App, seat: WorkerSeat, log: Log) -> None:
    try:
        await app.reload()
    except Exception as error:  # noqa: BLE001 - whatever a plugin or a provider runs into, what runs goes on
        log_refusal(log, error, worker=seat.number)
