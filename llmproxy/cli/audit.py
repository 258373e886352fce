"""`llmproxy audit`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from llmproxy.admin.audit import AuditTrail, erase_bodies, record_export
from llmproxy.admin.documents import moment
from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_export import ExportReader, export
from llmproxy.audit_log import EMPTY_LOG, LogHead
from llmproxy.audit_notary import Anchor, anchor_document
from llmproxy.audit_reader import Span, database_reader
from llmproxy.audit_verify import Report, verify
from llmproxy.cli.offline import action_log, read_core, with_database
from llmproxy.cli.output import print_json
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.errors import BadRequest
from llmproxy.queries import Queries
from llmproxy.services import Database, SystemClock
from llmproxy.state import StateDirectory

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("audit")
def command() -> None:
    """Prove that what was recorded is as it was recorded."""


@command.command("verify")
@click.option("--since", metavar="TIME", help="A time, or an age like 24h or 7d.  [default: the beginning]")
@click.option("--file", type=_FILE, metavar="FILE", help="Verify an export instead of the database.")
@click.option("--anchor", "anchors", type=_FILE, metavar="FILE", multiple=True, help="What 'audit head' once printed.")
@shared_options
@pass_settings
def verify_command(settings: Settings, since: str | None, file: Path | None, anchors: Sequence[Path]) -> None:
    """Compare every row with the chain, the chain with its signatures, and all with the signed log.

    Ends with status 1 when anything was changed, added or removed; the first row concerned is named.
    """
    if file and since:
        raise click.UsageError("An export says itself when it begins; leave --since out.")
    heads = [_read_anchor(path) for path in anchors]
    report = (
        _verify_file(settings, file, heads)
        if file
        else _verify_database(settings, Span(_moment(since, "--since")), heads)
    )
    _print(settings, report)
    sys.exit(1 if report.problem_count else 0)


@command.command("head")
@shared_options
@pass_settings
def head(settings: Settings) -> None:
    """Print the head of the signed log, to be kept where nobody who may change the database can change it."""

    async def read(database: Database) -> LogHead:
        row = await database.fetch_row(Queries()["head_of_log"])
        return LogHead(**row) if row else EMPTY_LOG

    click.echo(anchor_document(with_database(settings, read_core(settings), read)), nl=False)


@command.command("export")
@click.option("--since", metavar="TIME", help="A time, or an age like 24h or 7d.  [default: the beginning]")
@click.option("--until", metavar="TIME", help="A time, or an age.  [default: now]")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where to write to.")
@shared_options
@pass_settings
def export_command(settings: Settings, since: str | None, until: str | None, file: Path) -> None:
    """Write what was recorded into a file, with all that it takes to verify it there."""
    span = Span(_moment(since, "--since"), _moment(until, "--until") or SystemClock().now())
    config, keys, queries = read_core(settings), _keys(settings), Queries()
    actions = action_log(settings, config, queries, SystemClock())

    async def write(database: Database) -> None:
        with file.open("xb") as target:
            await record_export(database, actions, span)
            async with database_reader(database, queries, span) as reader:
                async for line in export(reader, keys):
                    target.write(line)

    try:
        with_database(settings, config, write)
    except FileExistsError as error:
        raise BadRequest(f"{file} is there already; choose another name.") from error
    click.echo(f"Written to {file}; 'llmproxy audit verify --file {file}' verifies it.")


@command.command("erase")
@click.option("--workspace", required=True, help="Whose bodies to erase.")
@click.option("--user", help="Only those of this user.")
@shared_options
@pass_settings
def erase(settings: Settings, workspace: str, user: str | None) -> None:
    """Erase the kept bodies of a workspace's requests, or of one user's. The audit verifies as before."""
    config, queries = read_core(settings), Queries()
    actions = action_log(settings, config, queries, SystemClock())

    async def run(database: Database) -> int:
        return await erase_bodies(database, queries, actions, workspace, user)

    erased = with_database(settings, config, run)
    if settings.json:
        return print_json({"workspace": workspace, "requests": erased})
    return click.echo(f"The bodies of {erased} requests are erased.")


def _verify_database(settings: Settings, span: Span, anchors: Sequence[LogHead]) -> Report:
    keys, anchor = _keys(settings), StateDirectory(settings.state_path).audit_anchor

    async def run(database: Database) -> Report:
        return await AuditTrail(database, Queries(), keys, anchor).verify(span, anchors)

    return with_database(settings, read_core(settings), run)


def _verify_file(settings: Settings, file: Path, anchors: Sequence[LogHead]) -> Report:
    keys = _keys(settings)
    with file.open("rb") as lines:
        return asyncio.run(verify(ExportReader(lines, keys), keys, anchors))


def _keys(settings: Settings) -> AuditKeys:
    return StateDirectory(settings.state_path).audit_keys(read_core(settings).audit)


def _read_anchor(path: Path) -> LogHead:
    try:
        kept = Anchor(path).read()
    except ValueError as error:
        raise BadRequest(f"{path} is not what 'llmproxy audit head' printed.") from error
    return kept or EMPTY_LOG


def _moment(text: str | None, option: str) -> datetime | None:
    return moment(text, SystemClock().now(), option) if text else None


def _print(settings: Settings, report: Report) -> None:
    if settings.json:
        return print_json(report.document())
    for problem in report.problems:
        click.echo(problem.message, err=True)
    if report.problem_count > len(report.problems):
        click.echo(f"… and {report.problem_count - len(report.problems)} more.", err=True)
    bounds = [f"{name} {time:%Y-%m-%d %H:%M:%S}" for name, time in _times(report) if time]
    click.echo(f"{report.requests} requests in {report.chains} chains {'; '.join(bounds)}: {_verdict(report)}")
    if report.ledger_only:
        click.echo(f"Of {report.ledger_only} more only the ledger: the rest is past its retention.")
    if report.uncovered:
        click.echo(f"Of these the last {report.uncovered} are in no entry of the log yet.")
    at = f" of {report.ended_at:%Y-%m-%d %H:%M:%S}" if report.ended_at else ""
    return click.echo(f"The log's head is entry {report.head.number}{at}, {report.head.entry_sha256.hex()}.")


def _times(report: Report) -> Sequence[tuple[str, datetime | None]]:
    return ("since", report.span.since or report.began_at), ("until", report.span.until)


def _verdict(report: Report) -> str:
    if report.problem_count:
        return f"{report.problem_count} problems."
    return "as they were recorded."
