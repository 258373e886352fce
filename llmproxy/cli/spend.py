"""`llmproxy spend`."""

from __future__ import annotations

from typing import Final

import click

from llmproxy.admin.documents import moment
from llmproxy.admin.spend import GROUPS, Spend
from llmproxy.cli.offline import read_core, with_database
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.exchange import Document
from llmproxy.queries import Queries
from llmproxy.services import Database, SystemClock

_SUMS: Final = ("requests", "input_tokens", "output_tokens", "amount_usd", "unpriced_requests", "estimated_requests")


@click.command("spend")
@click.option("--by", type=click.Choice(GROUPS), default=GROUPS[0], show_default=True, help="What to sum up for.")
@click.option("--since", metavar="TIME", help="A time, or an age like 24h or 7d.  [default: the beginning]")
@click.option("--until", metavar="TIME", help="A time, or an age.  [default: now]")
@shared_options
@pass_settings
def command(settings: Settings, by: str, since: str | None, until: str | None) -> None:
    """Say what was spent, and on whom.

    Unpriced requests used tokens that no price is known for; their amount is in no sum.
    """
    now = SystemClock().now()
    start = moment(since, now, "--since") if since else None
    end = moment(until, now, "--until") if until else None

    async def report(database: Database) -> Document:
        return await Spend(database, Queries()).report(by, start, end)

    found = with_database(settings, read_core(settings), report)
    if settings.json:
        return print_json(found)
    rows = [{by: row["group"], **row} for row in found["data"]]
    return print_table((by, *_SUMS), [*rows, {by: "total", **found["total"]}])
