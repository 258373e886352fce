"""`llmproxy check --residency`."""

from __future__ import annotations

import asyncio
from typing import Final

from llmproxy.cli.offline import offline_services
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings
from llmproxy.config import LoggingConfig, WorkspaceConfig
from llmproxy.exchange import Target
from llmproxy.gateway import read_configuration
from llmproxy.keys import DEFAULT_WORKSPACE
from llmproxy.logs import make_log
from llmproxy.reach import Reach, reaches
from llmproxy.request import Document

_COLUMNS: Final = ("workspace", "model", "reaches")


def print_reach(settings: Settings) -> None:
    """Print where every workspace of the configuration could ever send each model. Raises an LLMProxyError."""
    found = asyncio.run(_found(settings))
    if settings.json:
        return print_json([_document(reach) for reach in found])
    rows = [{"workspace": reach.workspace, "model": reach.model, "reaches": _told(reach)} for reach in found]
    return print_table(_COLUMNS, rows)


async def _found(settings: Settings) -> list[Reach]:
    services = offline_services(settings, make_log(LoggingConfig()))
    configuration = read_configuration(settings.config_path, services)
    workspaces = configuration.config.workspaces or {DEFAULT_WORKSPACE: WorkspaceConfig()}
    return [reach async for reach in reaches(configuration, workspaces, services.clock.now())]


def _told(reach: Reach) -> str:
    if reach.refusal:
        return f"nowhere: {reach.refusal}"
    # The keys of a provider are targets of their own, all in one place.
    return ", ".join(dict.fromkeys(_place(target) for target in reach.targets))


def _place(target: Target) -> str:
    keeps = ", keeps nothing" if target.zero_retention else ""
    return f"{target.name} ({target.region or 'region unknown'}{keeps})"


def _document(reach: Reach) -> Document:
    places = dict.fromkeys((target.name, target.region, target.zero_retention) for target in reach.targets)
    targets = [dict(zip(("model", "region", "zero_retention"), place, strict=True)) for place in places]
    return {"workspace": reach.workspace, "model": reach.model, "targets": targets, "refusal": reach.refusal}
