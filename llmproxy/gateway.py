"""One configuration, resolved into everything a request meets: what a reload builds anew and swaps whole."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from llmproxy.accounting import Accounting
from llmproxy.attempt import Attempts
from llmproxy.catalogue import Catalogue
from llmproxy.config import Config, ProviderConfig
from llmproxy.config_document import ConfigDocument, read_file
from llmproxy.errors import ConfigError, LLMProxyError
from llmproxy.failover import Failover
from llmproxy.holdings import Holdings
from llmproxy.hookcalls import OnFailure, Trace
from llmproxy.hooks import RegisteredPlugin
from llmproxy.journal import Journal
from llmproxy.keys import KeyRing
from llmproxy.listing import Listing
from llmproxy.occupancy import Occupancy
from llmproxy.pipeline import Pipeline
from llmproxy.plugins import Plugins, PluginSource, enabled, installed, named_models
from llmproxy.pricing import PriceBook
from llmproxy.providers import Endpoints, Provider, Transport
from llmproxy.providers.builtin import BuiltinProviders, key_variables
from llmproxy.quotas import Quotas
from llmproxy.remote_images import RemoteImages
from llmproxy.routes import Routes
from llmproxy.services import Log, Services
from llmproxy.tokenizer import tokenizer
from llmproxy.yaml_reader import KeyPath

DEFAULT_CONFIG_NAME: Final = "built-in defaults"
# What a reload cannot change, for a socket, a pool, a file or a process stands on it.
FIXED_SECTIONS: Final = ("server", "database", "journal", "audit", "logging")


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """The text of a configuration, as its file once held it; without a path, what can be served out of the box."""

    path: Path | None
    data: bytes

    @classmethod
    def read(cls, path: Path | None) -> ConfigSource:
        """What the file holds now. Raises ConfigError when it cannot be read."""
        return cls(path, default_config(os.environ).encode() if path is None else read_file(path))

    @property
    def name(self) -> str:
        """What mistakes call it."""
        return DEFAULT_CONFIG_NAME if self.path is None else str(self.path)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration that has been read and found right, plugins made and provider sections validated."""

    config: Config
    plugins: Plugins
    providers: Mapping[str, Provider]
    endpoints: Endpoints
    prices: PriceBook
    catalogue: Catalogue
    listing: Listing


@dataclass(frozen=True, slots=True)
class Core:
    """What outlives configurations: the parts a worker has one of."""

    services: Services
    transport: Transport
    images: RemoteImages
    journal: Journal
    quotas: Quotas
    keys: KeyRing


class Gateway:
    """A configuration at work.

    Attributes:
        route_calls: To be entered by whoever serves one of its routes: plugins go on until that has ended.
    """

    def __init__(self, configuration: Configuration, core: Core) -> None:
        self.configuration: Final = configuration
        self.routes: Final = Routes()
        self.route_calls: Final = Occupancy()
        self._log = core.services.log
        config, services = configuration.config, core.services
        hooks, endpoints = configuration.plugins.hooks, configuration.endpoints
        count_tokens = tokenizer(config.estimates.tokenizer) if config.estimates.tokenizer else None
        accounting = Accounting(endpoints, configuration.prices, services.clock, count_tokens)
        attempts = Attempts(
            endpoints,
            core.transport,
            config.timeouts,
            services.clock,
            images=core.images,
            before_sending=core.journal.flush,
        )
        plugins = configuration.plugins
        holdings = (
            Holdings(hooks.claims, plugins.claim_scopes, core.quotas, services.clock, plugins.on_failure)
            if hooks.claims
            else None
        )
        self.accounting: Final = accounting
        self.pipeline: Final = Pipeline(
            hooks=hooks,
            keys=core.keys,
            catalogue=configuration.catalogue,
            holdings=holdings,
            failover=Failover(
                hooks=hooks, holdings=holdings, attempts=attempts, accounting=accounting, clock=services.clock
            ),
            accounting=accounting,
            journal=core.journal,
            quotas=core.quotas,
            audit=config.audit,
            clock=services.clock,
            tasks=services.tasks,
            log=services.log,
        )

    async def startup(self) -> None:
        """Start providers and plugins. Raises an LLMProxyError; nothing is left running then."""
        self.configuration.plugins.register_routes(self.routes)
        async with AsyncExitStack() as undo:
            for provider in self.configuration.endpoints.values():
                await self._start_provider(provider)
                undo.push_async_callback(self._stop_provider, provider)
            await self.configuration.plugins.startup()
            undo.pop_all()

    async def shutdown(self) -> None:
        """Stop plugins and providers, once no request is left that uses them.

        Cancelled while it waits for that, it stops them at once.
        """
        try:
            await self.route_calls.empty()
            await self.pipeline.idle()
        finally:
            await self.configuration.plugins.shutdown()
            for provider in self.configuration.endpoints.values():
                await self._stop_provider(provider)

    async def _start_provider(self, provider: Provider) -> None:
        try:
            await provider.startup()
        except LLMProxyError:
            raise
        except Exception as error:
            _log_failure(self._log, provider.name, error)
            raise ConfigError(
                f"providers.{provider.name}: this provider could not be started; the log has the reason"
            ) from error

    async def _stop_provider(self, provider: Provider) -> None:
        try:
            await provider.shutdown()
        except Exception as error:  # noqa: BLE001 - the others have to be stopped all the same
            _log_failure(self._log, provider.name, error)


def refuse_fixed(running: Config, wanted: Config) -> None:
    """Raise ConfigError when a reload would have to change what it cannot."""
    changed = [section for section in FIXED_SECTIONS if getattr(running, section) != getattr(wanted, section)]
    if changed:
        mistake = "this section takes effect only at a restart; change it back, or restart"
        raise ConfigError(*(f"{section}: {mistake}" for section in changed))


def read_configuration(
    path: Path | None, services: Services, available: Mapping[str, PluginSource] | None = None
) -> Configuration:
    """Read, check and resolve a configuration file; without a path, what can be served out of the box.

    Raises and takes what `resolve_configuration` does.
    """
    return resolve_configuration(ConfigSource.read(path), services, available)


def resolve_configuration(
    source: ConfigSource, services: Services, available: Mapping[str, PluginSource] | None = None
) -> Configuration:
    """Check and resolve a configuration.

    Raises ConfigError with every mistake at once.

    Args:
        available: The plugins that may be enabled, by name; None stands for those that are installed.
    """
    available = installed() if available is None else available
    # Each counts its own, for an old one runs on beside the new until its last request has ended.
    services = replace(services, vitals=replace(services.vitals, plugin_failures=Counter()))
    document = ConfigDocument.parse(source.data, source.name, os.environ)
    config = document.validate(Config)
    if config is None:
        # The core is wrong already: the sections are still looked at, so that one run shows every mistake.
        enabled(document.names("plugins"), document, available)
        raise ConfigError(*document.mistakes)
    plugins = Plugins.load(
        document.names("plugins"),
        document,
        services,
        on_failure=_reporter(services),
        built_in=[RegisteredPlugin("core", BuiltinProviders())],
        available=available,
        trace=_trace(services),
    )
    endpoints = _endpoints(config, document, plugins, services)
    document.raise_if_mistaken()
    # What holds for a provider holds for each of its keys.
    providers: dict[str, Provider] = {}
    for (name, _), endpoint in endpoints.items():
        providers.setdefault(name, endpoint)
    prices = PriceBook(config.prices)
    known = {
        name: prices.known_models(provider.price_provider)
        for name, provider in providers.items()
        if not provider.has_own_names
    }
    catalogue = Catalogue(config.models, providers, known)
    _note_unserved(document, catalogue, plugins)
    document.raise_if_mistaken()
    listing = Listing(providers, prices, services.clock)
    return Configuration(config, plugins, providers, endpoints, prices, catalogue, listing)


def _note_unserved(document: ConfigDocument, catalogue: Catalogue, plugins: Plugins) -> None:
    """Note every model that an alias or a plugin names, and that nothing serves."""
    names = catalogue.every_name()
    found: list[tuple[KeyPath, str]] = [(("models", alias), model) for alias, model in catalogue.unresolved()]
    for plugin in plugins.enabled:
        named = named_models(plugin.config)
        found += [(("plugins", plugin.name, *path), model) for path, model in named if not catalogue.targets(model)]
    for place, model in found:
        document.mistake(f"no configured provider serves '{model}'", *place, near=[n for n in names if n != place[-1]])


def default_config(environ: Mapping[str, str]) -> str:
    """What is served without a file: the demo, and every provider whose usual key variable is set."""
    lines = ["providers:", "  demo: {}"]
    for kind, variables in key_variables().items():
        variable = next((name for name in variables if environ.get(name)), None)
        if variable is not None:
            lines.append(f'  {kind}: {{api_key: "${{{variable}}}"}}')
    return "\n".join(lines) + "\n"


def _endpoints(config: Config, document: ConfigDocument, plugins: Plugins, services: Services) -> Endpoints:
    kinds = plugins.provider_kinds(config)
    endpoints: dict[tuple[str, str | None], Provider] = {}
    for name, section in config.providers.items():
        kind = kinds.get(str(section.get("kind") or name))
        if kind is None:
            place = ("providers", name, "kind") if section.get("kind") else ("providers", name)
            sentence = "no provider of this kind is known; set `kind: openai` for an endpoint of your own"
            document.mistake(sentence, *place, near=[*kinds, *key_variables()])
        elif (validated := document.validate(kind.Config, "providers", name)) is not None and not document.mistakes:
            try:
                for number, (label, _) in enumerate(validated.credentials()):
                    one_key = _with_key(validated.with_credential(number), kind)
                    endpoints[name, label] = kind(name, one_key, services)
            except LLMProxyError:
                raise
            except Exception as error:  # noqa: BLE001 - what a plugin brings may raise anything
                _log_failure(services.log, name, error)
                document.mistake("this provider could not be made; the log has the reason", "providers", name)
    return endpoints


def _log_failure(log: Log, provider: str, error: Exception) -> None:
    log.error("provider_failed", provider=provider, error=repr(error), exc_info=error)


def _with_key(section: ProviderConfig, kind: type[Provider]) -> ProviderConfig:
    """A section without a key takes the vendor's usual variable; never for an address other than the vendor's own."""
    if section.api_key is not None or section.base_url is not None:
        return section
    key = next((os.environ[name] for name in kind.key_variables if os.environ.get(name)), None)
    return section.model_copy(update={"api_key": SecretStr(key)}) if key else section


def _reporter(services: Services) -> OnFailure:
    def report(plugin: str, hook: str, error: Exception) -> None:
        services.vitals.plugin_failures[plugin, hook] += 1
        services.log.error("plugin_failed", plugin=plugin, hook=hook, error=repr(error), exc_info=error)

    return report


def _trace(services: Services) -> Trace | None:
    if not os.environ.get("LLMPROXY_TRACE_HOOKS"):
        return None

    def report(plugin: str, hook: str, seconds: float) -> None:
        services.log.info("hook", plugin=plugin, hook=hook, duration_ms=round(seconds * 1000, 3))

    return report
