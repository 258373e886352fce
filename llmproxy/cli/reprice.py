"""`llmproxy reprice`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import click

from llmproxy.accounting import Accounting
from llmproxy.cli.offline import action_log, offline_services, with_database
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.config import PriceConfig
from llmproxy.config_document import load_config
from llmproxy.errors import BadRequest
from llmproxy.exchange import Target
from llmproxy.gateway import Configuration, read_configuration
from llmproxy.ledger import Pricer
from llmproxy.logs import make_log
from llmproxy.pricing import PriceBook
from llmproxy.queries import Queries
from llmproxy.repricing import Repricing, RepricingReport
from llmproxy.services import Database, SystemClock
from llmproxy.usage import Cost, Usage

_DAY: Final = click.DateTime(formats=["%Y-%m-%d"])
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_COLUMNS: Final = (
    *("model", "entries", "unpriced_entries", "recorded_usd", "repriced_usd", "difference_usd", "adjustments"),
)


@click.command("reprice")
@click.option("--from", "since", type=_DAY, required=True, metavar="DATE", help="The first day (UTC) to reprice.")
@click.option("--to", "until", type=_DAY, required=True, metavar="DATE", help="The first day (UTC) not to reprice.")
@click.option("--model", "pattern", default="*", metavar="PATTERN", help="Only the provider/model that match.")
@click.option(
    "--prices", "file", type=_FILE, metavar="FILE", help="Its `prices:` hold in place of the configuration's."
)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@shared_options
@pass_settings
def command(
    settings: Settings, *, since: datetime, until: datetime, pattern: str, file: Path | None, dry_run: bool
) -> None:
    """Price what is recorded anew, by the prices that are known now.

    Each request is priced as of the time at which it was made. What differs is added to the ledger as an adjustment of
    its day; nothing that is recorded changes, and doing so twice adds nothing. Budgets count the days anew.
    """
    start, end = since.replace(tzinfo=UTC), until.replace(tzinfo=UTC)
    if start >= end:
        raise BadRequest("'--to' must be a later day than '--from'.", param="--to")
    log = make_log(load_config(settings.config_path, os.environ)[0].logging)
    configuration = read_configuration(settings.config_path, offline_services(settings, log))
    prices = load_config(file, os.environ)[0].prices if file else configuration.config.prices
    queries = Queries()
    actions = action_log(settings, configuration.config, queries, SystemClock())

    async def run(database: Database) -> RepricingReport:
        price = _pricer(configuration, prices)
        repricing = Repricing(database, queries, price, lambda model: fnmatchcase(model, pattern), actions)
        return await repricing.run(start, end, dry_run=dry_run)

    _print(settings, with_database(settings, configuration.config, run), dry_run=dry_run)


def _pricer(configuration: Configuration, prices: Sequence[PriceConfig]) -> Pricer:
    accounting = Accounting(configuration.endpoints, PriceBook(prices), SystemClock())
    # Keys of one provider cost the same, and the ledger does not tell them apart.
    credentials = dict(configuration.endpoints.keys())

    def price(target: Target, usage: Usage, at: datetime) -> Cost:
        return accounting.cost(replace(target, credential=credentials.get(target.provider)), usage, at)

    return price


def _print(settings: Settings, report: RepricingReport, *, dry_run: bool) -> None:
    document = report.document()
    if settings.json:
        return print_json({**document, "dry_run": dry_run, "recounted_budgets": report.recounted})
    print_table(_COLUMNS, [*document["data"], {"model": "total", **document["total"]}])
    adjustments = report.total.adjustments
    if dry_run:
        return click.echo(f"Nothing was changed; {adjustments} adjustments would be.")
    return click.echo(f"{adjustments} adjustments were added.")
