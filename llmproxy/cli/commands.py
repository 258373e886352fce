"""The command group: which commands there are, and how their errors end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Final, NoReturn

import click

from llmproxy import __version__
from llmproxy.cli.settings import Settings, shared_options
from llmproxy.errors import LLMProxyError, StorageError

# The summaries stand here, so that the help page need not import the modules; a test holds them to the commands.
SUMMARIES: Final[Mapping[str, str]] = {
    "serve": "Serve requests until told to stop.",
    "check": "Check a configuration file, and say what is risky about it.",
    "drill": "Try out what clients would notice if a vendor failed.",
    "migrate": "Bring the database's schema up to date.",
    "keys": "Make, list and revoke virtual keys.",
    "spend": "Say what was spent, and on whom.",
    "ledger": "Take what is recorded of money elsewhere.",
    "reprice": "Price what is recorded anew, by the prices that are known now.",
    "reconcile": "Compare what is recorded with what a vendor charges.",
    "requests": "Look at what was asked and how it went.",
    "audit": "Prove that what was recorded is as it was recorded.",
    "models": "List the models that requests can name, and what is known of them.",
    "prices": "Show what models cost, and which have no price.",
    "plugins": "List the installed plugins, and which are enabled.",
    "hooks": "Say which plugins run at each hook, in order.",
    "version": "Say which version this is.",
}


class CommandLine(click.Group):
    """Our own commands, each imported when it is first needed, and those of enabled plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands; a configuration that is wrong hides the plugins', not ours."""
        try:
            added = _plugin_commands(ctx)
        except LLMProxyError:
            added = {}
        return [*SUMMARIES, *sorted(added.keys() - SUMMARIES.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name. Raises an LLMProxyError when it has to be a plugin's and those cannot be had."""
        if cmd_name not in SUMMARIES:
            return _plugin_commands(ctx).get(cmd_name)
        command: click.Command = import_module(f"llmproxy.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with; a misspelt one is a usage error with the nearest name."""
        name = args[0]
        if not (name.startswith("-") or ctx.resilient_parsing or self.get_command(ctx, name)):
            ctx.fail(self._why_not(ctx, name))
        return super().resolve_command(ctx, args)

    def _why_not(self, ctx: click.Context, name: str) -> str:
        """Why there is no such command: it is misspelt, or its plugin is not enabled."""
        plugins = import_module("llmproxy.plugins")
        brought: Mapping[str, str] = plugins.declared_commands(plugins.installed())
        if name in brought:
            file = ctx.ensure_object(Settings).config_path or "config.yaml"
            return f"The command {name!r} comes with the plugin {brought[name]!r}; enable it under 'plugins' in {file}."
        near = get_close_matches(name, [*self.list_commands(ctx), *brought], n=1)
        return f"There is no command {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands and their summaries, without importing ours."""
        rows = [(name, SUMMARIES.get(name) or self._summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _summary(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str() if command else ""


def _plugin_commands(ctx: click.Context) -> Mapping[str, click.Command]:
    settings = ctx.ensure_object(Settings)
    if settings.config_path is None:
        return {}
    commands: Mapping[str, click.Command] = import_module("llmproxy.cli.plugin_commands").plugin_commands(settings)
    return commands


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llmproxy", message="%(prog)s %(version)s")
@shared_options
def command_line() -> None:
    """One OpenAI-compatible gateway in front of every model vendor."""


def main() -> NoReturn:
    """Run the command that the process was started with; a failure is a sentence on standard error and status 1."""
    try:
        command_line()
    except StorageError as error:
        # Nothing is logged here that could say why.
        click.echo(error.for_operator, err=True)
    except LLMProxyError as error:
        click.echo(error.message, err=True)
    sys.exit(1)
