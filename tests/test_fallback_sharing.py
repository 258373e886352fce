from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp

from llmproxy.app import App
from llmproxy.config import Config
from llmproxy.config_document import ConfigDocument
from llmproxy.gateway import ConfigSource
from llmproxy.logs import make_log
from llmproxy.migrate import Component, migrate
from llmproxy.request import Document
from llmproxy.state import StateDirectory
from llmproxy.testing import FaultProxy, ProxyClient, ScriptedUpstream, WallClock, fail, reply
from llmproxy.testing.proxy_client import ADMIN_KEY, KEY
from llmproxy_plugins.fallback import Fallback
from tests.test_faults_storage import eventually, in_front_of, lose

# What is promised, and what a busy machine may take when it is not about the promise.
WITHIN_SECONDS: Final = 1.0
FAILING: Final = "failing/m"


@dataclass(frozen=True, slots=True)
class Given:
    """The class, where an installation has an entry point."""

    name: str = "fallback"
    dist: None = None

    def load(self) -> type:
        return Fallback


@dataclass(slots=True)
class Cluster:
    """Some gateways on one database: two that could be workers of one machine, and a replica."""

    replicas: list[ProxyClient]
    failing: ScriptedUpstream
    database: FaultProxy

    async def states(self) -> list[str]:
        """How each of them takes the failing target to be."""
        return [await state(replica) for replica in self.replicas]

    async def agree_on(self, wanted: str) -> float:
        """How many seconds it takes until all say the same of the failing target."""
        began = time.monotonic()

        async def do_agree() -> bool:
            return set(await self.states()) == {wanted}

        await eventually(do_agree)
        return time.monotonic() - began


async def state(replica: ProxyClient) -> str:
    """How one gateway takes the failing target to be; what it knows nothing of is healthy."""
    answer = await replica.request("GET", "/admin/v1/targets", key=replica.admin_key)
    found = {each["target"]: each["state"] for each in answer.document["data"]}
    return str(found.get(FAILING, "healthy"))


def configuration(failing: ScriptedUpstream, good: ScriptedUpstream, cool_down_seconds: float) -> Document:
    """Two targets behind one alias, of which the first fails."""
    upstreams = {"failing": failing, "good": good}
    health = {"cool_down_seconds": cool_down_seconds, "max_cool_down_seconds": 60}
    return {
        "providers": {
            name: {"kind": "openai", "base_url": upstream.base_url, "api_key": "sk-any", "models": ["m"]}
            for name, upstream in upstreams.items()
        },
        "models": {"test": {"targets": [FAILING], "fallbacks": ["good/m"]}},
        "workspaces": {"default": {"keys": [KEY]}},
        "plugins": {"fallback": {"backoff_seconds": 0.001, "health": health}},
        "server": {"drain_seconds": 1},
        "logging": {"level": "error"},
    }


@asynccontextmanager
async def serving(file: Path, directory: Path, url: str, upstream: ScriptedUpstream) -> AsyncIterator[ProxyClient]:
    """A gateway with a state directory of its own."""
    core = ConfigDocument.read(file, {}).validate(Config)
    assert core is not None
    app = App(
        config=core,
        read_source=partial(ConfigSource.read, file),
        database_url=url,
        state=StateDirectory(directory),
        admin_key=ADMIN_KEY,
        log=make_log(core.logging),
        available={"fallback": Given()},
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await app.start(listener)
        try:
            async with aiohttp.ClientSession() as http:
                yield ProxyClient(app, upstream, WallClock(), http, listener.getsockname()[1])
        finally:
            await app.stop()


@asynccontextmanager
async def cluster(database_url: str, directory: Path, *, cool_down_seconds: float) -> AsyncIterator[Cluster]:
    """Three gateways that have agreed on nothing yet."""
    await migrate(database_url, [Component("fallback", Fallback.migrations)])
    async with AsyncExitStack() as stack:
        relay, url = await stack.enter_async_context(in_front_of(database_url))
        failing = await stack.enter_async_context(ScriptedUpstream(default=fail(503)))
        good = await stack.enter_async_context(ScriptedUpstream(default=reply("hi")))
        file = directory / "config.yaml"
        file.write_text(json.dumps(configuration(failing, good, cool_down_seconds)))
        replicas = [
            await stack.enter_async_context(serving(file, directory / str(number), url, failing)) for number in range(3)
        ]
        yield Cluster(replicas, failing, relay)


async def break_down(replica: ProxyClient) -> None:
    """Enough requests for one gateway to find out that the target fails."""
    for _ in range(3):
        assert (await replica.chat("hello")).text == "hi"


async def test_what_one_worker_finds_out_all_know_within_a_second(database_url: str, tmp_path: Path) -> None:
    """A cool-down that one begins, or ends, holds for the others before they have made the experience themselves."""
    async with cluster(database_url, tmp_path, cool_down_seconds=60) as all_three:
        first, second, third = all_three.replicas
        await break_down(first)
        assert await all_three.agree_on("cooling") < WITHIN_SECONDS
        asked = len(all_three.failing.requests)
        assert [(await replica.chat("hello")).text for replica in (second, third)] == ["hi", "hi"]
        assert len(all_three.failing.requests) == asked
        await second.request("POST", "/admin/v1/targets/reset", {}, key=second.admin_key)
        assert await all_three.agree_on("healthy") < WITHIN_SECONDS


async def test_a_target_that_is_back_for_one_is_back_for_all(database_url: str, tmp_path: Path) -> None:
    """The first request that succeeds after a cool-down spares the others to find out for themselves."""
    async with cluster(database_url, tmp_path, cool_down_seconds=2) as all_three:
        await break_down(all_three.replicas[0])
        await all_three.agree_on("cooling")
        all_three.failing.default = reply("back")
        await all_three.agree_on("probing")
        assert (await all_three.replicas[2].chat("hello")).text == "back"
        assert await all_three.agree_on("healthy") < WITHIN_SECONDS


async def test_without_a_database_each_goes_by_what_it_sees(database_url: str, tmp_path: Path) -> None:
    """Local health needs no Postgres; when it is back, what is still true is told to the others."""
    async with cluster(database_url, tmp_path, cool_down_seconds=60) as all_three:
        first, second, _ = all_three.replicas
        lose(all_three.database)
        await break_down(first)
        assert [await state(first), await state(second)] == ["cooling", "healthy"]
        assert (await second.chat("hello")).text == "hi"
        await all_three.database.accept()
        await all_three.agree_on("cooling")
