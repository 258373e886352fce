"""Props for the tests of the audit chain: a writer whose batches are chained, and the verifier of what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_log import Kind, LogHead
from llmproxy.audit_notary import Anchor, Notary
from llmproxy.audit_reader import Span, database_reader
from llmproxy.audit_verify import Report, verify
from llmproxy.batch_writer import COLUMNS, BatchChain, BatchWriter
from llmproxy.chain_writer import ChainWriter
from llmproxy.config import AuditConfig
from llmproxy.db import Postgres
from llmproxy.partitions import Partitions
from llmproxy.queries import Queries
from llmproxy.services import Clock, SystemClock
from tests.test_audit import ListLog, record

KEYS = AuditKeys("the key that signs")
QUERIES = Queries()


def make_chain(
    *,
    clock: Clock | None = None,
    log: ListLog | None = None,
    keys: AuditKeys = KEYS,
    rows: int = 10_000,
    anchor: Anchor | None = None,
) -> ChainWriter:
    """A chain that nobody has written to."""
    clock, log = clock or SystemClock(), log or ListLog()
    notary = Notary(QUERIES, keys, clock, log, anchor)
    return ChainWriter(QUERIES, notary, keys, COLUMNS, AuditConfig(checkpoint_rows=rows), clock=clock, log=log)


def make_chained_writer(postgres: Postgres, chain: BatchChain | None, directory: Path) -> BatchWriter:
    """A writer of batches that go into a chain, if there is one."""
    clock, log = SystemClock(), ListLog()
    partitions = Partitions(postgres, QUERIES, AuditConfig(), clock, log)
    rejected = directory / "rejected.jsonl"
    return BatchWriter(postgres, QUERIES, partitions, rejected, clock=clock, log=log, chain=chain, jitter=lambda: 0.0)


async def verified(
    postgres: Postgres, span: Span | None = None, keys: AuditKeys = KEYS, anchors: Sequence[LogHead] = ()
) -> Report:
    """What verifying the database finds."""
    async with database_reader(postgres, QUERIES, span or Span()) as reader:
        return await verify(reader, keys, anchors)


def messages(report: Report) -> list[str]:
    """The sentences of a report."""
    return [problem.message for problem in report.problems]


async def written(database: Postgres, directory: Path) -> None:
    """Two chains of several batches, one of which has ended, with checkpoints."""
    first, second = make_chain(rows=15), make_chain(rows=15)
    for chain in (first, second):
        writer = make_chained_writer(database, chain, directory)
        for size in (1, 7, 12, 2, 10):
            await writer.write([record() for _ in range(size)])
        if chain is first:
            await chain.end(database)
    await second._try_to_add_checkpoint(database, Kind.CHECKPOINT)
