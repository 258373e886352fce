"""`llmproxy drill`."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.drill.faults import FAULTS, Fault
from llmproxy.drill.run import Traffic, run_drills
from llmproxy.drill.stage import Stage
from llmproxy.drill.verdict import Drill
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.errors import ConfigError
from llmproxy.gateway import ConfigSource
from llmproxy.plugins import installed

_COLUMNS: Final = ("model", "fault", "struck", "clients", "served_by", "attempts", "added", "verdict")


@click.command("drill")
@click.option("--model", "models", multiple=True, help="A model to drill; left out, every alias.  [repeatable]")
@click.option(
    "--fault", "faults", multiple=True, type=click.Choice(list(FAULTS)), help="A fault; left out, all.  [repeatable]"
)
@click.option("--requests", type=click.IntRange(1, 100), default=4, show_default=True, help="Requests for each fault.")
@click.option(
    "--patience",
    type=click.FloatRange(0, min_open=True),
    default=30,
    show_default=True,
    help="Seconds after which a client gives up.",
)
@click.option("--workspace", help="In whose name to ask, with its models and region; left out, one without limits.")
@click.option("--without", multiple=True, help="A plugin to leave out, such as one that notifies people.  [repeatable]")
@click.option("--database-url", help="A PostgreSQL to make databases on for the time; left out, an embedded one.")
@shared_options
@pass_settings
def command(
    settings: Settings,
    /,
    *,
    models: tuple[str, ...],
    faults: tuple[str, ...],
    requests: int,
    patience: float,
    workspace: str | None,
    without: tuple[str, ...],
    database_url: str | None,
) -> None:
    """Try out what clients would notice if a vendor failed.

    Serves your own configuration, for the time of the drill, with every vendor played by a script, and has whoever
    serves a model fail in each of the usual ways. No vendor is asked, no key of yours used and no row written.

    Ends with status 1 when a model failed its clients that another provider could have served, or when one that was
    named could not be drilled.
    """
    # A gateway that is stopped in the middle of a transaction is nothing to be told of here.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    traffic = Traffic(requests, patience)
    chosen = [FAULTS[name] for name in faults or FAULTS]
    with _database(database_url) as url:
        stage = Stage(
            ConfigSource.read(settings.config_path),
            available=installed(),
            server_url=url,
            workspace=workspace,
            without=without,
            deadline_seconds=patience + 1,
        )
        outcomes = asyncio.run(_drilled(stage, models or tuple(stage.config.models), chosen, traffic))
    _report(settings, outcomes)
    # Who names a model wants to know of it: one that could not be drilled must not pass for one that survived.
    bad = {"failed", "not drilled"} if models else {"failed"}
    sys.exit(1 if any(each.verdict in bad for each in outcomes) else 0)


async def _drilled(stage: Stage, models: Sequence[str], faults: Sequence[Fault], traffic: Traffic) -> Sequence[Drill]:
    if not models or not stage.config.providers:
        raise ConfigError("The configuration has no alias under `models` to drill; name a model with --model.")
    try:
        return await run_drills(stage, models, faults, traffic)
    finally:
        await stage.close()


@contextmanager
def _database(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    # Started by root, the server is another user, who has to enter, and may still be closing files at the end.
    with tempfile.TemporaryDirectory(prefix="llmproxy-drill-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        server = EmbeddedPostgres(Path(name))
        yield server.start()
        server.stop()


def _report(settings: Settings, outcomes: Sequence[Drill]) -> None:
    if settings.json:
        return print_json([asdict(each) for each in outcomes])
    print_table(_COLUMNS, [_row(each) for each in outcomes])
    for sentence in dict.fromkeys(f"{each.verdict}: {each.why}." for each in outcomes if each.why):
        click.echo(sentence)
    return None


def _row(drill: Drill) -> Mapping[str, object]:
    met = [f"{count} {problem}" for problem, count in drill.problems.items()]
    return {
        "model": drill.model,
        "fault": drill.fault,
        "struck": drill.provider,
        "clients": ", ".join([f"{drill.succeeded} of {drill.requests} answered", *met]) if drill.requests else None,
        "served_by": drill.served_by,
        "attempts": drill.attempts or None,
        "added": None if drill.added_seconds is None else f"{drill.added_seconds * 1000:+.0f} ms",
        "verdict": drill.verdict,
    }
