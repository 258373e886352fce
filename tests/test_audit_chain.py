"""The audit chain as it is written: by many at once, through failures and kills, and kept from being changed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_log import Kind, LogHead
from llmproxy.audit_notary import Anchor, Notary
from llmproxy.audit_reader import Span
from llmproxy.chain_writer import ChainWriter
from llmproxy.config import AuditConfig, JournalConfig
from llmproxy.db import Postgres
from llmproxy.errors import StorageError
from llmproxy.journal import Journal
from llmproxy.partitions import Partitions
from llmproxy.request import Document
from llmproxy.services import Connection, SystemClock
from llmproxy.state import StateDirectory
from llmproxy.testing.clock import Clock
from llmproxy.testing.connections import wait_until
from llmproxy.testing.database import make_postgres
from tests.audit_rows import KEYS, QUERIES, make_chain, make_chained_writer, messages, verified
from tests.processes import read_line, spawn
from tests.test_audit import ListLog, interrupted, record, with_body

CONFIG = JournalConfig(segment_bytes=65_536, batch_rows=50, sync_seconds=0.1)

# Lets requests in, ends them and records them in a chain of its own, until it is killed.
WORKER = """
import asyncio, os, sys
from pathlib import Path
from llmproxy.audit import Recorder
from llmproxy.services import SystemClock
from llmproxy.tasks import BackgroundTasks
from tests.audit_rows import make_chain, make_chained_writer
from tests.test_audit import ListLog, Journal, interrupted, make_postgres, record
from tests.test_audit_chain import CONFIG

async def main():
    postgres = make_postgres(sys.argv[1], pool_size=2)
    await postgres.open()
    journal, log = Journal(Path(sys.argv[2]) / "journal", CONFIG), ListLog()
    writer = make_chained_writer(postgres, make_chain(rows=30), Path(sys.argv[2]))
    recorder = Recorder(
        journal, writer, CONFIG, clock=SystemClock(), log=log, tasks=BackgroundTasks(log), interrupted=interrupted
    )
    recorder.startup()
    while True:
        document = record()
        request_id = document["request"]["id"]
        journal.begin(request_id, document["request"])
        os.write(1, f"{request_id}\\n".encode())
        journal.end(request_id, document)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


class FailingChain:
    """A chain whose transactions fail after its links were written, as often as it is told."""

    def __init__(self, chain: ChainWriter, failures: int) -> None:
        self.chain = chain
        self.failures = failures

    async def write(self, connection: Connection, recorded: Sequence[Document], stored: bytes) -> None:
        await self.chain.write(connection, recorded, stored)
        if self.failures:
            self.failures -= 1
            raise StorageError("The database cannot be reached; try again.")

    def committed(self) -> None:
        self.chain.committed()


class DeafChain(FailingChain):
    """A chain that never hears whether its transactions were committed, as when the connection breaks there."""

    def committed(self) -> None:
        pass


async def test_what_was_written_verifies(database: Postgres, tmp_path: Path) -> None:
    """Batches of any size make one chain in which every request stands once."""
    chain = make_chain(rows=10)
    writer = make_chained_writer(database, chain, tmp_path)
    for size in (1, 3, 25, 1):
        await writer.write([record() for _ in range(size)])
    await writer.write([])
    await chain.end(database)
    report = await verified(database)
    assert messages(report) == []
    assert (report.chains, report.requests, report.ledger_only) == (1, 30, 0)
    kinds = [orjson.loads(row["document"])["kind"] for row in await database.fetch("SELECT document FROM audit_log")]
    assert kinds == [Kind.CHAIN_BEGAN, Kind.CHECKPOINT, Kind.CHAIN_ENDED]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=8,
)


FIELDS = st.fixed_dictionaries(
    {
        "metadata": st.dictionaries(st.text(max_size=8), JSON, max_size=4),
        "tags": st.lists(st.text(max_size=8), max_size=3),
        "user_id": st.text(max_size=20),
        "duration_seconds": st.floats(0, 1e9),
        "cost_usd": st.decimals(0, 10**6, places=12).map("{:f}".format),
    }
)


@given(fields=FIELDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_a_request_holds_it_verifies(database_url: str, tmp_path: Path, fields: Document) -> None:
    """No text, number or JSON makes a row look tampered with that nobody touched."""
    database = make_postgres(database_url)
    await database.open()
    await make_chained_writer(database, make_chain(), tmp_path).write([record(**fields), record()])
    report = await verified(database)
    await database.close()
    assert messages(report) == []


async def test_a_record_sent_again_has_no_second_link(database: Postgres, tmp_path: Path) -> None:
    """Links are made of what went in, so that sending in doubt is harmless."""
    writer, documents = make_chained_writer(database, make_chain(), tmp_path), [record(), record()]
    for batch in (documents, documents, [record(), *documents]):
        await writer.write(batch)
    report = await verified(database)
    assert (messages(report), report.requests) == ([], 3)


async def test_many_writers_at_once_verify(database: Postgres, database_url: str, tmp_path: Path) -> None:
    """Each writer has a chain of its own, none waits for another, and the log above them is one."""
    databases = [make_postgres(database_url, pool_size=2) for _ in range(4)]

    async def work(one: Postgres) -> None:
        await one.open()
        chain = make_chain(rows=5)
        writer = make_chained_writer(one, chain, tmp_path)
        for size in (1, 6, 2, 9):
            await asyncio.gather(*(writer.write([record() for _ in range(size)]) for _ in range(2)))
        await chain.end(one)
        await one.close()

    await asyncio.gather(*(work(one) for one in databases))
    report = await verified(database)
    assert (messages(report), report.chains, report.requests) == ([], 4, 4 * 2 * 18)


async def test_a_transaction_that_fails_leaves_no_trace(database: Postgres, tmp_path: Path) -> None:
    """The links of a batch that was taken back are made again, also when it is the first or has a checkpoint."""
    chain = make_chain(rows=2)
    failing = FailingChain(chain, 2)
    writer = make_chained_writer(database, failing, tmp_path)
    await writer.write([record()])
    await writer.write([record()])
    failing.failures = 1
    await writer.write([record(), record()])
    await writer.write([record()])
    await chain.end(database)
    report = await verified(database)
    assert (messages(report), report.requests) == ([], 5)


async def test_what_is_in_doubt_is_looked_up(database: Postgres, tmp_path: Path) -> None:
    """A chain that was not told what became of its links goes on from those that are there, whichever they are."""
    chain = DeafChain(make_chain(rows=2), 1)
    writer = make_chained_writer(database, chain, tmp_path)
    for size in (1, 2, 1):
        await writer.write([record() for _ in range(size)])
        chain.failures = size - 1
    await chain.chain.end(database)
    report = await verified(database)
    assert (messages(report), report.chains, report.requests) == ([], 1, 4)


async def test_a_chain_that_cannot_be_continued_is_left(database: Postgres, tmp_path: Path) -> None:
    """When somebody else has put a link where the next one belongs, no record is lost, and it is found."""
    log = ListLog()
    chain = make_chain(log=log)
    writer = make_chained_writer(database, chain, tmp_path)
    await writer.write([record()])
    following = record()
    await database.execute(
        "INSERT INTO audit_chain SELECT chain, 2, recorded_at, gen_random_uuid(), $1::text::timestamptz, "
        "request_sha256, ledger_sha256, link_sha256 FROM audit_chain",
        following["request"]["admitted_at"],
    )
    await writer.write([following])
    report = await verified(database)
    assert len(log.of("audit_chain_left")) == 1
    assert "Link 2" in messages(report)[0]
    assert not (tmp_path / "rejected.jsonl").exists()


async def test_kill_9_leaves_what_verifies(database: Postgres, database_url: str, tmp_path: Path) -> None:
    """Whenever workers that write chains are killed, everything that they recorded verifies, and so does the rest."""
    for number in range(4):
        workers = [spawn(WORKER, database_url, str(tmp_path)) for _ in range(2)]
        for part, worker in enumerate(workers):
            with worker:
                for _ in range(20 + (number * 2 + part) * 61 % 200):
                    await asyncio.to_thread(read_line, worker)
                worker.kill()
    before = await verified(database)
    assert messages(before) == []
    chain = make_chain()
    journal, writer = Journal(tmp_path / "journal", CONFIG), make_chained_writer(database, chain, tmp_path)
    while orphan := journal.claim():
        for batch in orphan.batches(CONFIG.batch_rows):
            await writer.write([each.record if each.is_ended else interrupted(each.record) for each in batch])
        orphan.delete()
        orphan.release()
    journal.close()
    report = await verified(database)
    [rows] = await database.fetch("SELECT count(*) AS requests FROM requests")
    assert (messages(report), report.requests) == ([], rows["requests"])
    assert report.requests > 500


# Append-only

CHANGES = ("UPDATE {0} SET {1} = {1}", "DELETE FROM {0}", "TRUNCATE {0}")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("requests", "workspace"),
        ("attempts", "model"),
        ("ledger_entries", "amount_usd"),
        ("audit_chain", "link_sha256"),
        ("audit_log", "document"),
    ],
)
async def test_what_was_recorded_cannot_be_changed(
    database: Postgres, tmp_path: Path, table: str, column: str, change: str
) -> None:
    """Neither a table nor a partition of it takes UPDATE, DELETE or TRUNCATE, not even from its owner."""
    await make_chained_writer(database, make_chain(), tmp_path).write([record()])
    partitions = await database.fetch(f"SELECT DISTINCT tableoid::regclass::text AS name FROM {table}")  # noqa: S608
    for name in {table, *(row["name"] for row in partitions)}:
        with pytest.raises(StorageError) as refused:
            await database.execute(change.format(name, column))
        assert "append-only" in str(refused.value.__cause__)
    assert messages(await verified(database)) == []


async def test_bodies_can_be_erased(database: Postgres, tmp_path: Path) -> None:
    """Bodies are in no chain: without them everything verifies."""
    await make_chained_writer(database, make_chain(), tmp_path).write([with_body(record(), "aGVsbG8=")])
    await database.execute("DELETE FROM request_bodies")
    assert messages(await verified(database)) == []


# Time


async def test_days_past_their_retention_may_be_gone(database: Postgres, tmp_path: Path) -> None:
    """What retention drops is announced in the log; afterwards only the ledger of those days is verified."""
    clock, log = SystemClock(), ListLog()
    notary = Notary(QUERIES, KEYS, clock, log)
    old = (clock.now() - timedelta(days=100)).isoformat()
    writer = make_chained_writer(database, make_chain(), tmp_path)
    await writer.write([record(old), record()])
    await Partitions(database, QUERIES, AuditConfig(), clock, log, notary=notary).maintain()
    report = await verified(database)
    assert (messages(report), report.requests, report.ledger_only) == ([], 1, 1)
    [row] = await database.fetch("SELECT count(*) AS requests FROM requests")
    assert row["requests"] == 1


async def test_days_that_nobody_announced_must_not_be_gone(database: Postgres, tmp_path: Path) -> None:
    """A dropped partition whose retention is not over is missed, request by request."""
    document = record()
    await make_chained_writer(database, make_chain(), tmp_path).write([document])
    await database.execute(f"DROP TABLE requests_{document['request']['admitted_at'][:10].replace('-', '')}")
    assert (
        messages(await verified(database))[0] == f"Request {document['request']['id']}: its row of requests is missing."
    )


async def test_rows_from_before_the_chain_are_left_alone(database: Postgres, tmp_path: Path) -> None:
    """Rows that an older release wrote are no problem, rows beside the chain are."""
    unchained = make_chained_writer(database, None, tmp_path)
    await unchained.write([record()])
    await make_chained_writer(database, make_chain(), tmp_path).write([record()])
    assert messages(await verified(database)) == []
    stray = record()
    await unchained.write([stray])
    found = messages(await verified(database))
    tables = ("requests", "attempts", "ledger_entries")
    assert sorted(found) == sorted(
        f"Request {stray['request']['id']}: a row of {each} is in no chain." for each in tables
    )


async def test_verifying_may_begin_at_a_time(database: Postgres, tmp_path: Path) -> None:
    """With `since`, what was recorded before is trusted as far as it is signed, and what came after is verified."""
    clock = Clock()
    writer = make_chained_writer(database, make_chain(clock=clock), tmp_path)
    await writer.write([record(), record()])
    await clock.advance(3600)
    await writer.write([record(), record(), record()])
    report = await verified(database, Span(since=clock.now()))
    assert (messages(report), report.requests) == ([], 3)


# Keys and anchors


async def test_only_known_keys_are_believed(database: Postgres, tmp_path: Path) -> None:
    """What another key signed is a problem until that key is named among the former ones."""
    await make_chained_writer(database, make_chain(keys=AuditKeys("old")), tmp_path).write([record()])
    assert "audit.former_keys" in messages(await verified(database))[0]
    assert messages(await verified(database, keys=AuditKeys("new", ["old"]))) == []


def test_a_machine_has_one_audit_key(tmp_path: Path) -> None:
    """Without a configured key the state directory has one, which nobody else may read, and which stays."""
    state = StateDirectory(tmp_path / "state")
    keys = state.audit_keys(AuditConfig())
    assert keys.key_id == state.audit_keys(AuditConfig()).key_id
    assert (tmp_path / "state" / "audit-key").stat().st_mode & 0o777 == 0o600
    assert state.audit_keys(AuditConfig.model_validate({"signing_key": "mine"})).key_id == AuditKeys("mine").key_id


async def test_an_anchor_follows_what_is_committed(database: Postgres, tmp_path: Path) -> None:
    """A checkpoint leaves the log's head beside the database; it never goes back, so that a cut log is found."""
    anchor, log = Anchor(tmp_path / "anchor.json"), ListLog()
    chain = make_chain(log=log, anchor=anchor)
    await make_chained_writer(database, chain, tmp_path).write([record()])
    await chain.end(database)
    head = anchor.read()
    assert head == (await verified(database)).head
    anchor.advance(LogHead(1, bytes(32)))
    assert anchor.read() == head
    (tmp_path / "anchor.json").write_text("[]")
    await chain.end(database)
    assert len(log.of("audit_anchor_not_written")) == 1


async def test_a_worker_notices_that_the_log_was_cut(database: Postgres, tmp_path: Path) -> None:
    """Each new head goes to the gateway's own log; one that is older than what was there before is an error in it."""
    log = ListLog()
    chain = make_chain(log=log)
    writer = make_chained_writer(database, chain, tmp_path)
    await writer.write([record()])
    await chain.end(database)
    head = (await verified(database)).head
    assert log.of("audit_head") == [{"number": 2, "entry_sha256": head.entry_sha256.hex()}]
    (tmp_path / "line.json").write_bytes(orjson.dumps({"event": "audit_head", **log.of("audit_head")[0]}))
    assert Anchor(tmp_path / "line.json").read() == head
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("DELETE FROM audit_log WHERE number = 2")
    await Notary(QUERIES, KEYS, SystemClock(), log).remember(database)
    await chain._notary.remember(database)
    assert log.of("audit_log_cut") == [{"had_entry": 2, "ends_at_entry": 1}]


async def test_what_the_log_does_not_cover_yet_is_told(database: Postgres, tmp_path: Path) -> None:
    """A report counts the requests that stand behind the last entry about their chain, and says when that was."""
    chain = make_chain(rows=3)
    writer = make_chained_writer(database, chain, tmp_path)
    for size, uncovered in ((2, 2), (3, 0), (1, 1)):
        await writer.write([record() for _ in range(size)])
        report = await verified(database)
        assert (messages(report), report.uncovered) == ([], uncovered)
    await chain.end(database)
    report = await verified(database)
    assert (report.uncovered, report.document()["head"]["number"]) == (0, 3)
    [row] = await database.fetch("SELECT document FROM audit_log ORDER BY number DESC LIMIT 1")
    assert report.ended_at == datetime.fromisoformat(orjson.loads(row["document"])["at"])


async def test_requests_with_many_rows_verify(database: Postgres, tmp_path: Path) -> None:
    """However many attempts and ledger rows a request has, and whatever their order, its content is the same."""
    document = record()
    [attempt], [entry] = document["attempts"], document["ledger"]
    document["attempts"] = [{**attempt, "number": number} for number in (11, 2, 1, 10, 3)]
    document["ledger"] = [{**entry, "entry": number} for number in (10, 0, 9)]
    await make_chained_writer(database, make_chain(), tmp_path).write([record(), document, record()])
    report = await verified(database)
    assert (messages(report), report.requests) == ([], 3)


async def test_checkpoints_come_with_time(database: Postgres, tmp_path: Path) -> None:
    """While a chain grows, the log says every minute how far it is; while it rests, nothing is added."""
    clock = Clock()
    chain = make_chain(clock=clock)
    writer = make_chained_writer(database, chain, tmp_path)
    running = asyncio.get_running_loop().create_task(chain.run(database))
    for written in (True, False, True):
        if written:
            await writer.write([record()])
        await wait_until(lambda: bool(clock.sleepers))
        await clock.advance(60)
        await wait_until(lambda: bool(clock.sleepers))
    running.cancel()
    rows = await database.fetch("SELECT document::json ->> 'length' AS length FROM audit_log ORDER BY number")
    assert [row["length"] for row in rows] == [None, "1", "2"]
