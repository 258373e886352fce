"""`llmproxy ledger`."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

import click

from llmproxy.admin.documents import moment
from llmproxy.cli.offline import read_core, with_database
from llmproxy.cli.output import print_json
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.errors import BadRequest
from llmproxy.ledger_export import FORMATS, export_ledger
from llmproxy.queries import Queries
from llmproxy.services import Database, SystemClock


@click.group("ledger")
def command() -> None:
    """Take what is recorded of money elsewhere."""


@command.command("export")
@click.option("--since", metavar="TIME", help="A time, in UTC if it does not say, or an age.  [default: the beginning]")
@click.option("--until", metavar="TIME", help="A time, or an age like 24h or 7d.  [default: now]")
@click.option("--format", "form", type=click.Choice(tuple(FORMATS)), default="csv", show_default=True)
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where to write to.")
@shared_options
@pass_settings
def export(settings: Settings, *, since: str | None, until: str | None, form: str, file: Path) -> None:
    """Write every entry of the ledger into a file, as it is now.

    Amounts are text, exact to the last digit. However many entries there are, few are in memory at a time.
    """
    now = SystemClock().now()
    start = moment(since, now, "--since") if since else None
    end = moment(until, now, "--until") if until else now
    try:
        written = _write(settings, start, end, form, file)
    except FileExistsError as error:
        raise BadRequest(f"{file} is there already; choose another name.") from error
    if settings.json:
        return print_json({"file": str(file), "format": form, "entries": written})
    return click.echo(f"{written} entries written to {file}.")


def _write(settings: Settings, since: datetime | None, until: datetime, form: str, file: Path) -> int:
    with file.open("xb") as target:
        rows = FORMATS[form](target)

        async def write(database: Database) -> int:
            return await export_ledger(database, Queries(), rows, since, until)

        try:
            return with_database(settings, read_core(settings), write)
        except BaseException:
            # While the file is still open, or the library complains of it when it goes; what is in it goes too.
            with suppress(Exception):
                rows.close()
            # Half a ledger looks like a whole one.
            file.unlink()
            raise
