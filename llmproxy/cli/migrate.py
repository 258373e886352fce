"""`llmproxy migrate`."""

from __future__ import annotations

import asyncio

import click

from llmproxy.cli.offline import database_server, offline_services
from llmproxy.cli.output import print_json
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import LoggingConfig
from llmproxy.gateway import Configuration, read_configuration
from llmproxy.logs import make_log
from llmproxy.migrate import Component, Migration, core_component, migrate
from llmproxy.state import StateDirectory


@click.command("migrate")
@shared_options
@pass_settings
def command(settings: Settings) -> None:
    """Bring the database's schema up to date.

    Applies the migrations of the gateway and of the enabled plugins that are missing; harmless to repeat.
    """
    services = offline_services(settings, make_log(LoggingConfig()))
    configuration = read_configuration(settings.config_path, services)
    with database_server(configuration.config, StateDirectory(settings.state_path)) as url:
        applied = asyncio.run(migrate(url, components(configuration)))
    names = [_name(migration) for migration in applied]
    if settings.json:
        print_json({"applied": names})
    else:
        click.echo("\n".join(f"Applied {name}." for name in names) or "The schema is up to date.")


def components(configuration: Configuration) -> list[Component]:
    """Whose migrations a configuration needs: the gateway's own, then each enabled plugin's."""
    plugins = configuration.plugins.enabled
    return [core_component(), *(Component(each.name, each.migrations) for each in plugins if each.migrations)]


def _name(migration: Migration) -> str:
    return f"{migration.component}/{migration.name}"
