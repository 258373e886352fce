"""What was spent, and on whom: sums over the ledger, exact to the last digit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from llmproxy.admin.documents import shown
from llmproxy.errors import BadRequest
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Connection, Database, Row

GROUPS: Final = ("workspace", "feature", "user", "model", "key", "provider", "tag", "day", "prompt_version")
SUMS: Final = (
    *("requests", "input_tokens", "output_tokens", "amount_usd", "estimated_usd", "assumed_usd", "adjusted_usd"),
    *("unpriced_requests", "unpriced_attempts", "estimated_requests"),
)
_NOTHING: Final[Document] = {name: "0" if name.endswith("_usd") else 0 for name in SUMS}
# A day's sums are kept by one of the dimensions, beside what all of them have.
_DIMENSIONS: Final = ("feature", "key", "user")
_SUMMED: Final = frozenset(("workspace", "provider", "model", "day"))


def groups_of(text: str, param: str) -> Sequence[str]:
    """What to sum up for, from a comma list of `GROUPS`. Raises BadRequest that names the parameter."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = next((name for name in names if name not in GROUPS), None)
    if unknown is not None:
        raise BadRequest(f"'{param}' takes any of {', '.join(GROUPS)}, separated by commas.", param=param)
    return names


class Spend:
    """The ledger in Postgres, read only."""

    def __init__(self, database: Database, queries: Queries) -> None:
        self._database = database
        self._queries = queries

    async def report(
        self,
        by: Sequence[str],
        since: datetime | None,
        until: datetime | None,
        *,
        workspace: str | None = None,
        limit: int | None = None,
    ) -> Document:
        """Sums for each of `by`, some of `GROUPS`, the largest first; `total` covers those beyond `limit` too.

        Amounts are in US dollars, as text. What is unpriced has no amount, and is in no sum but its count. Days are UTC
        days. A request with several tags is in the group of each, and in the total once. Raises StorageError.

        Args:
            workspace: Whose spend alone; None for everybody's.
            limit: The most groups to give; None for all.
        """
        # One more than wanted, to know whether there are more, and the total, which is there unless nothing is.
        rows_wanted = None if limit is None else limit + 2
        whose = () if workspace is None else (workspace,)
        async with self._database.transaction() as connection:
            # The sums that there are and the rows beside them, as of one moment.
            await connection.execute(self._queries["ledger_snapshot"])
            days = await self._summed_days(connection, by, since, until)
            query = spend_query(self._queries, by, of_workspace=workspace is not None, has_sums=bool(days))
            summed = (days, *_bounds(days)) if days else ()
            rows = await connection.fetch(query, since, until, rows_wanted, *whose, *summed)
        groups = [_group(by, row) for row in rows if not row["is_total"]]
        return {
            "by": list(by),
            "workspace": workspace,
            "since": since,
            "until": until,
            "time_zone": "UTC",
            "data": groups[:limit],
            "total": next((_sums(row) for row in rows if row["is_total"]), _NOTHING),
            "has_more": limit is not None and len(groups) > limit,
        }

    async def _summed_days(
        self, connection: Connection, by: Sequence[str], since: datetime | None, until: datetime | None
    ) -> Sequence[date]:
        """Days in a row that need not be read row by row; none when what is asked for is not summed up."""
        if _dimension(by) is None:
            return ()
        row = await connection.fetch_row(self._queries["summed_days"], since, until)
        return row["days"] if row else ()


def spend_query(queries: Queries, by: Sequence[str], *, of_workspace: bool, has_sums: bool = False) -> str:
    """The query that sums up for `by`.

    Its arguments are the span, how many rows, the workspace if it is of one, and with sums the days that are to be
    taken from those, and the time that no row is to be taken from.
    """
    condition = queries["spend_of_workspace"] if of_workspace else ""
    days, first, before = (f"${number + of_workspace}" for number in (4, 5, 6))
    return queries["spend"].format(
        names=", ".join(_alias(number) for number, _ in enumerate(by)),
        groups=_groups(queries, "spend_by", by),
        joins="\n".join(queries[f"spend_join_{name}"] for name in by if f"spend_join_{name}" in queries),
        is_first=queries["spend_first_tag"] if "tag" in by else "true",
        charged=queries["charged"],
        figures=queries["figures"],
        condition=condition,
        rest=queries["spend_beside_sums"].format(first=first, before=before) if has_sums else "",
        sums=_sums_query(queries, by, days, condition) if has_sums else "",
    )


def _sums_query(queries: Queries, by: Sequence[str], days: str, condition: str) -> str:
    groups = _groups(queries, "spend_sums_by", by)
    return queries["spend_sums"].format(groups=groups, dimension=_dimension(by), days=days, condition=condition)


def _dimension(by: Sequence[str]) -> str | None:
    """Which of the sums have it all; None for none."""
    wanted = [name for name in by if name not in _SUMMED] or ["feature"]
    return wanted[0] if len(wanted) == 1 and wanted[0] in _DIMENSIONS else None


def _groups(queries: Queries, prefix: str, by: Sequence[str]) -> str:
    return ", ".join(f"{queries[f'{prefix}_{name}']} AS {_alias(number)}" for number, name in enumerate(by))


def _bounds(days: Sequence[date]) -> tuple[datetime, datetime]:
    first, last = (datetime.combine(day, time(), UTC) for day in (days[0], days[-1]))
    return first, last + timedelta(days=1)


def _alias(number: int) -> str:
    return f"group_{number}"


def _group(by: Sequence[str], row: Row) -> Document:
    return {"group": {name: row[_alias(number)] for number, name in enumerate(by)}, **_sums(row)}


def _sums(row: Row) -> Document:
    found = shown(row)
    return {name: found[name] for name in SUMS}
