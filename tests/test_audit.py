"""Shipping to a real Postgres: every request that ended is there once, whatever was down in between."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from llmproxy.audit import Recorder
from llmproxy.batch_writer import COLUMNS, BatchWriter
from llmproxy.config import AuditConfig, JournalConfig
from llmproxy.db import Postgres
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.journal import Journal
from llmproxy.migrate import core_component, migrate
from llmproxy.partitions import Partitions
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Clock as AnyClock
from llmproxy.services import SystemClock
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing.clock import Clock
from llmproxy.testing.connections import wait_until
from llmproxy.testing.database import make_postgres
from tests.processes import read_line, spawn

CONFIG = JournalConfig(segment_bytes=65_536, batch_rows=50, sync_seconds=0.1)

# Lets requests in and ends most of them, with a recorder at work, until it is killed.
WORKER = """
import asyncio, os, sys
from pathlib import Path
from tests.test_audit import CONFIG, Journal, make_recorder, make_postgres, record

async def main():
    postgres = make_postgres(sys.argv[1], pool_size=2)
    await postgres.open()
    journal = Journal(Path(sys.argv[2]) / "journal", CONFIG)
    recorder = make_recorder(journal, postgres, Path(sys.argv[2]))
    recorder.startup()
    number = 0
    while True:
        number += 1
        document = record()
        request_id = document["request"]["id"]
        journal.begin(request_id, document["request"])
        os.write(1, f"{request_id}\\n".encode())
        if number % 5:
            journal.end(request_id, document)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


@dataclass
class ListLog:
    """A log that keeps what it is told."""

    entries: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)

    def debug(self, event: str, **fields: object) -> None:
        self.entries.append(("debug", event, fields))

    def info(self, event: str, **fields: object) -> None:
        self.entries.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.entries.append(("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.entries.append(("error", event, fields))

    def of(self, event: str) -> list[dict[str, object]]:
        """The fields of every entry of that name."""
        return [fields for _, name, fields in self.entries if name == event]


def record(admitted_at: str | None = None, **request: object) -> Document:
    """A record as the pipeline makes it, with a request of its own."""
    request_id, admitted_at = str(uuid4()), admitted_at or datetime.now(UTC).isoformat()
    shared = {"operation_name": "chat", "workspace": "acme", "key_id": "k1", "request_model": "openai/gpt-4o"}
    tokens = {name: 0 for name in COLUMNS["requests"] if name.endswith("_tokens")}
    return {
        "request": {
            "id": request_id,
            "admitted_at": admitted_at,
            **shared,
            **tokens,
            "path": "/v1/chat/completions",
            "is_stream": False,
            "tags": [],
            "metadata": {},
            "outcome": "succeeded",
            "finish_reasons": ["stop"],
            "attempts": 1,
            "decisions": [],
            "uncached_input_tokens": 12,
            "cost_usd": "0.000012345678901234",
            **request,
        },
        "attempts": [
            {
                "request_id": request_id,
                "admitted_at": admitted_at,
                "number": 1,
                "provider_name": "openai",
                "model": "gpt-4o",
                "started_at": admitted_at,
                "finish_reasons": ["stop"],
                **tokens,
            }
        ],
        "ledger": [
            {
                "request_id": request_id,
                "occurred_at": admitted_at,
                "entry": 0,
                "kind": "exchange",
                **shared,
                **tokens,
                "amount_usd": "0.000012345678901234",
            }
        ],
    }


def with_body(document: Document, request_body: str) -> Document:
    """The record with the body of its request kept."""
    row = {"request_id": document["request"]["id"], "admitted_at": document["request"]["admitted_at"]}
    kept = {"request": request_body, "request_truncated": True, "response": None, "response_truncated": False}
    return {**document, "bodies": {**row, **kept}}


def interrupted(begun: Document) -> Document:
    """The ending of a request of which only the beginning is known."""
    ending = record(**{**begun, "outcome": "interrupted"})
    ending["attempts"] = []
    ending["ledger"][0] |= {"request_id": begun["id"], "occurred_at": begun["admitted_at"]}
    return ending


def make_writer(
    postgres: Postgres, directory: Path, clock: AnyClock | None = None, log: ListLog | None = None
) -> BatchWriter:
    """A writer on real parts, without chance in its pauses."""
    clock, log, queries = clock or SystemClock(), log or ListLog(), Queries()
    partitions = Partitions(postgres, queries, AuditConfig(), clock, log)
    rejected_file = directory / "rejected.jsonl"
    return BatchWriter(postgres, queries, partitions, rejected_file, clock=clock, log=log, jitter=lambda: 1.0)


def make_recorder(
    journal: Journal,
    postgres: Postgres,
    directory: Path,
    *,
    clock: AnyClock | None = None,
    log: ListLog | None = None,
    settle: Callable[[Document], Document] = interrupted,
    replayed: Callable[[str], Awaitable[None]] | None = None,
) -> Recorder:
    """A recorder on real parts."""
    clock, log = clock or SystemClock(), log or ListLog()
    writer = make_writer(postgres, directory, clock, log)
    tasks = BackgroundTasks(log)
    return Recorder(journal, writer, CONFIG, clock=clock, log=log, tasks=tasks, interrupted=settle, replayed=replayed)


def carry(journal: Journal, *records: Document) -> list[str]:
    """Let each request in and end it; their ids."""
    for document in records:
        journal.begin(document["request"]["id"], document["request"])
        journal.end(document["request"]["id"], document)
    return [document["request"]["id"] for document in records]


async def recorded(postgres: Postgres, table: str = "requests", column: str = "id") -> Counter[str]:
    """How many rows each request has."""
    rows = await postgres.fetch(f"SELECT {column}::text AS id FROM {table}")  # noqa: S608 - names of our own
    return Counter(row["id"] for row in rows)


def rejected(directory: Path) -> list[Document]:
    """What was put aside."""
    return [json.loads(line) for line in (directory / "rejected.jsonl").read_text().splitlines()]


async def test_a_record_becomes_rows_without_loss(database: Postgres, tmp_path: Path) -> None:
    """Times, amounts, lists, JSON and bodies arrive in their columns exactly as they were."""
    document = record("2026-11-22T23:59:59.123456+00:00", tags=["a", 'b"{'], metadata={"n": [1, "é"]})
    request_id = document["request"]["id"]
    document = with_body(document, base64.b64encode(bytes(range(256))).decode())
    await make_writer(database, tmp_path).write([document, record()])
    request = await database.fetch_row("SELECT * FROM requests WHERE id = $1", request_id)
    body = await database.fetch_row("SELECT * FROM request_bodies")
    assert request is not None
    assert body is not None
    assert request["admitted_at"] == datetime(2026, 11, 22, 23, 59, 59, 123456, tzinfo=UTC)
    assert (request["tags"], request["metadata"]) == (["a", 'b"{'], {"n": [1, "é"]})
    assert (request["cost_usd"], request["uncached_input_tokens"]) == (Decimal("0.000012345678901234"), 12)
    assert (body["request"], body["response"], body["request_truncated"]) == (bytes(range(256)), None, True)
    assert (await recorded(database, "attempts", "request_id"))[request_id] == 1
    assert (await recorded(database, "ledger_entries", "request_id"))[request_id] == 1


async def test_every_column_is_written(database: Postgres) -> None:
    """The lists of columns name exactly those that the tables have."""
    rows = await database.fetch(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_name = ANY($1)", list(COLUMNS)
    )
    assert {(row["table_name"], row["column_name"]) for row in rows} == {
        (table, column) for table, columns in COLUMNS.items() for column in columns
    }


async def test_a_record_sent_again_changes_nothing(database: Postgres, tmp_path: Path) -> None:
    """The first record of a request stands; later ones leave no row anywhere, not even in the ledger."""
    writer, document = make_writer(database, tmp_path), record()
    await writer.write([document])
    again = interrupted(document["request"])
    again["ledger"][0]["occurred_at"] = "2026-11-20T00:00:00+00:00"
    await writer.write([document, again])
    assert (await database.fetch("SELECT outcome FROM requests")) == [{"outcome": "succeeded"}]
    for table in ("attempts", "ledger_entries"):
        assert await recorded(database, table, "request_id") == {document["request"]["id"]: 1}


async def test_rows_of_any_day_find_a_partition(database: Postgres, tmp_path: Path) -> None:
    """Records that waited for weeks are written like fresh ones, in whatever time zone they are given."""
    days = ("2026-01-01T00:00:00+00:00", "2026-03-09T23:30:00-05:00", "2026-03-31T01:00:00+02:00")
    await make_writer(database, tmp_path).write([record(day) for day in days])
    assert sum((await recorded(database)).values()) == 3


async def test_text_that_postgres_cannot_hold_is_replaced(database: Postgres, tmp_path: Path) -> None:
    """NUL and lone surrogates become marks in the text; what looks like their escape stays as it is."""
    document = record(user_id="a\0b", feature="\ud800", metadata={"k\0": "v\0"}, session_id="\\u0000")
    await make_writer(database, tmp_path).write([document])
    row = await database.fetch_row("SELECT user_id, feature, metadata, session_id FROM requests")
    expected = {"user_id": "a\ufffdb", "feature": "?", "metadata": {"k\ufffd": "v\ufffd"}, "session_id": "\\u0000"}
    assert row == expected


BAD: list[Document] = [
    record(uncached_input_tokens=2**63),
    record(uncached_input_tokens=10**30),
    record(outcome="unheard of"),
    record(admitted_at="yesterday"),
    record(id="not a uuid"),
    record(workspace=None),
    with_body(record(), "not base64!"),
    {"request": {}},
]


@pytest.mark.parametrize("bad", BAD)
async def test_a_refused_record_holds_up_nobody(database: Postgres, tmp_path: Path, bad: Document) -> None:
    """What Postgres refuses is put aside whole, with the reason, and logged; all others are written."""
    good, log = [record() for _ in range(20)], ListLog()
    await make_writer(database, tmp_path, log=log).write([*good[:13], bad, *good[13:]])
    assert await recorded(database) == {document["request"]["id"]: 1 for document in good}
    [line] = rejected(tmp_path)
    assert line["reason"]
    assert line["record"].keys() == bad.keys()
    assert len(log.of("audit_record_rejected")) == 1


async def test_a_record_that_cannot_be_put_aside_is_not_forgotten(database: Postgres, tmp_path: Path) -> None:
    """While the rejected file cannot be written, the batch stays pending; afterwards nothing is missing."""
    journal = Journal(tmp_path / "journal", CONFIG)
    recorder = make_recorder(journal, database, tmp_path / "later")
    good, bad = carry(journal, record(), record(outcome="unheard of"))
    with pytest.raises(Exception, match="cannot be put aside"):
        await recorder.ship()
    assert recorder.pending == 2
    (tmp_path / "later").mkdir()
    await recorder.ship()
    assert recorder.pending == 0
    assert await recorded(database) == {good: 1}
    assert [line["record"]["request"]["id"] for line in rejected(tmp_path / "later")] == [bad]
    journal.close()


async def test_an_outage_is_waited_out_with_growing_pauses(tmp_path: Path) -> None:
    """While the database is away, the pauses double up to five seconds, and the lag says how long it has been."""
    clock, log, journal = Clock(), ListLog(), Journal(tmp_path / "journal", CONFIG)
    recorder = make_recorder(journal, make_postgres("postgresql://nowhere"), tmp_path, clock=clock, log=log)
    assert recorder.lag_seconds == 0
    carry(journal, record())
    recorder.startup()
    await clock.advance(30)
    pauses = [entry["retry_after_seconds"] for entry in log.of("audit_waits")]
    assert pauses[:8] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    assert recorder.lag_seconds == pytest.approx(30, abs=0.1)
    assert recorder.pending == 1
    await recorder.shutdown(0.05)
    journal.close()
    assert list((tmp_path / "journal").glob("*.log"))


async def test_what_dead_workers_left_is_recorded(database: Postgres, tmp_path: Path) -> None:
    """Requests that ended are recorded as they did, the others as interrupted; then the files are gone."""
    dead, ended, open_request = Journal(tmp_path / "journal", CONFIG), record(), record()
    carry(dead, ended)
    dead.begin(open_request["request"]["id"], open_request["request"])
    dead.close()
    log, journal = ListLog(), Journal(tmp_path / "journal", CONFIG)
    recorder = make_recorder(journal, database, tmp_path, log=log)
    await recorder.replay()
    rows = await database.fetch("SELECT id::text, outcome FROM requests")
    assert {row["id"]: row["outcome"] for row in rows} == {
        ended["request"]["id"]: "succeeded",
        open_request["request"]["id"]: "interrupted",
    }
    assert log.of("journal_replayed") == [{"ended": 1, "interrupted": 1, "damaged_lines": 0}]
    journal.close()
    assert list((tmp_path / "journal").iterdir()) == []


async def test_what_follows_the_rows_of_the_dead_waits_out_an_outage(
    embedded: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Postgres may be gone when the rows are there and the leases are to be given back: no fault, only later."""
    url = embedded.start()
    await migrate(url, [core_component()])
    postgres, log, told = make_postgres(url), ListLog(), list[str]()
    await postgres.open()
    dead = Journal(tmp_path / "journal", CONFIG)
    ids = carry(dead, record())
    dead.close()
    journal = Journal(tmp_path / "journal", CONFIG)

    async def replayed(owner: str) -> None:
        told.append(owner)
        if len(told) == 1:
            await asyncio.to_thread(embedded.stop)
        await postgres.execute("SELECT 1")

    recorder = make_recorder(journal, postgres, tmp_path, log=log, replayed=replayed)
    await recorder.replay()
    assert [level for level, event, _ in log.entries if event == "audit_waits"] == ["warning"]
    await asyncio.to_thread(embedded.start)
    await recorder.replay()
    assert told == [dead.owner, dead.owner]
    assert await recorded(postgres) == dict.fromkeys(ids, 1)
    journal.close()
    assert list((tmp_path / "journal").iterdir()) == []
    assert [entry for entry in log.entries if entry[0] == "error"] == []
    await postgres.close()


async def test_a_request_that_cannot_be_settled_is_put_aside(database: Postgres, tmp_path: Path) -> None:
    """When no ending can be made of a beginning, the beginning is kept, and the other orphans are settled."""

    def settle(begun: Document) -> Document:
        return interrupted(begun) if begun["user_id"] == "good" else begun["no such key"]

    dead = Journal(tmp_path / "journal", CONFIG)
    good, bad = record(user_id="good"), record(user_id="bad")
    for document in (bad, good):
        dead.begin(document["request"]["id"], document["request"])
    dead.close()
    journal = Journal(tmp_path / "journal", CONFIG)
    await make_recorder(journal, database, tmp_path, settle=settle).replay()
    assert await recorded(database) == {good["request"]["id"]: 1}
    assert [line["record"]["admitted"]["user_id"] for line in rejected(tmp_path)] == ["bad"]
    journal.close()


async def test_shutdown_ships_what_is_left(database: Postgres, tmp_path: Path) -> None:
    """What ended just before the stop is in Postgres after it, and the journal leaves no file."""
    journal = Journal(tmp_path / "journal", CONFIG)
    recorder = make_recorder(journal, database, tmp_path)
    recorder.startup()
    ids = carry(journal, *(record() for _ in range(230)))
    await recorder.shutdown(20)
    journal.close()
    assert await recorded(database) == dict.fromkeys(ids, 1)
    assert list((tmp_path / "journal").iterdir()) == []


async def test_the_journal_is_shipped_and_tidied_while_running(database: Postgres, tmp_path: Path) -> None:
    """Without anyone asking, ended requests reach Postgres, and segments that are done with disappear."""
    journal = Journal(tmp_path / "journal", CONFIG)
    recorder = make_recorder(journal, database, tmp_path)
    recorder.startup()
    ids = carry(journal, *(record(metadata={"bulk": "x" * 2_000}) for _ in range(150)))
    assert len(list((tmp_path / "journal").glob("*.log"))) > 3
    await wait_until(lambda: recorder.pending == 0 and len(list((tmp_path / "journal").glob("*.log"))) == 1)
    assert await recorded(database) == dict.fromkeys(ids, 1)
    await recorder.shutdown(1)
    journal.close()


async def test_a_restart_of_postgres_loses_and_doubles_nothing(embedded: EmbeddedPostgres, tmp_path: Path) -> None:
    """Requests that end before, while and after the server is down have one row each in the end."""
    url = embedded.start()
    await migrate(url, [core_component()])
    postgres, log = make_postgres(url), ListLog()
    await postgres.open()
    journal = Journal(tmp_path / "journal", CONFIG)
    recorder = make_recorder(journal, postgres, tmp_path, log=log)
    recorder.startup()
    ids = carry(journal, *(record() for _ in range(200)))
    await asyncio.to_thread(embedded.stop)
    ids += carry(journal, *(record(metadata={"bulk": "x" * 1_000}) for _ in range(200)))
    await wait_until(lambda: bool(log.of("audit_waits")), 20)
    await asyncio.to_thread(embedded.start)
    ids += carry(journal, *(record() for _ in range(200)))
    await wait_until(lambda: recorder.pending == 0, 20)
    for table, column in (("requests", "id"), ("attempts", "request_id"), ("ledger_entries", "request_id")):
        assert await recorded(postgres, table, column) == dict.fromkeys(ids, 1)
    await recorder.shutdown(1)
    await postgres.close()
    journal.close()


async def test_kill_9_loses_and_doubles_nothing(database: Postgres, database_url: str, tmp_path: Path) -> None:
    """Whenever workers that ship and replay are killed, each request they let in has one row of each kind."""
    begun: set[str] = set()
    for seed in range(0, 8, 2):
        workers = [spawn(WORKER, database_url, str(tmp_path)) for _ in range(2)]
        for part, worker in enumerate(workers):
            with worker:
                assert worker.stdout is not None
                begun |= {await asyncio.to_thread(read_line, worker) for _ in range(20 + (seed + part) * 61 % 200)}
                worker.kill()
                begun |= set(worker.stdout.read().split())
    journal = Journal(tmp_path / "journal", CONFIG)
    await make_recorder(journal, database, tmp_path).replay()
    journal.close()
    requests = await recorded(database)
    assert set(requests.values()) == {1}
    # A worker may die between begin and saying so, once.
    assert begun <= requests.keys()
    assert len(requests) - len(begun) <= 8
    assert await recorded(database, "ledger_entries", "request_id") == requests
    assert not (tmp_path / "rejected.jsonl").exists()
