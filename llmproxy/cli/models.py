"""`llmproxy models`."""

from __future__ import annotations

import click

from llmproxy.cli.offline import offline_services
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import LoggingConfig
from llmproxy.gateway import read_configuration
from llmproxy.logs import make_log


@click.command("models")
@shared_options
@pass_settings
def command(settings: Settings) -> None:
    """List the models that requests can name.

    Where a provider passes any name on, those that its vendor is known for are listed.
    """
    services = offline_services(settings, make_log(LoggingConfig()))
    catalogue = read_configuration(settings.config_path, services).catalogue
    names = catalogue.every_name()
    rows = [{"model": name, "targets": [target.name for target in catalogue.targets(name)]} for name in names]
    if settings.json:
        return print_json(rows)
    return print_table(("model", "targets"), rows)
