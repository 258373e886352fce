"""`llmproxy version`."""

from __future__ import annotations

import platform

import click

from llmproxy import __version__
from llmproxy.cli.output import print_json
from llmproxy.cli.settings import Settings, pass_settings, shared_options


@click.command("version")
@shared_options
@pass_settings
def command(settings: Settings) -> None:
    """Say which version this is."""
    if settings.json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        click.echo(f"llmproxy {__version__}")
