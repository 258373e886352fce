"""What was asked and how it went: the audit as people and programs read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmproxy.admin.documents import DEFAULT_LIMIT, page, shown
from llmproxy.admin.explain import explanation
from llmproxy.body_cipher import BodyCipher, is_encrypted
from llmproxy.errors import BadRequest, NotFound
from llmproxy.ids import time_of
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Database, Row

_ANOTHER_KEYS: Final = "(encrypted with another audit.body_key, or changed)"


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which requests to list; `model` is the one asked for or the one that answered, with or without provider."""

    workspace: str | None = None
    model: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: str | None = None
    limit: int = DEFAULT_LIMIT


class RequestLog:
    """The audit in Postgres, read only.

    Args:
        cipher: What decrypts bodies, if they are encrypted.
    """

    def __init__(self, database: Database, queries: Queries, cipher: BodyCipher | None = None) -> None:
        self._cipher = cipher
        self._database = database
        self._queries = queries

    async def find(self, wanted: RequestFilter) -> Document:
        """A page of requests, the latest first, after the one of the id `after`. Raises BadRequest, StorageError."""
        cursor = await self._row(wanted.after) if wanted.after else None
        if wanted.after and cursor is None:
            raise BadRequest("'after' must be the id of a request that is still kept.", param="after")
        query, values = self._query(wanted, cursor)
        return page(await self._database.fetch(query, *values), wanted.limit)

    def _query(self, wanted: RequestFilter, cursor: Row | None) -> tuple[str, Sequence[object]]:
        """The query for one row more than wanted, and its arguments."""
        asked = {
            "of_workspace": wanted.workspace,
            "of_model": wanted.model,
            "of_outcome": wanted.outcome,
            "since": wanted.since,
            "until": wanted.until,
            "after": cursor["admitted_at"] if cursor else None,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        conditions = [
            self._queries[f"requests_{name}"].format(value=f"${number}", id=f"${len(given) + 2}")
            for number, name in enumerate(given, start=2)
        ]
        values = [wanted.limit + 1, *given.values(), *([cursor["id"]] if cursor else [])]
        return self._queries.list_requests.format(conditions=" ".join(conditions)), values

    async def get(self, request_id: str) -> Document:
        """A request with its attempts, and its bodies as far as they are kept. Raises NotFound, StorageError."""
        row = await self._found(request_id)
        place = (row["id"], row["admitted_at"])
        bodies = await self._database.fetch_row(self._queries.bodies_of_request, *place)
        read = {name: self._read(str(row["id"]), name, value) for name, value in bodies.items()} if bodies else None
        return {**shown(row), "attempts": await self._attempts(row), "bodies": read}

    async def explain(self, request_id: str) -> Document:
        """Why a request went the way it did. Raises NotFound, StorageError."""
        row = await self._found(request_id)
        return explanation(shown(row), await self._attempts(row))

    # A body, or whether it was cut.
    def _read(self, request_id: str, name: str, value: Any) -> object:
        if not isinstance(value, bytes):
            return value
        body: bytes | None = value
        if is_encrypted(value):
            body = self._cipher.decrypt(request_id, name, value) if self._cipher else None
        # Bodies are kept as bytes and may be cut anywhere, also inside a character.
        return _ANOTHER_KEYS if body is None else body.decode("utf-8", "replace")

    async def _found(self, request_id: str) -> Row:
        row = await self._row(request_id)
        if row is None:
            raise NotFound("There is no request with this id, or it is no longer kept.", param="id")
        return row

    async def _row(self, request_id: str) -> Row | None:
        return await self._database.fetch_row(self._queries.find_request, request_id, time_of(request_id))

    async def _attempts(self, row: Row) -> list[Document]:
        rows = await self._database.fetch(self._queries.attempts_of_request, row["id"], row["admitted_at"])
        return [shown(attempt) for attempt in rows]
