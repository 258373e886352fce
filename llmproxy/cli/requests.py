"""`llmproxy requests`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import click

from llmproxy.admin.documents import MAX_LIMIT
from llmproxy.admin.requests import RequestFilter, RequestLog
from llmproxy.body_cipher import body_cipher
from llmproxy.cli.offline import read_core, with_database
from llmproxy.cli.output import cell, print_json
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Database, SystemClock

_POLL_SECONDS: Final = 1.0
# A request is recorded when it ends, so one that began this long ago may still turn up.
_LOOK_BACK: Final = timedelta(minutes=30)
_FROM_A_CACHE: Final = ("hit", "semantic", "coalesced")


@click.group("requests")
def command() -> None:
    """Look at what was asked and how it went."""


@command.command("tail")
@click.option("-n", "--lines", "count", type=click.IntRange(0, MAX_LIMIT), default=10, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on, and show each request once it has ended.")
@shared_options
@pass_settings
def tail(settings: Settings, count: int, follow: bool) -> None:  # noqa: FBT001 - click hands a flag over so
    """Show the latest requests, the newest last; with --json one object a line."""

    async def show(database: Database) -> None:
        log = RequestLog(database, Queries())
        latest = await log.find(RequestFilter(limit=MAX_LIMIT))
        _print_lines(settings, latest["data"][:count][::-1])
        if follow:
            await _follow(settings, log, {row["id"] for row in latest["data"]})

    with_database(settings, read_core(settings), show)


@command.command("show")
@click.argument("request_id", metavar="ID")
@shared_options
@pass_settings
def show(settings: Settings, request_id: str) -> None:
    """Show one request: what it cost, who served it, who did not, and why."""
    config = read_core(settings)

    async def read(database: Database) -> tuple[Document, Document]:
        log = RequestLog(database, Queries(), body_cipher(config.audit))
        return await log.get(request_id), await log.explain(request_id)

    request, explanation = with_database(settings, config, read)
    if settings.json:
        return print_json({**request, "explanation": explanation})
    return _print_request(request, explanation)


async def _follow(settings: Settings, log: RequestLog, seen: set[object]) -> None:
    clock = SystemClock()
    while True:
        await clock.sleep(_POLL_SECONDS)
        latest = await log.find(RequestFilter(since=clock.now() - _LOOK_BACK, limit=MAX_LIMIT))
        fresh = [row for row in latest["data"][::-1] if row["id"] not in seen]
        _print_lines(settings, fresh)
        seen.update(row["id"] for row in fresh)


def _print_lines(settings: Settings, rows: Sequence[Document]) -> None:
    for row in rows:
        if settings.json:
            print_json(row, is_line=True)
        else:
            click.echo(_line(row))


def _line(row: Document) -> str:
    cost = f"{row['cost_usd']} USD" if row["cost_usd"] is not None else "no cost"
    facts = (
        row["id"],
        cell(row["admitted_at"]),
        row["outcome"],
        row["workspace"],
        row["request_model"],
        _answered(row),
    )
    asked = [f"for {row['origin']}"] if row["origin"] else []
    return "  ".join([*map(cell, facts), f"{row['input_tokens']}+{row['output_tokens']} tokens", cost, *asked])


def _answered(row: Document) -> str:
    """Who answered; the target of a request that was refused before it was sent has not."""
    if row["cache"] in _FROM_A_CACHE and row["provider_name"] is None:
        return f"a cache ({row['cache']})"
    is_unsent = row["outcome"] == "refused" and row["cost_provenance"] is None
    if row["provider_name"] is None or is_unsent:
        return "nobody"
    return f"{row['provider_name']}/{row['response_model']}"


def _print_request(request: Document, explanation: Document) -> None:
    click.echo(explanation["summary"])
    for name in ("id", "admitted_at", "workspace", "key_id", "feature", "user", "request_model", "http_status"):
        click.echo(f"  {name.replace('_', ' ')}: {cell(request[name])}")
    if request["origin"]:
        click.echo(f"  asked by: the plugin {request['origin']}, for the request {request['parent_id']}")
    for attempt in explanation["attempts"]:
        cost = f" ({attempt['cost_usd']} USD)" if attempt["cost_usd"] is not None else ""
        click.echo(f"attempt {attempt['number']}{cost}: {attempt['model']} {_ending(attempt)}")
    for decision in explanation["decisions"]:
        click.echo(f"{decision['by']}: {decision['what']}: {decision['why']}")


def _ending(attempt: Document) -> str:
    why = attempt["error_message"]
    if not attempt["is_sent"]:
        return f"was not asked: {why or 'the request had ended.'}"
    return f"failed: {why}" if why else "answered."
