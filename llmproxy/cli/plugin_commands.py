"""The commands that enabled plugins add."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from llmproxy.cli.offline import offline_services
from llmproxy.cli.running_gateway import ConfiguredGateway
from llmproxy.cli.settings import Settings
from llmproxy.config import LoggingConfig
from llmproxy.config_document import load_config
from llmproxy.logs import make_log
from llmproxy.plugins import Plugins


class PluginCommands(click.Group):
    """Where plugins add their commands.

    Args:
        gateway: Whom those ask that need a gateway that runs.
    """

    def __init__(self, gateway: ConfiguredGateway) -> None:
        super().__init__()
        self.gateway = gateway


def plugin_commands(settings: Settings) -> Mapping[str, click.Command]:
    """The commands by name; none without a configuration file. Raises an LLMProxyError."""
    if settings.config_path is None:
        return {}
    config, document = load_config(settings.config_path, os.environ)
    names = document.names("plugins")
    if not names:
        return {}
    services = offline_services(settings, make_log(LoggingConfig()))

    def report(plugin: str, hook: str, error: Exception) -> None:
        services.log.error("plugin_failed", plugin=plugin, hook=hook, error=repr(error))

    plugins = Plugins.load(names, document, services, on_failure=report)
    document.raise_if_mistaken()
    group = PluginCommands(ConfiguredGateway(config.server, settings.state_path, os.environ))
    plugins.register_commands(group)
    return group.commands
