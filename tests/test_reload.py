"""Taking over a configuration, and letting go of one, while requests are served: whole or not at all, and in time."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog

from llmproxy import app, db, seat, worker
from llmproxy.accepted import AcceptedConfig
from llmproxy.config import Config, Section
from llmproxy.errors import StorageError
from llmproxy.exchange import Answer, Exchange
from llmproxy.gateway import ConfigSource
from llmproxy.hookspecs import hookimpl
from llmproxy.occupancy import Occupancy
from llmproxy.providers import Provider
from llmproxy.providers.openai import OpenAI
from llmproxy.services import Router, RouteRequest, Services
from llmproxy.state import StateDirectory
from llmproxy.testing import StartProxy, hang, reply, wait_until
from llmproxy.testing.proxy_client import ProxyClient


class Witness:
    """Remembers what was asked of it, over all of its instances."""

    name = "witness"
    events: list[str]
    gate: asyncio.Event

    def __init__(self, config: Section, services: Services) -> None:
        self.events.append("made")

    @hookimpl
    async def startup(self) -> None:
        self.events.append("startup")

    @hookimpl
    async def shutdown(self) -> None:
        self.events.append("shutdown")


def witness(*hooks: type) -> type[Witness]:
    """A class of its own for one test, with further hooks."""
    return type("Witnessed", (*hooks, Witness), {"events": [], "gate": asyncio.Event(), "__doc__": "A witness."})


def configure(client: ProxyClient, **sections: object) -> None:
    """Write these sections into the gateway's file; None takes one out."""
    path = client.app._read_source().path
    assert path is not None
    settings = json.loads(path.read_text()) | sections
    path.write_text(json.dumps({name: section for name, section in settings.items() if section is not None}))


# Whole or not at all


class Fragile(OpenAI):
    """A provider that fails when its section says so."""

    kind = "fragile"

    def __init__(self, name: str, config: Any, services: Services) -> None:  # a section of the kind's own
        super().__init__(name, config, services)
        if "unmakable" in config.models:
            raise KeyError("sk-a-secret")

    async def startup(self) -> None:
        """Like a metadata server that is away."""
        if "unstartable" in self.config.models:
            raise RuntimeError("sk-a-secret")


class Brings:
    """Brings the fragile kind."""

    @hookimpl
    def register_providers(self, config: Config) -> Sequence[type[Provider]]:
        return [Fragile]


@pytest.mark.parametrize("failure", ["unmakable", "unstartable"])
async def test_a_provider_that_raises_refuses_the_reload(proxy: StartProxy, failure: str) -> None:
    """Whatever a provider raises when it is made or started is a refusal that names it, and the old goes on."""
    plugin = witness(Brings)
    async with proxy(plugin, upstream=[reply("still here")]) as client:
        configure(client, providers={"shaky": {"kind": "fragile", "models": [failure]}}, models=None)
        response = await client.request("POST", "/admin/v1/config/reload", key=client.admin_key)
        error = response.document["error"]
        assert (response.status, error["code"]) == (400, "config_error")
        assert "providers.shaky: this provider could not be" in error["message"]
        assert "secret" not in error["message"]
        assert (await client.chat()).text == "still here"
    assert plugin.events.count("startup") == plugin.events.count("shutdown") == 1


async def test_a_reload_that_cannot_have_its_workspaces_changes_nothing(proxy: StartProxy) -> None:
    """Without its key file the default workspace cannot be served: neither models nor keys nor plugins change."""
    plugin = witness()
    async with proxy(plugin, upstream=[reply("still here")]) as client:
        (client.app.services.state_directory / "default-key").write_text("")
        before = client.app.gateway
        configure(client, workspaces=None, models={"other": "demo/echo"})
        with pytest.raises(StorageError):
            await client.app.reload()
        assert client.app.gateway is before
        assert (await client.chat()).text == "still here"
        assert plugin.events.count("startup") == 1


async def test_a_worker_survives_whatever_a_reload_raises(proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no mistake of the file, and nobody's own word, is logged, and the worker serves on."""

    async def fail() -> None:
        raise RuntimeError("a mistake of the gateway's own")

    async with proxy(upstream=[reply("still here")]) as client:
        monkeypatch.setattr(client.app, "_make_gateway", fail)
        with structlog.testing.capture_logs() as logs, socket.socket() as listener:
            place = seat.WorkerSeat(7, listener, 0, lambda: None, lambda: None)
            await worker._reload(client.app, place, structlog.get_logger())
        assert [(entry["event"], entry["worker"]) for entry in logs] == [("reload_refused", 7)]
        assert (await client.chat()).text == "still here"


# Under way


class Waits:
    """A route and a hook that end when the test says so."""

    events: list[str]
    gate: asyncio.Event

    @hookimpl
    def register_routes(self, router: Router) -> None:
        router.add("GET", "/waits", self.wait, admin=False)

    async def wait(self, request: RouteRequest) -> Answer:
        """Answers late."""
        self.events.append("called")
        await self.gate.wait()
        self.events.append("answered")
        return Answer(200, (), b"done")


async def test_a_plugin_outlives_its_routes_calls(proxy: StartProxy) -> None:
    """A plugin that a reload replaces is shut down only when the last call of its routes has been answered."""
    plugin = witness(Waits)
    async with proxy(plugin) as client:
        calling = asyncio.get_running_loop().create_task(client.request("GET", "/waits"))
        await wait_until(lambda: "called" in plugin.events)
        await client.app.reload()
        assert (await client.chat(model="demo/echo")).status == 200
        assert "shutdown" not in plugin.events
        plugin.gate.set()
        assert (await calling).body == b"done"
        await wait_until(lambda: "shutdown" in plugin.events)
        assert plugin.events.index("answered") < plugin.events.index("shutdown")


async def test_who_enters_as_the_last_one_leaves_is_waited_for() -> None:
    """Empty means empty when the waiter runs, not when the last one left."""
    occupancy = Occupancy()
    with occupancy:
        waiting = asyncio.get_running_loop().create_task(occupancy.empty())
        await asyncio.sleep(0)
    with occupancy:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


# Stopping


async def test_a_drain_that_is_over_cuts_what_still_runs(proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that never answers holds the stop up for the drain alone, and the request's end is shipped."""
    async with proxy(upstream=[hang()], config={"server": {"drain_seconds": 0.2}}) as client:
        calling = asyncio.get_running_loop().create_task(client.chat())
        await wait_until(lambda: bool(client.upstream.requests))
        await stopped(client, monkeypatch)
        with pytest.raises(ConnectionError):
            await calling
        assert client.app.recorder.pending == 0
        assert list(client.app._state.journal.iterdir()) == []


class Lingers:
    """Never done with a request."""

    events: list[str]

    @hookimpl
    async def on_complete(self, exchange: Exchange) -> None:
        self.events.append("on_complete")
        await asyncio.Event().wait()


async def test_a_plugin_that_never_ends_does_not_hold_up_the_stop(
    proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An on_complete that hangs is left, rows are shipped and plugins shut down all the same."""
    monkeypatch.setattr(app, "LAST_CALLS_SECONDS", 0.1)
    plugin = witness(Lingers)
    async with proxy(plugin, upstream=[reply("hi")]) as client:
        assert (await client.chat()).text == "hi"
        await client.app.reload()
        await stopped(client, monkeypatch)
        assert plugin.events.count("shutdown") == 2
        assert list(client.app._state.journal.iterdir()) == []


async def stopped(client: ProxyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the gateway, which must not take long; and leave nothing for the kit to stop."""
    async with asyncio.timeout(5):
        await client.app.stop()

    async def stop() -> None: ...

    monkeypatch.setattr(client.app, "stop", stop)


def test_a_worker_closes_before_it_is_killed() -> None:
    """All that closing may take, step by step, is less than what the supervisor waits for."""
    steps = (app.CUT_OFF_SECONDS, app.LAST_CALLS_SECONDS, app.PARTS_SECONDS, app.SHIPPING_SECONDS, db.GRACE_SECONDS)
    assert sum(steps) + 2 < seat.CLOSING_SECONDS


# Keeping house


async def test_a_sweep_that_fails_is_not_the_last(proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one pass over the connections runs into, the next one comes."""
    monkeypatch.setattr(app, "SWEEP_SECONDS", 0.01)
    async with proxy() as client:
        passes: list[int] = []

        async def sweep() -> None:
            passes.append(len(passes))
            raise RuntimeError("a connection like no other")

        monkeypatch.setattr(client.app.server, "sweep", sweep)
        await wait_until(lambda: len(passes) > 2)


@pytest.mark.parametrize(("method", "path"), [("GET", "/admin/v1/nonesuch"), ("DELETE", "/admin/v1/spend")])
async def test_strangers_learn_nothing_of_the_admin_paths(proxy: StartProxy, method: str, path: str) -> None:
    """Whether a path under /admin exists is told only to who has the admin key."""
    async with proxy() as client:
        assert (await client.request(method, path)).status == 401
        assert (await client.request(method, path, key=client.admin_key)).status in (404, 405)
        assert (await client.request("GET", "/nonesuch")).status == 404


# What processes share


def test_processes_read_what_was_accepted_last(tmp_path: Path) -> None:
    """A process forked before the change and one forked after it both find the new text, whole."""
    accepted = AcceptedConfig(ConfigSource(tmp_path / "config.yaml", b"a" * 100_000))
    told, tell = os.pipe()
    early = _reader(accepted, told)
    accepted.replace(ConfigSource(None, b"providers: {demo: {}}"))
    late = _reader(accepted, told)
    os.write(tell, b"12")
    assert [_exit_code(early), _exit_code(late)] == [0, 0]
    assert accepted.read() == ConfigSource(tmp_path / "config.yaml", b"providers: {demo: {}}")
    os.close(told)
    os.close(tell)


def _reader(accepted: AcceptedConfig, told: int) -> int:
    pid = os.fork()
    if pid == 0:
        os.read(told, 1)
        os._exit(accepted.read().data != b"providers: {demo: {}}")
    return pid


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_generated_key_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """However many processes come first at once, all read one and the same key, and only its owner can."""
    for number in range(20):
        state = StateDirectory(tmp_path / str(number))
        start = threading.Barrier(8)

        def key(state: StateDirectory = state, start: threading.Barrier = start) -> str:
            start.wait()
            return state.default_key()

        with ThreadPoolExecutor(8) as pool:
            keys = {future.result() for future in [pool.submit(key) for _ in range(8)]}
        assert len(keys) == 1
        assert [file.name for file in state.path.iterdir()] == ["default-key"]
        assert (state.path / "default-key").stat().st_mode & 0o777 == 0o600
