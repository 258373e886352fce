"""What was spent, and on whom: sums over the ledger, exact to the last digit."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from llmproxy.admin.documents import MAX_LIMIT, shown
from llmproxy.exchange import Document
from llmproxy.queries import Queries
from llmproxy.services import Database, Row

GROUPS: Final = ("workspace", "feature", "user", "model", "key", "provider")


class Spend:
    """The ledger in Postgres, read only."""

    def __init__(self, database: Database, queries: Queries) -> None:
        self._database = database
        self._queries = queries

    async def report(self, by: str, since: datetime | None, until: datetime | None, limit: int = MAX_LIMIT) -> Document:
        """Sums for each of `by`, one of `GROUPS`, the largest first; `total` covers those beyond `limit` too.

        Amounts are in US dollars, as text. An unpriced request has no amount, and is in no sum but its count.
        Raises StorageError.
        """
        rows = await self._database.fetch(self._queries.spend, by, since, until, limit + 2)
        groups = [{"group": row["entry_group"], **_sums(row)} for row in rows[1:]]
        return {
            "by": by,
            "since": since,
            "until": until,
            "data": groups[:limit],
            "total": _sums(rows[0]),
            "has_more": len(groups) > limit,
        }


def _sums(row: Row) -> Document:
    return {name: value for name, value in shown(row).items() if name not in ("is_total", "entry_group")}
