"""`llmproxy plugins`."""

from __future__ import annotations

import click

from llmproxy.cli.offline import read_core
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.plugins import distribution_of, installed


@click.command("plugins")
@shared_options
@pass_settings
def command(settings: Settings) -> None:
    """List the installed plugins, and which are enabled.

    The enabled ones come first, in the order in which they run.
    """
    found, names = installed(), tuple(read_core(settings).plugins)
    order = [*(name for name in names if name in found), *sorted(found.keys() - set(names))]
    rows = [{"name": each, "enabled": each in names, "distribution": distribution_of(found[each])} for each in order]
    if settings.json:
        return print_json(rows)
    return print_table(("name", "enabled", "distribution"), rows)
