"""`llmproxy reconcile`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

import click

from llmproxy.cli.offline import read_core, with_database
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.errors import BadRequest
from llmproxy.invoices import Charges, InvoiceReader, layout_of
from llmproxy.ledger import day_bounds
from llmproxy.queries import Queries
from llmproxy.reconciliation import Reconciliation, ledger_charges, reconcile
from llmproxy.services import Database

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_COLUMNS: Final = (
    *("date", "model", "invoice_usd", "ledger_usd", "difference_usd", "invoice_input_tokens", "ledger_input_tokens"),
    *("invoice_output_tokens", "ledger_output_tokens", "ledger_unpriced", "is_off"),
)


@click.command("reconcile")
@click.option("--provider", required=True, help="Whose invoice it is, by the provider's name in the configuration.")
@click.option("--file", type=_FILE, required=True, metavar="FILE", help="What the vendor exported, as CSV.")
@click.option("--tolerance", default="0.5%", show_default=True, help="How much a day's model may differ.")
@click.option("--columns", metavar="NAME=COLUMN,…", help="Which columns are date, model, input_tokens, …")
@click.option("--rename", multiple=True, metavar="THEIRS=OURS", help="What the ledger calls a model of the invoice.")
@shared_options
@pass_settings
def command(
    settings: Settings, *, provider: str, file: Path, tolerance: str, columns: str | None, rename: Sequence[str]
) -> None:
    """Compare what is recorded with what a vendor charges.

    By UTC day and model, over the days of the invoice. Ends with status 1 when any of them differs by more than the
    tolerance: by amount, or by tokens where the invoice has no amounts.
    """
    layout = layout_of(_pairs(columns.split(","), "--columns")) if columns else None
    invoice = _read(InvoiceReader(layout, _pairs(rename, "--rename")), file)
    accepted = _part(tolerance)

    async def recorded(database: Database) -> Charges:
        first, last = min(invoice).day, max(place.day for place in invoice)
        span = day_bounds(first, None, None)[0], day_bounds(last, None, None)[1]
        return ledger_charges(await database.fetch(Queries()["provider_spend"], provider, *span))

    found = reconcile(invoice, with_database(settings, read_core(settings), recorded), accepted)
    _print(settings, provider, found)
    sys.exit(1 if found.off else 0)


def _read(reader: InvoiceReader, file: Path) -> Charges:
    try:
        # Spreadsheets put a mark before the first character.
        with file.open(encoding="utf-8-sig", newline="") as lines:
            invoice = reader.read(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file} cannot be read as text in UTF-8.") from error
    if not invoice:
        raise BadRequest(f"{file} has no charges in it.")
    return invoice


def _pairs(texts: Sequence[str], option: str) -> Mapping[str, str]:
    pairs = [text.partition("=") for text in texts]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise BadRequest(f"'{option}' takes a name, '=' and another name.", param=option)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _part(text: str) -> Decimal:
    try:
        number = Decimal(text.removesuffix("%"))
        part = number / 100 if text.endswith("%") else number
        if 0 <= part <= 1:
            return part
    except InvalidOperation:
        pass
    raise BadRequest("'--tolerance' must be a percentage like 0.5%, or a part like 0.005.", param="--tolerance")


def _print(settings: Settings, provider: str, found: Reconciliation) -> None:
    document = found.document()
    if settings.json:
        return print_json({"provider": provider, **document})
    print_table(_COLUMNS, [*document["data"], {"date": "total", **document["total"]}])
    if found.off:
        return click.echo(f"{len(found.off)} of {len(found.lines)} differ by more than the tolerance.", err=True)
    return click.echo("Nothing differs by more than the tolerance.")
