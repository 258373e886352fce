"""What was spent, and on whom: sums over the ledger, exact to the last digit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from llmproxy.admin.documents import shown
from llmproxy.errors import BadRequest
from llmproxy.exchange import Document
from llmproxy.queries import Queries
from llmproxy.services import Database, Row

GROUPS: Final = ("workspace", "feature", "user", "model", "key", "provider", "tag", "day", "prompt_version")
SUMS: Final = (
    *("requests", "input_tokens", "output_tokens", "amount_usd", "estimated_usd", "assumed_usd", "adjusted_usd"),
    *("unpriced_requests", "unpriced_attempts", "estimated_requests"),
)
_NOTHING: Final[Document] = {name: "0" if name.endswith("_usd") else 0 for name in SUMS}


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
        query = spend_query(self._queries, by, of_workspace=workspace is not None)
        # One more than wanted, to know whether there are more, and the total, which is there unless nothing is.
        rows_wanted = None if limit is None else limit + 2
        whose = () if workspace is None else (workspace,)
        rows = await self._database.fetch(query, since, until, rows_wanted, *whose)
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


def spend_query(queries: Queries, by: Sequence[str], *, of_workspace: bool) -> str:
    """The query that sums up for `by`; its arguments are the span, how many rows, and the workspace if it is of one."""
    return queries["spend"].format(
        names=", ".join(_alias(number) for number, _ in enumerate(by)),
        groups=", ".join(f"{queries[f'spend_by_{name}']} AS {_alias(number)}" for number, name in enumerate(by)),
        joins="\n".join(queries[f"spend_join_{name}"] for name in by if f"spend_join_{name}" in queries),
        is_first=queries["spend_first_tag"] if "tag" in by else "true",
        condition=queries["spend_of_workspace"] if of_workspace else "",
    )


def _alias(number: int) -> str:
    return f"group_{number}"


def _group(by: Sequence[str], row: Row) -> Document:
    return {"group": {name: row[_alias(number)] for number, name in enumerate(by)}, **_sums(row)}


def _sums(row: Row) -> Document:
    found = shown(row)
    return {name: found[name] for name in SUMS}
