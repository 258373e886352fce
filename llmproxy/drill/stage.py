"""A gateway that runs on somebody's own configuration, and cannot reach, spend or keep anything of theirs."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmproxy.app import App
from llmproxy.catalogue import Catalogue
from llmproxy.config import Config
from llmproxy.config_document import ConfigDocument
from llmproxy.config_mistakes import suggestion
from llmproxy.drill.faults import tell_story
from llmproxy.errors import ConfigError
from llmproxy.gateway import ConfigSource
from llmproxy.logs import make_log
from llmproxy.migrate import core_component
from llmproxy.plugins import PluginSource
from llmproxy.request import Document
from llmproxy.state import StateDirectory
from llmproxy.testing.database import TestDatabases
from llmproxy.testing.proxy_client import ADMIN_KEY, KEY, ProxyClient
from llmproxy.testing.running_proxy import client_session, core_of, served
from llmproxy.testing.upstream import ScriptedUpstream
from llmproxy.testing.wall_clock import WallClock

_PLACEHOLDER: Final = "drill"
_WORKSPACE: Final = "drill"
# A variable without a default.
_VARIABLE: Final = re.compile(rb"\$\{(\w+)\}")
# Where a provider is and with which credentials it is asked, in the words of all kinds; the rest of a section stays.
_REPLACED: Final = frozenset(
    {
        *("base_url", "endpoint_url", "endpoint", "api_key", "api_keys", "headers", "entra"),
        *("access_key_id", "secret_access_key", "session_token", "profile"),
        *("credentials_file", "credentials_json", "quota_project"),
    }
)
_KEPT_SECTIONS: Final = ("timeouts", "models", "prices")


@dataclass(frozen=True, slots=True)
class Staged:
    """A gateway that runs, and the vendors behind it by their providers' names."""

    client: ProxyClient
    upstreams: Mapping[str, ScriptedUpstream]

    @property
    def catalogue(self) -> Catalogue:
        """The models that can be asked for."""
        return self.client.app.gateway.configuration.catalogue


class Stage:
    """Starts gateways on one configuration, as many as are wanted, each with a database and vendors of its own.

    Args:
        workspace: In whose name requests are sent, with its models and its region; None for one that may do anything.
        without: Plugins that are left out.
        available: The plugins that may be enabled, by name.
        server_url: A database server on which databases can be made.

    Raises ConfigError when the configuration is wrong.
    """

    def __init__(
        self,
        source: ConfigSource,
        *,
        available: Mapping[str, PluginSource],
        server_url: str,
        workspace: str | None = None,
        without: Collection[str] = (),
        deadline_seconds: float,
    ) -> None:
        self.config, self._written = read(source)
        self._path = source.path
        self._available = available
        self._workspace = workspace
        self._without = without
        self._deadline_seconds = deadline_seconds
        _require("workspace", [] if workspace is None else [workspace], self.config.workspaces, source.name)
        _require("plugin", without, self.config.plugins, source.name)
        nowhere = dict.fromkeys(self.config.providers, "http://127.0.0.1:9")
        _, components = core_of(self._source(nowhere), available)
        self._databases = TestDatabases(server_url, [core_component(), *components])

    async def close(self) -> None:
        """Remove what the gateways' databases were copied from."""
        await self._databases.close()

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Staged]:
        """A gateway that runs for as long as the block and leaves nothing behind; its vendors are well."""
        async with AsyncExitStack() as stack:
            upstreams = {
                name: await stack.enter_async_context(ScriptedUpstream(default=tell_story))
                for name in self.config.providers
            }
            source = self._source({name: upstream.origin for name, upstream in upstreams.items()})
            core, _ = core_of(source, self._available)
            url = await self._databases.create()
            stack.push_async_callback(self._databases.drop, url)
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmproxy-drill-"))
            clock = WallClock()
            app = App(
                config=core,
                read_source=lambda: source,
                database_url=url,
                state=StateDirectory(Path(directory)),
                admin_key=ADMIN_KEY,
                log=make_log(core.logging),
                clock=clock,
                available=self._available,
            )
            port = await stack.enter_async_context(served(app))
            http = await stack.enter_async_context(client_session(self._deadline_seconds))
            yield Staged(ProxyClient(app, next(iter(upstreams.values())), clock, http, port), upstreams)

    def _source(self, origins: Mapping[str, str]) -> ConfigSource:
        """The configuration with its vendors at these addresses."""
        settings: Document = {
            **{name: self._written[name] for name in _KEPT_SECTIONS if name in self._written},
            "providers": {name: _harmless(self.config.providers[name], origin) for name, origin in origins.items()},
            "workspaces": self._workspaces(),
            "plugins": {name: each for name, each in self.config.plugins.items() if name not in self._without},
            "server": {"drain_seconds": 1},
            "logging": {"level": "error"},
        }
        text = json.dumps(settings, ensure_ascii=False, default=str)
        # Variables have been filled in: what still looks like one is text.
        return ConfigSource(self._path, text.replace("${", "$${").encode())

    def _workspaces(self) -> Document:
        """Those of the configuration, with other keys; the drill has the key of one of them, or of one more."""
        written = self._written.get("workspaces") or {}
        sections: dict[str, Document] = {
            name: {**(section or {}), "keys": [f"sk-{_PLACEHOLDER}-{number}"]}
            for number, (name, section) in enumerate(written.items())
        }
        chosen = self._workspace or _WORKSPACE
        sections[chosen] = {**sections.get(chosen, {}), "keys": [KEY]}
        return sections


def _require(kind: str, names: Iterable[str], known: Collection[str], where: str) -> None:
    """Raise ConfigError for the first of some names that is not known."""
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no {kind} '{name}' in {where}{suggestion([name], known)}.")


def read(source: ConfigSource) -> tuple[Config, Document]:
    """The core of a configuration, and all of it as it is written.

    A variable that is not set, such as a vendor's key, stands for anything. Raises ConfigError.
    """
    anything = dict.fromkeys((name.decode() for name in _VARIABLE.findall(source.data)), _PLACEHOLDER)
    document = ConfigDocument.parse(source.data, source.name, {**anything, **os.environ})
    config = document.validate(Config)
    document.raise_if_mistaken()
    if config is None:
        raise ConfigError(*document.mistakes)
    return config, document.value if isinstance(document.value, dict) else {}


def _harmless(section: Mapping[str, Any], origin: str) -> Document:  # whatever a section may hold
    """A provider's section with another address and with credentials that open nothing."""
    kept = {name: value for name, value in section.items() if name not in _REPLACED}
    keys = section.get("api_keys") or ()
    credentials = {"api_keys": [_harmless_key(key) for key in keys]} if keys else {"api_key": _PLACEHOLDER}
    return {**kept, "base_url": origin, **credentials}


def _harmless_key(key: object) -> Document:
    kept = {name: value for name, value in key.items() if name != "key"} if isinstance(key, dict) else {}
    return {**kept, "key": _PLACEHOLDER}
