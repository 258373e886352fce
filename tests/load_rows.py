"""What the load test reads back from Postgres, and the rules its rows are held to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from llmproxy.services import Database, Row

# The requests that Postgres has, by the session each was sent with.
Rows = Mapping[str, Sequence[Row]]

_REQUESTS: Final = "SELECT id::text, session_id, outcome, http_status FROM requests"
# Each of these must find nothing. The prices are the load test's: one dollar per million tokens in, two out.
_VIOLATIONS: Final[Mapping[str, str]] = {
    "a request and its ledger row: one is missing, or they disagree": """
        SELECT coalesce(requests.id, ledger.request_id)::text AS id
        FROM requests FULL JOIN ledger_entries AS ledger
        ON ledger.request_id = requests.id AND ledger.occurred_at = requests.admitted_at
        WHERE (requests.id, requests.workspace, requests.response_model, requests.cost_usd)
        IS DISTINCT FROM (ledger.request_id, ledger.workspace, ledger.response_model, ledger.amount_usd)
    """,
    "an id that stands for more than one row": """
        SELECT id::text FROM requests GROUP BY id HAVING count(*) > 1
        UNION ALL SELECT request_id::text FROM ledger_entries GROUP BY request_id HAVING count(*) > 1
    """,
    "attempts that are not numbered from one to their request's count": """
        SELECT requests.id::text FROM requests LEFT JOIN attempts ON attempts.request_id = requests.id
        GROUP BY requests.id, requests.attempts
        HAVING (count(attempts.number), coalesce(max(attempts.number), 0)) <> (requests.attempts, requests.attempts)
    """,
    "attempts whose costs do not add up to their request's": """
        SELECT requests.id::text FROM requests JOIN attempts ON attempts.request_id = requests.id
        GROUP BY requests.id, requests.cost_usd HAVING sum(attempts.cost_usd) IS DISTINCT FROM requests.cost_usd
    """,
    "an attempt of no request": """
        SELECT request_id::text AS id FROM attempts WHERE request_id NOT IN (SELECT id FROM requests)
    """,
    "tokens at another price": """
        SELECT id::text FROM requests WHERE (usage_provenance IS NULL) <> (cost_usd IS NULL)
        OR cost_usd <> (uncached_input_tokens + 2 * text_output_tokens) / 1000000.0
    """,
}


async def read_rows(database: Database) -> Rows:
    """Every request's row."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in await database.fetch(_REQUESTS):
        found[row["session_id"]].append(row)
    return found


async def violations(database: Database) -> dict[str, list[str]]:
    """The ids of the requests that break a rule, by the rule."""
    found = {rule: [row["id"] for row in await database.fetch(query)] for rule, query in _VIOLATIONS.items()}
    return {rule: ids for rule, ids in found.items() if ids}
