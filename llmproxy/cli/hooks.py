"""`llmproxy hooks`."""

from __future__ import annotations

import click

from llmproxy.cli.offline import offline_services
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import LoggingConfig
from llmproxy.gateway import read_configuration
from llmproxy.hookrules import RULES
from llmproxy.logs import make_log


@click.command("hooks")
@shared_options
@pass_settings
def command(settings: Settings) -> None:
    """Say which plugins run at each hook, in order."""
    services = offline_services(settings, make_log(LoggingConfig()))
    callers = read_configuration(settings.config_path, services).plugins.hooks.callers
    rows = [{"hook": hook, "kind": str(rule.kind), "plugins": callers.get(hook, ())} for hook, rule in RULES.items()]
    if settings.json:
        return print_json(rows)
    return print_table(("hook", "kind", "plugins"), rows)
