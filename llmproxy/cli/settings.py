"""What every command is told: where the configuration and the state are, and in which form to answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import click

_CONFIG_VARIABLE: Final = "LLMPROXY_CONFIG"
_STATE_VARIABLE: Final = "LLMPROXY_STATE_DIR"
_CONFIG_HERE: Final = Path("config.yaml")
_STATE_HERE: Final = Path(".llmproxy")

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(slots=True)
class Settings:
    """The options that all commands share; they may stand before or after the command's name."""

    config: Path | None = None
    state_dir: Path | None = None
    json: bool = False

    @property
    def config_path(self) -> Path | None:
        """The configuration file: as told, else as the environment says, else `./config.yaml` if it is there."""
        if self.config is not None:
            return self.config
        if named := os.environ.get(_CONFIG_VARIABLE):
            return Path(named)
        return _CONFIG_HERE if _CONFIG_HERE.is_file() else None

    @property
    def state_path(self) -> Path:
        """The state directory: as told, else as the environment says, else `./.llmproxy`."""
        return self.state_dir or Path(os.environ.get(_STATE_VARIABLE) or _STATE_HERE)


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value and parameter.name is not None:
        setattr(context.ensure_object(Settings), parameter.name, value)


# Eager, so that the settings are there when the help page asks which plugins add commands.
_OPTIONS: Final = (
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Configuration file.  [default: {_CONFIG_VARIABLE}, else ./{_CONFIG_HERE} if it is there]",
        expose_value=False,
        is_eager=True,
        callback=_keep,
    ),
    click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        metavar="DIRECTORY",
        help=f"Where state is kept.  [default: {_STATE_VARIABLE}, else ./{_STATE_HERE}]",
        expose_value=False,
        is_eager=True,
        callback=_keep,
    ),
    click.option("--json", is_flag=True, help="Answer in JSON.", expose_value=False, is_eager=True, callback=_keep),
)


def shared_options(command: Command) -> Command:
    """Give a command the options that all have in common."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


pass_settings = click.make_pass_decorator(Settings, ensure=True)
