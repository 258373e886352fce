"""Verifying the audit: the signed log, every chain, every row that a link stands for, and that no row has none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from llmproxy.audit_chain import AuditKeys, Contents, Link, Problem
from llmproxy.audit_check import ChainCheck
from llmproxy.audit_log import EMPTY_LOG, ChainFacts, LogCheck, LogEntry, LogHead
from llmproxy.audit_reader import Span
from llmproxy.request import Document

# What one wants to know is the first; a list of a million would not be read.
MAX_PROBLEMS: Final = 100


class AuditReader(Protocol):
    """Where the audit is read from: the database, or an export."""

    @property
    def span(self) -> Span:
        """Which links there are to be seen."""

    def entries(self) -> AsyncIterator[LogEntry]:
        """The signed log, from its beginning."""

    async def start(self, chain: UUID) -> Link | None:
        """The link of a chain after which the span begins; None for the chain's own beginning."""

    def rows(self, chain: UUID, facts: ChainFacts, start: Link | None) -> AsyncIterator[tuple[Link, Contents]]:
        """Every link of a chain after `start`, and what there is of its request."""

    def strays(self, log: LogCheck) -> AsyncIterator[Problem]:
        """What there is and is in no chain."""


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        requests: How many requests are as they were recorded, or else are among the problems.
        ledger_only: Of how many only the ledger could be compared, for the rest is past its retention.
        uncovered: How many were recorded after the last entry of the log about their chain: nothing would show that
            they were cut off.
        ended_at: The time of the log's last entry. Nothing but a head kept elsewhere shows that it had later ones.
        problems: The first of them.
    """

    span: Span
    head: LogHead = EMPTY_LOG
    began_at: datetime | None = None
    chains: int = 0
    requests: int = 0
    ledger_only: int = 0
    uncovered: int = 0
    ended_at: datetime | None = None
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, problems: Iterable[Problem]) -> None:
        """Count problems, and keep the first."""
        for problem in problems:
            self.problem_count += 1
            if len(self.problems) < MAX_PROBLEMS:
                self.problems.append(problem)

    def document(self) -> Document:
        """The report as JSON has it."""
        return {
            "ok": not self.problem_count,
            "since": self.span.since,
            "until": self.span.until,
            "began_at": self.began_at,
            "chains": self.chains,
            "requests": self.requests,
            "ledger_only": self.ledger_only,
            "uncovered": self.uncovered,
            "head": {
                "number": self.head.number,
                "entry_sha256": self.head.entry_sha256.hex(),
                "at": self.ended_at,
            },
            "problem_count": self.problem_count,
            "problems": [_shown(problem) for problem in self.problems],
        }


async def verify(reader: AuditReader, keys: AuditKeys, anchors: Sequence[LogHead] = ()) -> Report:
    """Compare everything with everything; in memory there is never more than a page of it.

    Args:
        anchors: Heads that the log is known to have had. Raises StorageError.
    """
    report, log = Report(reader.span), LogCheck(keys, reader.span.until)
    await _verify_log(reader, log, anchors, report)
    for chain, facts in log.chains.items():
        await _verify_chain(reader, ChainOf(chain, facts, log, keys), report)
    async for problem in reader.strays(log):
        report.add([problem])
    return report


@dataclass(frozen=True, slots=True)
class ChainOf:
    """A chain, and what has to be known to verify it."""

    id: UUID
    facts: ChainFacts
    log: LogCheck
    keys: AuditKeys


async def _verify_log(reader: AuditReader, log: LogCheck, anchors: Sequence[LogHead], report: Report) -> None:
    waiting = {anchor.number: anchor for anchor in anchors}
    async for entry in reader.entries():
        report.add(log.feed(entry))
        anchor = waiting.pop(entry.number, None)
        if anchor and anchor.entry_sha256 != entry.entry_sha256:
            report.add([Problem(f"Entry {entry.number} of the log is another than it was.", number=entry.number)])
    for number in sorted(waiting):
        message = f"The log ends at entry {log.head.number}; it is known to have had entry {number}."
        report.add([Problem(message, number=log.head.number)])
    report.head, report.began_at, report.ended_at = log.head, log.began_at, log.ended_at


async def _verify_chain(reader: AuditReader, chain: ChainOf, report: Report) -> None:
    start = await reader.start(chain.id)
    check = ChainCheck(chain.id, chain.facts, chain.keys, start, chain.log.dropped_before)
    report.add(check.begin())
    async for link, contents in reader.rows(chain.id, chain.facts, start):
        report.add(check.feed(link, contents))
    report.add(check.finish())
    report.chains += 1
    report.requests += check.requests
    report.ledger_only += check.ledger_only
    report.uncovered += check.uncovered


def _shown(problem: Problem) -> Document:
    return {
        "message": problem.message,
        "request_id": str(problem.request_id) if problem.request_id else None,
        "chain": str(problem.chain) if problem.chain else None,
        "number": problem.number,
    }
