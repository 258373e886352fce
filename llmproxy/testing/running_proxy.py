"""A whole gateway for one test: the real application in the test's own event loop, on a real port and a real database.

Behind it is a provider `upstream` that answers as the test says, with the model `test` for its `test-model`, and the
demo provider; in front of it one workspace, `default`, whose key the client has.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp

from llmproxy.app import App
from llmproxy.config import Config
from llmproxy.config_document import ConfigDocument
from llmproxy.gateway import ConfigSource
from llmproxy.logs import make_log
from llmproxy.migrate import Component, core_component, migrate
from llmproxy.plugins import PluginSource, enabled, installed
from llmproxy.state import StateDirectory
from llmproxy.testing.database import TestDatabases
from llmproxy.testing.messages import Script
from llmproxy.testing.proxy_client import ADMIN_KEY, DEADLINE_SECONDS, KEY, ProxyClient
from llmproxy.testing.upstream import HOST, ScriptedUpstream
from llmproxy.testing.wall_clock import WallClock

UPSTREAM_KEY: Final = "sk-the-gateways-key-at-the-upstream"

# A section of a configuration: whatever YAML can say.
Settings = Mapping[str, Any]


class StartProxy:
    """Starts gateways; the fixture `proxy` is one of these.

    Args:
        databases: Where each gateway gets a database of its own.
    """

    def __init__(self, databases: TestDatabases) -> None:
        self._databases = databases

    @asynccontextmanager
    async def __call__(
        self,
        *plugins: type | Settings,
        upstream: Iterable[Script] = (),
        now: str | datetime | None = None,
        config: Settings | None = None,
    ) -> AsyncIterator[ProxyClient]:
        """A client of a gateway that runs for as long as the block and leaves nothing behind.

        Args:
            plugins: Classes of plugins in their order, each followed by its settings if it has any. They need not be
                installed; those that are can be named in `config`.
            upstream: The provider's replies, in turn.
            now: What time it is, and stays, as `moment` reads it; left out, it is the real time.
            config: Settings to lay over those of the kit, as they would stand in a configuration file.

        Raises ConfigError when the gateway does not accept its configuration.
        """
        given = _with_settings(plugins)
        available: dict[str, PluginSource] = {**installed(), **{_name(each): _GivenPlugin(each) for each in given}}
        clock = WallClock(now)
        async with AsyncExitStack() as stack:
            scripted = await stack.enter_async_context(ScriptedUpstream(upstream))
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmproxy-")))
            file = directory / "config.yaml"
            file.write_text(_encoded(_laid_over(_settings(scripted, given), config or {})))
            core, components = core_of(ConfigSource.read(file), available)
            app = App(
                config=core,
                read_source=partial(ConfigSource.read, file),
                database_url=await stack.enter_async_context(self._database(components)),
                state=StateDirectory(directory / "state"),
                admin_key=ADMIN_KEY,
                log=make_log(core.logging),
                clock=clock,
                available=available,
            )
            port = await stack.enter_async_context(served(app))
            yield ProxyClient(
                app, scripted, clock, await stack.enter_async_context(client_session(DEADLINE_SECONDS)), port
            )

    @asynccontextmanager
    async def _database(self, components: Sequence[Component]) -> AsyncIterator[str]:
        url = await self._databases.create()
        try:
            await migrate(url, [core_component(), *components])
            yield url
        finally:
            await self._databases.drop(url)


@dataclass(frozen=True, slots=True)
class _GivenPlugin:
    """A class that a test hands in, where an installation has an entry point."""

    manifest: type
    dist: None = None

    @property
    def name(self) -> str:
        return _name(self.manifest)

    def load(self) -> type:
        return self.manifest


def _with_settings(plugins: Sequence[type | Settings]) -> Mapping[type, Settings]:
    """Each class with the settings that follow it."""
    found: dict[type, Settings] = {}
    for manifest, following in pairwise((*plugins, {})):
        if isinstance(manifest, type):
            found[manifest] = following if isinstance(following, Mapping) else {}
    return found


def _name(manifest: type) -> str:
    # A class without a name is for core to complain about.
    return str(getattr(manifest, "name", manifest.__name__))


def _settings(upstream: ScriptedUpstream, plugins: Mapping[type, Settings]) -> Settings:
    provider = {
        "kind": "openai",
        "base_url": upstream.base_url,
        "api_key": UPSTREAM_KEY,
        "models": ["test-model"],
    }
    return {
        "providers": {"upstream": provider, "demo": {}},
        "models": {"test": "upstream/test-model"},
        "workspaces": {"default": {"keys": [KEY]}},
        "prices": [{"match": "upstream/test-model", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}],
        "plugins": {_name(manifest): settings for manifest, settings in plugins.items()},
        # A test that fails while a request hangs should not have to wait for it.
        "server": {"drain_seconds": 1},
        "logging": {"level": "warning"},
    }


def _laid_over(below: Settings, above: Settings) -> Settings:
    """Both, section by section; where they differ on anything else than a section, what lies above."""
    shared = {
        name: _laid_over(below[name], section)
        for name, section in above.items()
        if isinstance(section, Mapping) and isinstance(below.get(name), Mapping)
    }
    return {**below, **above, **shared}


def _encoded(settings: Settings) -> str:
    # JSON is YAML, as long as no character is written as two halves.
    return json.dumps(settings, ensure_ascii=False, default=str)


def core_of(source: ConfigSource, available: Mapping[str, PluginSource]) -> tuple[Config, Sequence[Component]]:
    """The configuration's core, and the plugins that bring migrations. Raises ConfigError."""
    document = ConfigDocument.parse(source.data, source.name, os.environ)
    core = document.validate(Config)
    found = enabled(document.names("plugins"), document, available)
    document.raise_if_mistaken()
    assert core is not None
    return core, [Component(plugin.name, plugin.migrations) for plugin in found if plugin.migrations]


@asynccontextmanager
async def served(app: App) -> AsyncIterator[int]:
    """The port on which a gateway serves for as long as the block."""
    with socket.create_server((HOST, 0)) as listener:
        await app.start(listener)
        try:
            yield listener.getsockname()[1]
        finally:
            await app.stop()


def client_session(deadline_seconds: float) -> aiohttp.ClientSession:
    """What a ProxyClient sends its requests with, each of which may take so long."""
    timeout = aiohttp.ClientTimeout(total=deadline_seconds)
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout)
