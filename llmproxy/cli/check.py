"""`llmproxy check`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import click

from llmproxy.cli.exposure import exposures
from llmproxy.cli.offline import offline_services
from llmproxy.cli.output import print_json
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import Config, LoggingConfig, Section
from llmproxy.config_schema import config_schema
from llmproxy.errors import ConfigError, LLMProxyError
from llmproxy.exchange import Target
from llmproxy.gateway import Configuration, read_configuration
from llmproxy.logs import make_log
from llmproxy.plugins import installed
from llmproxy.providers.builtin import BuiltinProviders
from llmproxy.services import SystemClock

# Advice on our own plugins; a stranger's speak for themselves with `requires` and `after`.
_BUDGETS: Final = "budgets"
_FALLBACK: Final = "fallback"
_CACHE: Final = "caching"
_BEFORE_CACHE: Final = ("redaction", "rate_limits", _BUDGETS)


@click.command("check")
@click.option("--schema", is_flag=True, help="Print the file's JSON Schema, for editors, and check nothing.")
@shared_options
@pass_settings
def command(settings: Settings, schema: bool) -> None:  # noqa: FBT001 - click hands a flag over so
    """Check a configuration file, and say what is risky about it.

    Every mistake is printed, and ends it with status 1; warnings do not.
    """
    if schema:
        print_json(_schema())
        sys.exit(0)
    services = offline_services(settings, make_log(LoggingConfig()))
    try:
        configuration = read_configuration(settings.config_path, services)
        config = configuration.config
        mistakes = tuple(exposures(config.server.host, config, os.environ.get("LLMPROXY_ADMIN_KEY")))
        found = tuple(warnings(configuration, SystemClock().now()))
    except LLMProxyError as error:
        mistakes = error.mistakes if isinstance(error, ConfigError) else (error.message,)
        found = ()
    _report(settings, mistakes, found)
    sys.exit(1 if mistakes else 0)


def warnings(configuration: Configuration, now: datetime) -> Iterator[str]:
    """What is allowed and may still hurt: one sentence each, with what to do about it."""
    yield from _fallback_warnings(configuration)
    if _BUDGETS not in configuration.config.plugins:
        yield f"plugins: nothing limits what is spent; {_remedy(_BUDGETS)}."
    yield from _order_warnings(tuple(configuration.config.plugins))
    yield from _provider_warnings(configuration)
    yield from _price_warnings(configuration, now)


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


def _remedy(plugin: str) -> str:
    return f"enable '{plugin}'" if plugin in installed() else f"install and enable one, such as '{plugin}'"


def _order_warnings(names: tuple[str, ...]) -> Iterator[str]:
    cached = names[names.index(_CACHE) + 1 :] if _CACHE in names else ()
    for name in _BEFORE_CACHE:
        if name in cached:
            yield f"plugins.{name}: it stands behind '{_CACHE}', whose hits will skip it; put it before."


def _provider_warnings(configuration: Configuration) -> Iterator[str]:
    for name, provider in configuration.providers.items():
        has_own_address = provider.config.base_url is not None
        if provider.key_variables and provider.config.api_key is None and not has_own_address:
            yield f"providers.{name}: it has no api_key; set it, best as ${{{provider.key_variables[0]}}}."


def _price_warnings(configuration: Configuration, now: datetime) -> Iterator[str]:
    """For models that the file names: whatever else clients ask for is not known beforehand."""
    catalogue, providers = configuration.catalogue, configuration.providers
    named = [*configuration.config.models]
    named += [f"{name}/{model}" for name, provider in providers.items() for model in provider.config.models]
    targets = dict.fromkeys(target for name in named for target in catalogue.targets(name))
    unpriced = (target.name for target in targets if not _is_priced(configuration, target, now))
    for name in dict.fromkeys(unpriced):
        yield f"prices: the price of {name} is not known, so that budgets cannot count it; add it."


def _is_priced(configuration: Configuration, target: Target, now: datetime) -> bool:
    provider = configuration.providers[target.provider]
    price_model = provider.price_model(target.model)
    return configuration.prices.prices(target, provider.price_provider, now, price_model=price_model) is not None


def _schema() -> dict[str, Any]:  # a JSON document
    plugins: dict[str, type[Section]] = {}
    for name, entry_point in installed().items():
        plugins[name] = getattr(entry_point.load(), "Config", Section)
    kinds = BuiltinProviders().register_providers(Config())
    return config_schema(plugins, {kind.kind: kind.Config for kind in kinds})
