"""Plugins: found by the name in the configuration, checked, made, ordered, started and stopped.

Installed is not enabled: only what stands under `plugins:` is imported at all, and it runs in that order.
The class is the manifest:

    name: What the entry point and the configuration call it.
    Config: The model of its section, a `Section`; leave it out when there is nothing to configure.
    requires: Names of plugins that must stand before it.
    after: Names of plugins that must stand before it if they are enabled.
    migrations: The directory of its SQL migrations.
    commands: Names of the commands it adds, for whoever types one while it is not enabled.

Of the object that is made of it:

    unused_hooks: Names of hooks that it implements and, as it is configured, has no use for: they are not called.
    claim_scopes: The scopes by which what its hook `claims` gives differs; without it, all there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

from llmproxy.config import Config, ModelName, Section
from llmproxy.errors import ConfigError, LLMProxyError, PluginError
from llmproxy.hookcalls import OnFailure, Trace
from llmproxy.hooks import Hooks, RegisteredPlugin, resolve
from llmproxy.providers import Provider
from llmproxy.scopes import SCOPES, Scope
from llmproxy.services import Commands, Router, Services
from llmproxy.yaml_reader import KeyPath

GROUP: Final = "llmproxy.plugins"

SectionModel = TypeVar("SectionModel", bound=Section)


class Document(Protocol):
    """The configuration file, as far as plugins need it: mistakes are noted there, with their positions."""

    def validate(self, model: type[SectionModel], *path: str) -> SectionModel | None:
        """The section at `path` as `model`; None when it has mistakes, which are noted."""

    def mistake(self, sentence: str, *path: str, near: Iterable[str] = ()) -> None:
        """Note a mistake at `path`, with the nearest of `near` as a suggestion."""


class PluginSource(Protocol):
    """Where a plugin's class comes from: an entry point, or whatever stands in for one."""

    @property
    def name(self) -> str:
        """What the configuration calls the plugin."""

    @property
    def dist(self) -> Distribution | None:
        """The distribution that brings it, if one does."""

    def load(self) -> object:
        """The class; importing it may raise anything."""


@dataclass(frozen=True, slots=True)
class EnabledPlugin:
    """A plugin that the configuration names, imported and its section validated, but not made yet."""

    name: str
    distribution: str
    make: Callable[[Section, Services], object]
    config: Section
    migrations: Path | None = None


# Finding


def installed() -> Mapping[str, EntryPoint]:
    """Every installed plugin by its name; nothing is imported.

    Raises ConfigError when two distributions bring a plugin of the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry_point in entry_points(group=GROUP):
        other = found.setdefault(entry_point.name, entry_point)
        if other is not entry_point:
            both = " and ".join(sorted((distribution_of(other), distribution_of(entry_point))))
            raise ConfigError(f"{both} both bring a plugin {entry_point.name!r}; uninstall one of them.")
    return MappingProxyType(found)


def distribution_of(source: PluginSource) -> str:
    """The name and version of the distribution that brings a plugin."""
    return f"{source.dist.name} {source.dist.version}" if source.dist else "an unknown distribution"


def declared_commands(available: Mapping[str, PluginSource]) -> Mapping[str, str]:
    """The plugin that brings each command, enabled or not, as far as plugins can be imported and say so."""
    found: dict[str, str] = {}
    for name, source in available.items():
        try:
            commands: Sequence[str] = getattr(source.load(), "commands", ())
            found |= dict.fromkeys(commands, name)
        except Exception:  # noqa: BLE001, S112 - importing runs a stranger's code, and nothing but a hint depends on it
            continue
    return found


def enabled(
    names: Sequence[str], document: Document, available: Mapping[str, PluginSource]
) -> tuple[EnabledPlugin, ...]:
    """The named plugins, imported and validated; mistakes go to the document, and what has one is left out."""
    found = (_enabled(name, names, document, available) for name in dict.fromkeys(names))
    return tuple(plugin for plugin in found if plugin is not None)


def _enabled(
    name: str, names: Sequence[str], document: Document, available: Mapping[str, PluginSource]
) -> EnabledPlugin | None:
    if name not in available:
        document.mistake("no plugin of this name is installed", "plugins", name, near=available)
        return None
    distribution = distribution_of(available[name])
    manifest = _imported(available[name], distribution, document)
    if manifest is None:
        return None
    # Where it may stand can be asked only of a manifest that says so properly.
    mistakes = list(_wrong_with(manifest, name)) or list(_wrong_place(manifest, name, names))
    for mistake in mistakes:
        document.mistake(mistake, "plugins", name)
    config = None if mistakes else document.validate(_config_model(manifest), "plugins", name)
    if config is None:
        return None
    return EnabledPlugin(name, distribution, manifest, config, _migrations(manifest))


def _imported(source: PluginSource, distribution: str, document: Document) -> type | None:
    try:
        manifest: object = source.load()
    except Exception as error:  # noqa: BLE001  # importing runs a stranger's code, which may raise anything
        why = f"{type(error).__name__}: {error}"
        document.mistake(f"cannot be imported from {distribution} ({why})", "plugins", source.name)
        return None
    if not isinstance(manifest, type):
        document.mistake(f"is not a class in {distribution}", "plugins", source.name)
        return None
    return manifest


def _wrong_with(manifest: type, name: str) -> Iterator[str]:
    declared = getattr(manifest, "name", None)
    if declared != name:
        yield f"calls itself {declared!r}, which is not the name of its entry point"
    model = getattr(manifest, "Config", Section)
    if not (isinstance(model, type) and issubclass(model, Section)):
        yield "has a Config that is not derived from Section"
    for attribute in ("requires", "after", "commands"):
        value = getattr(manifest, attribute, ())
        if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
            yield f"declares {attribute} as something other than a tuple of names"
    migrations = getattr(manifest, "migrations", None)
    if migrations is not None and not (isinstance(migrations, Path) and migrations.is_dir()):
        yield "declares migrations as something other than the Path of a directory"


def _wrong_place(manifest: type, name: str, names: Sequence[str]) -> Iterator[str]:
    if names.count(name) > 1:
        yield "is named more than once"
    before = names[: names.index(name)]
    for needed in getattr(manifest, "requires", ()):
        if needed not in before:
            yield f"needs the plugin {needed!r} to stand before it"
    for other in getattr(manifest, "after", ()):
        if other in names and other not in before:
            yield f"must stand after the plugin {other!r}"


def named_models(value: object) -> Iterator[tuple[KeyPath, str]]:
    """Every ModelName in a section, and where it stands there."""
    if isinstance(value, ModelName):
        yield (), value
    for step, inner in _members(value):
        yield from (((step, *path), name) for path, name in named_models(inner))


def _members(value: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(value, Section):
        # By its name in the file, which need not be one in Python.
        fields = type(value).model_fields.items()
        return [(str(field.validation_alias or name), getattr(value, name)) for name, field in fields]
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, tuple | list) else ()


def _config_model(manifest: type) -> type[Section]:
    model: type[Section] = getattr(manifest, "Config", Section)
    return model


def _migrations(manifest: type) -> Path | None:
    directory: Path | None = getattr(manifest, "migrations", None)
    return directory


# Running


class Plugins:
    """The plugins of one configuration: their hooks, and their start and stop."""

    def __init__(
        self,
        enabled: Sequence[EnabledPlugin],
        hooks: Hooks,
        services: Services,
        *,
        claim_scopes: Collection[Scope],
        on_failure: OnFailure,
    ) -> None:
        self.enabled: Final = tuple(enabled)
        self.hooks: Final = hooks
        self.claim_scopes: Final = claim_scopes
        self.on_failure: Final = on_failure
        self._services = services

    @classmethod
    def load(
        cls,
        names: Sequence[str],
        document: Document,
        services: Services,
        *,
        on_failure: OnFailure,
        built_in: Sequence[RegisteredPlugin] = (),
        available: Mapping[str, PluginSource] | None = None,
        trace: Trace | None = None,
    ) -> Plugins:
        """Import, validate and make the named plugins, in that order, with `built_in` behind them.

        Mistakes in the configuration go to the document, which the caller must ask before it serves anything.
        Raises ConfigError when a plugin's hooks are wrong, PluginError when one cannot be made.
        """
        found = enabled(names, document, installed() if available is None else available)
        made = [RegisteredPlugin(plugin.name, _made(plugin, services, on_failure)) for plugin in found]
        plugins = [*made, *built_in]
        hooks = resolve(plugins, on_failure=on_failure, trace=trace)
        scopes = _claim_scopes(each for each in plugins if each.name in hooks.callers.get("claims", ()))
        return cls(found, hooks, services, claim_scopes=scopes, on_failure=on_failure)

    def provider_kinds(self, config: Config) -> Mapping[str, type[Provider]]:
        """Every provider kind by its name. Raises ConfigError when two plugins bring the same."""
        kinds: dict[str, type[Provider]] = {}
        owners: dict[str, str] = {}
        for step in self.hooks.register_providers:
            for kind in step.call(config) or ():
                if kind.kind in kinds:
                    both = f"{owners[kind.kind]!r} and {step.plugin!r}"
                    raise ConfigError(f"The plugins {both} both bring a provider kind {kind.kind!r}; remove one.")
                kinds[kind.kind], owners[kind.kind] = kind, step.plugin
        return MappingProxyType(kinds)

    def register_routes(self, router: Router) -> None:
        """Let every plugin add its routes. Raises an LLMProxyError."""
        for step in self.hooks.register_routes:
            step.call(router)

    def register_commands(self, cli: Commands) -> None:
        """Let every plugin add its commands. Raises an LLMProxyError."""
        for step in self.hooks.register_commands:
            step.call(cli)

    async def startup(self) -> None:
        """Start every plugin in order; when one fails, stop those that had started. Raises an LLMProxyError."""
        started: set[str] = set()
        try:
            for step in self.hooks.startup:
                await step.run(self._services)
                started.add(step.plugin)
        except BaseException:
            await self._stop(started)
            raise

    async def shutdown(self) -> None:
        """Stop every plugin, the last first; a failure is reported and stops nobody."""
        await self._stop({step.plugin for step in self.hooks.shutdown})

    async def _stop(self, names: set[str]) -> None:
        for step in self.hooks.shutdown:
            if step.plugin in names:
                await step.run(self._services)


def _claim_scopes(plugins: Iterable[RegisteredPlugin]) -> Collection[Scope]:
    """The scopes by which the claims of any of them differ. Raises ConfigError: a mistake would mix up tenants."""
    scopes: set[Scope] = set()
    for each in plugins:
        own = getattr(each.plugin, "claim_scopes", SCOPES)
        if isinstance(own, str) or not SCOPES.issuperset(own):
            raise ConfigError(f"The plugin {each.name!r} has claim_scopes that are not a collection of scopes.")
        scopes.update(own)
    return scopes


def _made(plugin: EnabledPlugin, services: Services, on_failure: OnFailure) -> object:
    try:
        return plugin.make(plugin.config, services)
    except LLMProxyError:
        raise
    except Exception as error:
        on_failure(plugin.name, "__init__", error)
        sentence = f"The plugin {plugin.name!r} could not be made from its configuration; the log has the reason."
        raise PluginError(sentence) from error
