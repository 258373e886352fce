"""Finding, checking, making, starting and stopping plugins, each installed as a real distribution."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest

from llmproxy.api import hookimpl
from llmproxy.config import Config
from llmproxy.config_document import ConfigDocument
from llmproxy.errors import ConfigError, PluginError, StorageError
from llmproxy.hooks import RegisteredPlugin
from llmproxy.plugins import Plugins, installed
from llmproxy.services import Commands, Router, Services

# Loading hands services on and looks at nothing in them.
SERVICES = cast("Services", object())

Install = Callable[..., None]

GREETING = """
from llmproxy.api import Section, hookimpl

class GreetingConfig(Section):
    word: str = "hello"
    times: int = 1

class Greeting:
    name = "greeting"
    Config = GreetingConfig

    def __init__(self, config, services):
        self.config, self.services = config, services

    @hookimpl
    def pre_request(self, exchange):
        return None
"""


def plain(name: str, body: str = "pass") -> str:
    """The source of a plugin without configuration, whose class is called Plugin."""
    head = f"""
from llmproxy.api import *

class Plugin:
    name = {name!r}
    def __init__(self, config, services): pass
"""
    return head + "".join(f"    {line}\n" for line in dedent(body).splitlines())


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a one-module distribution that brings one plugin."""
    modules: set[str] = set()

    def install(name: str, source: str, attribute: str = "Plugin", distribution: str | None = None) -> None:
        distribution = distribution or f"llmproxy-{name.replace('_', '-')}"
        module = f"installed_{distribution.replace('-', '_')}"
        folder = tmp_path / distribution
        metadata = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (metadata / "entry_points.txt").write_text(f"[llmproxy.plugins]\n{name} = {module}:{attribute}\n")
        monkeypatch.syspath_prepend(folder)
        modules.add(module)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def unexpected_failure(plugin: str, hook: str, error: Exception) -> None:
    """For tests in which no isolated hook may fail."""
    raise AssertionError((plugin, hook, error))


def load(text: str, **options: Any) -> tuple[Plugins, ConfigDocument]:
    """The plugins of a configuration, and the document that knows its mistakes."""
    document = ConfigDocument.parse(dedent(text), "llmproxy.yaml", {})
    config = document.validate(Config)
    assert config is not None
    names = tuple(config.plugins)
    plugins = Plugins.load(names, document, SERVICES, **{"on_failure": unexpected_failure, **options})
    return plugins, document


def mistakes(text: str) -> tuple[str, ...]:
    """What is wrong with the plugins of a configuration."""
    return load(text)[1].mistakes


# Finding


def test_installed_plugins_are_known_by_name_and_not_imported(install: Install) -> None:
    """Looking at what is installed runs none of its code."""
    install("greeting", "raise SystemExit", "Greeting")
    assert installed()["greeting"].value == "installed_llmproxy_greeting:Greeting"


def test_only_what_the_configuration_names_is_imported(install: Install) -> None:
    """Installed is not enabled."""
    install("greeting", GREETING, "Greeting")
    install("explosive", "raise SystemExit")
    plugins, document = load("plugins: [greeting]")
    assert document.mistakes == ()
    assert [plugin.name for plugin in plugins.enabled] == ["greeting"]
    assert plugins.hooks.callers == {"pre_request": ("greeting",)}


def test_a_plugin_gets_its_validated_section_and_the_services(install: Install) -> None:
    """Configuration and services are handed in; defaults are filled in."""
    install("greeting", GREETING, "Greeting")
    plugins, _ = load("plugins: {greeting: {times: 3}}")
    [plugin] = plugins.enabled
    made = plugin.make(plugin.config, SERVICES)
    assert vars(made)["config"].model_dump() == {"word": "hello", "times": 3}
    assert vars(made)["services"] is SERVICES
    assert plugin.distribution == "llmproxy-greeting 1.2"


def test_two_distributions_with_a_plugin_of_one_name_are_refused(install: Install) -> None:
    """Which of the two runs must not depend on the import path."""
    install("greeting", GREETING, "Greeting")
    install("greeting", GREETING, "Greeting", distribution="llmproxy-impostor")
    with pytest.raises(ConfigError, match=r"llmproxy-greeting 1\.2 and llmproxy-impostor 1\.2 both bring"):
        installed()


def test_plugins_run_in_the_order_of_the_configuration(install: Install) -> None:
    """Order of the file is order of the way in; core's own parts stand behind all of them."""
    for name in ("alpha", "beta"):
        install(name, plain(name, "@hookimpl\ndef pre_request(self): pass"))

    plugins, _ = load("plugins: [beta, alpha]")
    assert plugins.hooks.callers["pre_request"] == ("beta", "alpha")
    built_in = RegisteredPlugin("core", installed()["alpha"].load()(None, None))
    plugins, _ = load("plugins: [beta]", built_in=[built_in])
    assert plugins.hooks.callers["pre_request"] == ("beta", "core")


# Mistakes


def test_an_unknown_plugin_suggests_the_nearest_name(install: Install) -> None:
    """A misspelt plugin is a mistake at its place in the file."""
    install("greeting", GREETING, "Greeting")
    [mistake] = mistakes("plugins:\n  greting: {}\n")
    assert mistake == (
        "llmproxy.yaml:2:3: plugins.greting: no plugin of this name is installed (did you mean 'greeting'?)"
    )


def test_a_mistake_in_a_section_has_its_position(install: Install) -> None:
    """The plugin's own model decides what its section may hold; plugins without one take no keys."""
    install("greeting", GREETING, "Greeting")
    install("bare", plain("bare"))
    first, second = mistakes("plugins:\n  greeting: {tims: 3}\n  bare: {key: 1}\n")
    assert first.startswith("llmproxy.yaml:2:14: plugins.greeting.tims: ")
    assert "did you mean 'times'?" in first
    assert second.startswith("llmproxy.yaml:3:10: plugins.bare.key: ")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import nothing_of_that_name", "llmproxy-broken 1.2 (ModuleNotFoundError: No module named 'nothing_of_that"),
        ("Plugni = None", "cannot be imported from llmproxy-broken 1.2 (AttributeError: "),
        ("1 / 0", "cannot be imported from llmproxy-broken 1.2 (ZeroDivisionError: division by zero)"),
        ("Plugin = 1", "is not a class in llmproxy-broken 1.2"),
        (plain("other"), "calls itself 'other', which is not the name of its entry point"),
        ("class Plugin: pass", "calls itself None, which is not the name of its entry point"),
        (plain("broken", "Config = dict"), "has a Config that is not derived from Section"),
        (plain("broken", "requires = 'alpha'"), "declares requires as something other than a tuple of names"),
        (plain("broken", "after = (1,)"), "declares after as something other than a tuple of names"),
        (plain("broken", "migrations = '/'"), "declares migrations as something other than the Path of a directory"),
    ],
)
def test_a_broken_plugin_is_a_mistake_that_says_what_is_wrong(install: Install, source: str, sentence: str) -> None:
    """What cannot be imported, or is no proper manifest, is reported where the configuration names it."""
    install("broken", source)
    [mistake] = mistakes("plugins: [broken]")
    assert sentence in mistake


def test_a_plugin_can_say_what_must_stand_before_it(install: Install) -> None:
    """`requires` must stand before the plugin, `after` only if it is there at all."""
    install("alpha", plain("alpha"))
    install("beta", plain("beta", "requires = ('alpha',)"))
    install("gamma", plain("gamma", "after = ('alpha',)"))
    assert mistakes("plugins: [alpha, beta, gamma]") == ()
    assert mistakes("plugins: [gamma]") == ()
    assert "needs the plugin 'alpha' to stand before it" in mistakes("plugins: [beta]")[0]
    assert "needs the plugin 'alpha' to stand before it" in mistakes("plugins: [beta, alpha]")[0]
    assert "must stand after the plugin 'alpha'" in mistakes("plugins: [gamma, alpha]")[0]


def test_all_mistakes_are_noted_before_anything_is_refused(install: Install) -> None:
    """One bad plugin does not hide what is wrong with the next."""
    install("broken", "1 / 0")
    install("greeting", GREETING, "Greeting")
    assert len(mistakes("plugins: {broken: {}, greeting: {tims: 1}, unknown: {}}")) == 3


def test_a_plugin_named_twice_is_a_mistake(install: Install) -> None:
    """A plugin has one place in the order."""
    install("greeting", GREETING, "Greeting")
    document = ConfigDocument.parse("plugins: [greeting, greeting]", "llmproxy.yaml", {})
    Plugins.load(("greeting", "greeting"), document, SERVICES, on_failure=unexpected_failure)
    assert "is named more than once" in document.mistakes[0]


def test_a_misspelt_hook_refuses_the_start(install: Install) -> None:
    """A plugin whose hook would never be called is refused."""
    install("broken", plain("broken", "@hookimpl\ndef pre_requests(self): pass"))
    with pytest.raises(ConfigError, match="'broken' implements a hook pre_requests that does not exist"):
        load("plugins: [broken]")


def test_a_plugin_that_cannot_be_made_refuses_the_start(install: Install) -> None:
    """A foreign error out of `__init__` names the plugin, keeps the truth as its cause, and is reported."""
    install("broken", plain("broken", "def __init__(self, config, services): raise OSError('disk')"))
    reported: list[tuple[str, str, str]] = []
    with pytest.raises(PluginError, match="'broken' could not be made") as caught:
        load("plugins: [broken]", on_failure=lambda plugin, hook, error: reported.append((plugin, hook, str(error))))
    assert isinstance(caught.value.__cause__, OSError)
    assert reported == [("broken", "__init__", "disk")]


# Migrations and provider kinds


def test_migrations_are_known_before_the_plugin_is_made(install: Install, tmp_path: Path) -> None:
    """The directory of a plugin's migrations stands on its class."""
    install("stored", plain("stored", f"from pathlib import Path\nmigrations = Path({str(tmp_path)!r})"))
    [plugin] = load("plugins: [stored]")[0].enabled
    assert plugin.migrations == tmp_path


KINDS = """
class Own(Provider):
    kind = {kind!r}

@hookimpl
def register_providers(self):
    return [self.Own]
"""


def test_plugins_bring_provider_kinds(install: Install) -> None:
    """Kinds of all plugins are collected by name; None is none."""
    install("alpha", plain("alpha", KINDS.format(kind="acme")))
    install("beta", plain("beta", "@hookimpl\ndef register_providers(self, config): return None"))
    kinds = load("plugins: [alpha, beta]")[0].provider_kinds(Config())
    assert {kind: provider.__name__ for kind, provider in kinds.items()} == {"acme": "Own"}


def test_two_plugins_with_one_provider_kind_are_refused(install: Install) -> None:
    """A kind has one meaning."""
    for name in ("alpha", "beta"):
        install(name, plain(name, KINDS.format(kind="acme")))
    with pytest.raises(ConfigError, match="'alpha' and 'beta' both bring a provider kind 'acme'"):
        load("plugins: [alpha, beta]")[0].provider_kinds(Config())


def test_what_is_no_provider_class_is_refused(install: Install) -> None:
    """register_providers returns Provider classes and nothing else."""
    install("broken", plain("broken", "@hookimpl\ndef register_providers(self): return [1]"))
    with pytest.raises(PluginError, match="'broken' failed in register_providers"):
        load("plugins: [broken]")[0].provider_kinds(Config())


# Routes and commands


def test_plugins_add_routes_and_commands(install: Install) -> None:
    """The router and the command group are handed to every plugin, in order."""
    body = """
        @hookimpl
        def register_routes(self, router): router.append(self.name)
        @hookimpl
        def register_commands(self, cli): cli.append(self.name)
    """
    for name in ("alpha", "beta"):
        install(name, plain(name, body))
    plugins, _ = load("plugins: [alpha, beta]")
    router: list[str] = []
    commands: list[str] = []
    plugins.register_routes(cast("Router", router))
    plugins.register_commands(cast("Commands", commands))
    assert (router, commands) == (["alpha", "beta"], ["alpha", "beta"])


# Starting and stopping


class Lifecycle:
    """Notes its start and stop, and fails where it is told to."""

    def __init__(self, name: str, log: list[str], *, fails: tuple[str, ...] = ()) -> None:
        self.name, self.log, self.fails = name, log, fails

    def _note(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if what in self.fails:
            raise OSError(what)


def lifecycle(name: str, log: list[str], *, fails: tuple[str, ...] = ()) -> RegisteredPlugin:
    """A plugin with an async start and a plain stop."""

    class Plugin(Lifecycle):
        @hookimpl
        async def startup(self, services: Services) -> None:
            assert services is SERVICES
            self._note("start")

        @hookimpl
        def shutdown(self) -> None:
            self._note("stop")

    return RegisteredPlugin(name, Plugin(name, log, fails=fails))


def running(*built_in: RegisteredPlugin, failures: list[tuple[str, str]] | None = None) -> Plugins:
    """Plugins that need no configuration."""

    def on_failure(plugin: str, hook: str, error: Exception) -> None:
        assert failures is not None
        failures.append((plugin, hook))

    document = ConfigDocument.parse("", "llmproxy.yaml", {})
    return Plugins.load((), document, SERVICES, on_failure=on_failure, built_in=built_in, available={})


async def test_plugins_start_in_order_and_stop_in_reverse() -> None:
    """What was started last is stopped first."""
    log: list[str] = []
    plugins = running(lifecycle("a", log), lifecycle("b", log))
    await plugins.startup()
    await plugins.shutdown()
    assert log == ["start a", "start b", "stop b", "stop a"]


async def test_a_failing_start_stops_what_had_started() -> None:
    """Nothing stays half started, and the failure names the plugin."""
    log: list[str] = []
    plugins = running(lifecycle("a", log), lifecycle("b", log, fails=("start",)), lifecycle("c", log))
    with pytest.raises(PluginError, match="'b' failed in startup") as caught:
        await plugins.startup()
    assert isinstance(caught.value.__cause__, OSError)
    assert log == ["start a", "start b", "stop a"]


async def test_a_failing_stop_is_reported_and_stops_nobody() -> None:
    """Every plugin gets its chance to close what it opened."""
    log: list[str] = []
    failures: list[tuple[str, str]] = []
    plugins = running(lifecycle("a", log), lifecycle("b", log, fails=("stop",)), failures=failures)
    await plugins.startup()
    await plugins.shutdown()
    assert log[2:] == ["stop b", "stop a"]
    assert failures == [("b", "shutdown")]


async def test_a_start_that_fails_for_a_reason_of_ours_keeps_it() -> None:
    """A StorageError at start reaches the operator as one."""

    class Stored:
        @hookimpl
        async def startup(self) -> None:
            raise StorageError("Postgres cannot be reached; check database.url.")

    with pytest.raises(StorageError):
        await running(RegisteredPlugin("stored", Stored())).startup()
