"""`llmproxy check`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import click

from llmproxy.body_cipher import body_cipher
from llmproxy.cli.exposure import exposures
from llmproxy.cli.offline import offline_services
from llmproxy.cli.output import print_json
from llmproxy.cli.prices import configured_targets
from llmproxy.cli.residency import print_reach
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import Config, LoggingConfig, Section
from llmproxy.config_schema import config_schema
from llmproxy.errors import ConfigError, LLMProxyError
from llmproxy.gateway import Configuration, read_configuration
from llmproxy.logs import make_log
from llmproxy.plugins import installed
from llmproxy.providers.builtin import every_kind

# Advice on our own plugins; a stranger's speak for themselves with `requires` and `after`.
_BUDGETS: Final = "budgets"
_FALLBACK: Final = "fallback"
_ROUTING: Final = "routing"
_OUR_DISTRIBUTION: Final = "llmproxy "
_CACHE: Final = "caching"
_SEMANTIC_CACHE: Final = "semantic_cache"
_BEFORE_CACHE: Final = ("redaction", "guard", "rate_limits", _BUDGETS)


@click.command("check")
@click.option("--schema", is_flag=True, help="Print the file's JSON Schema, for editors, and check nothing.")
@click.option("--residency", is_flag=True, help="Print where each workspace's requests could ever go.")
@shared_options
@pass_settings
def command(settings: Settings, schema: bool, residency: bool) -> None:  # noqa: FBT001 - click hands flags over so
    """Check a configuration file, and say what is risky about it.

    Every mistake is printed, and ends it with status 1; warnings do not.
    """
    if schema:
        print_json(_schema())
        sys.exit(0)
    if residency:
        print_reach(settings)
        sys.exit(0)
    services = offline_services(settings, make_log(LoggingConfig()))
    try:
        configuration = read_configuration(settings.config_path, services)
        config = configuration.config
        body_cipher(config.audit)
        mistakes = tuple(exposures(config.server.host, config, os.environ.get("LLMPROXY_ADMIN_KEY")))
        found = tuple(warnings(configuration))
    except LLMProxyError as error:
        mistakes = error.mistakes if isinstance(error, ConfigError) else (error.message,)
        found = ()
    _report(settings, mistakes, found)
    sys.exit(1 if mistakes else 0)


def warnings(configuration: Configuration) -> Iterator[str]:
    """What is allowed and may still hurt: one sentence each, with what to do about it."""
    yield from _fallback_warnings(configuration)
    yield from _split_warnings(configuration)
    if _BUDGETS not in configuration.config.plugins:
        yield f"plugins: nothing limits what is spent; {_remedy(_BUDGETS)}."
    yield from _order_warnings(tuple(configuration.config.plugins))
    if _SEMANTIC_CACHE in configuration.config.plugins:
        yield (
            f"plugins.{_SEMANTIC_CACHE}: it may answer a question with the answer to another; "
            "let it serve only what 'llmproxy semantic-cache report' found to be right."
        )
    yield from _provider_warnings(configuration)
    yield from _price_warnings(configuration)
    yield from _body_warnings(configuration.config)


def _report(settings: Settings, mistakes: tuple[str, ...], found: tuple[str, ...]) -> None:
    if settings.json:
        return print_json({"ok": not mistakes, "mistakes": mistakes, "warnings": found})
    for mistake in mistakes:
        click.echo(mistake, err=True)
    for warning in found:
        click.echo(f"warning: {warning}")
    if not mistakes:
        click.echo(f"{settings.config_path or 'The built-in configuration'} is right.")
    return None


def _fallback_warnings(configuration: Configuration) -> Iterator[str]:
    if "on_error" not in configuration.plugins.hooks.callers:
        yield f"plugins: no plugin tries again when a provider fails; {_remedy(_FALLBACK)}."
    for alias, model in configuration.config.models.items():
        if not model.fallbacks:
            yield f"models.{alias}: it has no fallbacks, so that its requests fail when its target does."


def _split_warnings(configuration: Configuration) -> Iterator[str]:
    """For targets and keys with shares that nobody gives them: core takes the first as long as it answers."""
    if _may_split(configuration):
        return
    for alias, model in configuration.config.models.items():
        if sum(target.weight > 0 for target in model.targets) > 1:
            yield f"models.{alias}: nothing splits its requests, so that its first target has all; {_remedy(_ROUTING)}."
    for name, count in Counter(provider for provider, _ in configuration.endpoints).items():
        if count > 1:
            yield f"providers.{name}: nothing splits requests over its keys; {_remedy(_ROUTING)}."


def _may_split(configuration: Configuration) -> bool:
    """Whether a plugin may prefer targets by their shares: of ours one does, a stranger's all may."""
    callers = configuration.plugins.hooks.callers
    choosing = {*callers.get("narrow_targets", ()), *callers.get("choose_provider", ())}
    ours = {each.name for each in configuration.plugins.enabled if each.distribution.startswith(_OUR_DISTRIBUTION)}
    return bool(choosing - (ours - {_ROUTING}))


def _remedy(plugin: str) -> str:
    return f"enable '{plugin}'" if plugin in installed() else f"install and enable one, such as '{plugin}'"


def _order_warnings(names: tuple[str, ...]) -> Iterator[str]:
    cached = names[names.index(_CACHE) + 1 :] if _CACHE in names else ()
    for name in _BEFORE_CACHE:
        if name in cached:
            yield f"plugins.{name}: it stands behind '{_CACHE}', whose hits will skip it; put it before."


def _body_warnings(config: Config) -> Iterator[str]:
    if config.audit.body_key is not None:
        return
    if config.audit.bodies != "none":
        yield "audit.bodies: bodies are kept in clear; set audit.body_key."
    for name, workspace in config.workspaces.items():
        if workspace.bodies not in (None, "none"):
            yield f"workspaces.{name}.bodies: bodies are kept in clear; set audit.body_key."


def _provider_warnings(configuration: Configuration) -> Iterator[str]:
    for name, provider in configuration.providers.items():
        has_own_address = provider.config.base_url is not None
        has_key = provider.config.api_key is not None
        if provider.key_variables and provider.needs_key and not has_key and not has_own_address:
            yield f"providers.{name}: it has no api_key; set it, best as ${{{provider.key_variables[0]}}}."


def _price_warnings(configuration: Configuration) -> Iterator[str]:
    for target in configured_targets(configuration):
        if configuration.listing.prices(target) is None:
            yield f"prices: the price of {target.name} is not known, so that budgets cannot count it; add it."


def _schema() -> dict[str, Any]:  # a JSON document
    plugins: dict[str, type[Section]] = {}
    for name, entry_point in installed().items():
        plugins[name] = getattr(entry_point.load(), "Config", Section)
    return config_schema(plugins, {kind.kind: kind.Config for kind in every_kind()})
