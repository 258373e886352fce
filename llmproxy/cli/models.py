"""`llmproxy models`."""

from __future__ import annotations

from typing import Final

import click

from llmproxy.cli.offline import offline_services
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import LoggingConfig
from llmproxy.gateway import read_configuration
from llmproxy.logs import make_log

_COLUMNS: Final = (
    *("model", "targets", "region", "context_window_tokens", "input_usd_per_mtok", "output_usd_per_mtok"),
    *("input_modalities", "retires_on"),
)


@click.command("models")
@shared_options
@pass_settings
def command(settings: Settings) -> None:
    """List the models that requests can name, and what is known of them.

    Where a provider passes any name on, those that its vendor is known for are listed.
    """
    services = offline_services(settings, make_log(LoggingConfig()))
    configuration = read_configuration(settings.config_path, services)
    catalogue, listing = configuration.catalogue, configuration.listing
    rows = [{"model": name, **listing.describe(catalogue.targets(name))} for name in catalogue.every_name()]
    if settings.json:
        return print_json(rows)
    return print_table(_COLUMNS, rows)
