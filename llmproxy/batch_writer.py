"""Writing records to Postgres: a batch at a time, each request once, whatever is down and whatever is in them.

A record travels as JSON and Postgres turns it into rows: the worker spends no time on converting columns. Sending a
record again is harmless, so anything in doubt is sent again.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import orjson

from llmproxy.audit_contents import record_batch
from llmproxy.db import REJECTED
from llmproxy.errors import StorageError
from llmproxy.request import Document
from llmproxy.segments import encode_json
from llmproxy.services import Clock, Connection, Database, Log, Row
from llmproxy.usage import USAGE_CLASSES

# The columns that are written, and so the keys of a record's parts. A journal of an older version lacks the newer
# ones: a column added later must be nullable.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "requests": (
        *("id", "admitted_at", "operation_name", "path", "is_stream", "workspace", "key_id", "feature", "user_id"),
        *("session_id", "prompt_version", "tags", "metadata", "trace_id", "request_model", "provider_name"),
        *("response_model", "region", "outcome", "http_status", "error_type", "error_code", "error_message"),
        *("finish_reasons", "cache", "attempts", "duration_seconds", "first_chunk_seconds", "request_bytes"),
        *("response_bytes", *USAGE_CLASSES, "usage_provenance", "cost_usd", "cost_provenance", "price_source"),
        *("decisions", "origin", "parent_id"),
    ),
    "attempts": (
        *("request_id", "admitted_at", "number", "provider_name", "model", "region", "started_at"),
        *("duration_seconds", "first_chunk_seconds", "http_status", "failure", "error_code", "error_message"),
        *("upstream_request_id", "finish_reasons", *USAGE_CLASSES, "usage_provenance", "cost_usd"),
        *("cost_provenance", "credential"),
    ),
    "ledger_entries": (
        *("request_id", "occurred_at", "entry", "kind", "workspace", "key_id", "feature", "user_id"),
        *("operation_name", "request_model", "provider_name", "response_model", *USAGE_CLASSES),
        *(
            "usage_provenance",
            "amount_usd",
            "cost_provenance",
            "price_source",
            "tags",
            "service_tier",
            "service_region",
        ),
    ),
}
_ZEROS: Final = orjson.dumps(dict.fromkeys(USAGE_CLASSES, 0)).decode()
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5


class DayPartitions(Protocol):
    """What makes sure that the rows of a day have somewhere to go."""

    async def ensure(self, days: Iterable[date]) -> None:
        """Make the partitions of these UTC days. Raises StorageError."""


class BatchPart(Protocol):
    """What is written beside the rows of a batch, in the same transaction."""

    async def write(self, connection: Connection, recorded: Sequence[Document]) -> None:
        """Write what belongs to these records, each of which is seen exactly once. Raises StorageError."""


class BatchChain(Protocol):
    """What links the rows of a batch to those before, in the same transaction."""

    async def write(self, connection: Connection, recorded: Sequence[Document], stored: bytes) -> None:
        """Add a link for each record; `stored` is what Postgres says of what was stored. Raises StorageError."""

    def committed(self) -> None:
        """Hear that what was written last is there to stay; when nobody says so, it may be or may not."""


class BatchWriter:
    """Writes records to Postgres, and does not give up.

    Args:
        rejected_file: Where records go that Postgres refuses for what they hold, one JSON line each.
        parts: What else belongs to a batch, in the order in which it is written.
        chain: Comes last, for its checkpoints make other workers wait until the batch is committed.
        jitter: A number from 0 to 1, so that the workers do not all come back at once.
    """

    def __init__(
        self,
        database: Database,
        queries: Mapping[str, str],
        partitions: DayPartitions,
        rejected_file: Path,
        *,
        clock: Clock,
        log: Log,
        parts: Sequence[BatchPart] = (),
        chain: BatchChain | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._query = record_batch(queries, COLUMNS, _ZEROS, is_read_back=chain is not None)
        self._partitions = partitions
        self._rejected_file = rejected_file
        self._clock = clock
        self._log = log
        self._parts = tuple(parts)
        self._chain = chain
        # What is shipped and what is replayed come from two tasks, and the chain builds on the batch before.
        self._one_at_a_time = asyncio.Lock()
        self._jitter = jitter

    async def write(self, records: Sequence[Document]) -> None:
        """Return when every record is in Postgres or, if refused, in the rejected file; waits out any outage.

        A record already there is left as it is. Raises StorageError when the rejected file cannot be written;
        what was refused before that may then stand in it twice.
        """
        if not records:
            return
        refusal = await self._insert(records)
        if refusal is None:
            return
        if len(records) == 1:
            self._reject(records[0], refusal)
            return
        middle = len(records) // 2
        await self.write(records[:middle])
        await self.write(records[middle:])

    async def _insert(self, records: Sequence[Document]) -> StorageError | None:
        """Insert all or nothing; the error when Postgres refuses the content of at least one."""
        pauses = self._pauses()
        while True:
            try:
                batch = _batch(records)
                await self._partitions.ensure(batch.days)
                await self._record(records, batch)
            except StorageError as error:
                if error.error_code == REJECTED:
                    return error
                pause_seconds = next(pauses)
                self._log.warning("audit_waits", error=error.message, retry_after_seconds=pause_seconds)
                await self._clock.sleep(pause_seconds)
            else:
                return None

    async def _record(self, records: Sequence[Document], batch: _Batch) -> None:
        async with self._one_at_a_time:
            async with self._database.transaction() as connection:
                row = await connection.fetch_row(self._query, *batch.tables)
                if row is None or not row["ids"]:
                    return
                await self._write_parts(connection, records, row)
            if self._chain is not None:
                self._chain.committed()

    async def _write_parts(self, connection: Connection, records: Sequence[Document], row: Row) -> None:
        # Of a request that is there twice, the first record is the one that went in.
        by_id = {record["request"]["id"]: record for record in reversed(records)}
        recorded = [by_id[request_id] for request_id in row["ids"]]
        for part in self._parts:
            await part.write(connection, recorded)
        if self._chain is not None:
            await self._chain.write(connection, recorded, row["stored"])

    def _pauses(self) -> Iterator[float]:
        longest_seconds = FIRST_PAUSE_SECONDS
        while True:
            yield longest_seconds * (0.5 + self._jitter() / 2)
            longest_seconds = min(longest_seconds * 2, LONGEST_PAUSE_SECONDS)

    def _reject(self, record: Document, refusal: StorageError) -> None:
        reason = repr(refusal.__cause__ or refusal)
        line = encode_json({"rejected_at": self._clock.now().isoformat(), "reason": reason, "record": record})
        try:
            _append_line(self._rejected_file, line)
        except OSError as error:
            raise StorageError(
                f"A record that the database refuses cannot be put aside ({error.strerror}); "
                "make room in the state directory, or make it writable."
            ) from error
        self._log.error("audit_record_rejected", request_id=_request_id(record), reason=reason)


class _Batch(NamedTuple):
    days: set[date]
    tables: tuple[str, str, str, str]


def _batch(records: Sequence[Document]) -> _Batch:
    """The days and the JSON of each table. Raises StorageError as Postgres would when a record is none at all."""
    try:
        requests = [record["request"] for record in records]
        attempts = [attempt for record in records for attempt in record["attempts"]]
        ledger = [row for record in records for row in record["ledger"]]
        bodies = [record["bodies"] for record in records if "bodies" in record]
        times = {row["admitted_at"] for row in requests} | {row["occurred_at"] for row in ledger}
        days = {datetime.fromisoformat(time).astimezone(UTC).date() for time in times}
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise StorageError("A record has not the parts or the times that it needs.", code=REJECTED) from error
    return _Batch(days, (_json(requests), _json(attempts), _json(ledger), _json(bodies)))


def _json(rows: list[Document]) -> str:
    data = encode_json(rows)
    # Postgres has no NUL in text. Looking for its escape in a whole batch costs, looking for one byte does not.
    if b"\\" in data and rb"\u0000" in data:
        data = encode_json(_without_nul(orjson.loads(data)))
    return data.decode()


def _without_nul(value: object) -> object:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {key.replace("\0", "\ufffd"): _without_nul(item) for key, item in value.items()}
    return [_without_nul(item) for item in value] if isinstance(value, list) else value


def _append_line(path: Path, line: bytes) -> None:
    """Append under a lock, for all workers share the file; a line that does not fit is taken back."""
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size_bytes = os.fstat(file.fileno()).st_size
        if file.write(line + b"\n") <= len(line):
            file.truncate(size_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def _request_id(record: Document) -> object:
    request = record.get("request") or record.get("admitted")
    return request.get("id") if isinstance(request, dict) else None
