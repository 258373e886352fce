"""`llmproxy spend`."""

from __future__ import annotations

import csv
import sys

import click

from llmproxy.admin.documents import moment
from llmproxy.admin.spend import GROUPS, SUMS, Spend, groups_of
from llmproxy.cli.offline import read_core, with_database
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Database, SystemClock

_HELP_ON_BY = f"What to sum up for: {', '.join(GROUPS)}, or several of them with commas."


@click.command("spend")
@click.option("--by", default=GROUPS[0], show_default=True, help=_HELP_ON_BY)
@click.option("--since", metavar="TIME", help="A time, in UTC if it does not say, or an age.  [default: the beginning]")
@click.option("--until", metavar="TIME", help="A time, or an age like 24h or 7d.  [default: now]")
@click.option("--workspace", help="Only what this workspace spent.")
@click.option("--csv", "as_csv", is_flag=True, help="Answer in CSV, a line for each group and none for the total.")
@shared_options
@pass_settings
def command(
    settings: Settings, *, by: str, since: str | None, until: str | None, workspace: str | None, as_csv: bool
) -> None:
    """Say what was spent, and on whom.

    Unpriced requests used tokens that no price is known for; their amount is in no sum. Days are UTC days. A request
    with several tags counts for each of them, and in the total once.
    """
    now = SystemClock().now()
    groups = groups_of(by, "--by")
    start = moment(since, now, "--since") if since else None
    end = moment(until, now, "--until") if until else None

    async def report(database: Database) -> Document:
        return await Spend(database, Queries()).report(groups, start, end, workspace=workspace)

    found = with_database(settings, read_core(settings), report)
    if as_csv:
        return _print_csv(found)
    if settings.json:
        return print_json(found)
    rows = [{**row["group"], **row} for row in found["data"]]
    return print_table((*groups, *SUMS), [*rows, {groups[0]: "total", **found["total"]}])


def _print_csv(report: Document) -> None:
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow((*report["by"], *SUMS))
    for row in report["data"]:
        lines.writerow((*row["group"].values(), *(row[name] for name in SUMS)))
