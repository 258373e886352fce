"""Checking one chain against what the tables hold, link after link. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Final
from uuid import UUID

from llmproxy.audit_chain import AuditKeys, Contents, Link, Problem, content_hash, link_hash
from llmproxy.audit_log import ChainFacts

_NO_ROWS: Final = ""


class ChainCheck:
    """Reads a chain from its start to its end.

    Args:
        facts: What the signed log says of it.
        start: The link after which to begin; None for the chain's own beginning.
        dropped_before: Rows of requests of earlier days may be gone.

    Attributes:
        requests: How many requests were compared with all their rows.
        ledger_only: How many of which only the ledger is still kept.
    """

    def __init__(
        self, chain: UUID, facts: ChainFacts, keys: AuditKeys, start: Link | None, dropped_before: date | None
    ) -> None:
        self._chain = chain
        self._facts = facts
        self._keys = keys
        self._dropped_before = dropped_before or date.min
        self._last = start
        self._number, self._link_sha256 = (start.number, start.link_sha256) if start else (0, facts.genesis)
        self._signed_number = self._number
        self.requests = self.ledger_only = 0

    @property
    def uncovered(self) -> int:
        """How many links the log knows nothing of yet, which could be cut off without a trace."""
        return max(self._number - self._facts.length, 0)

    def begin(self) -> Iterator[Problem]:
        """What is wrong with the link after which to begin, of which only the signature is known."""
        if self._last is not None:
            yield from self._signature_problems(self._last)

    def feed(self, link: Link, contents: Contents) -> Iterator[Problem]:
        """What is wrong with the next link, or with the rows that it stands for."""
        yield from self._order_problems(link)
        yield from self._signature_problems(link)
        yield from self._content_problems(link, contents)
        if link.number == self._facts.length and link.link_sha256 != self._facts.link_sha256:
            yield self._problem(link, "is not the one that the log had at this place")
        self._last, self._number, self._link_sha256 = link, link.number, link.link_sha256

    def finish(self) -> Iterator[Problem]:
        """What is wrong with the end."""
        chain, facts = f"Chain {self._chain}", self._facts
        if self._signed_number < self._number:
            message = f"{chain}: nobody signed what stands behind link {self._signed_number}."
            yield Problem(message, self._last.request_id if self._last else None, self._chain, self._number)
        if self._number < facts.length:
            message = f"{chain} breaks off at link {self._number}; the log had it at {facts.length}."
            yield Problem(message, None, self._chain, self._number)
        if facts.has_ended and self._number > facts.length:
            message = f"{chain} goes on to link {self._number}; by the log it had ended at {facts.length}."
            yield Problem(message, None, self._chain, self._number)

    def _order_problems(self, link: Link) -> Iterator[Problem]:
        if link.number != self._number + 1:
            yield self._problem(link, f"comes after link {self._number}, and what was between them is missing")
        elif link_hash(self._chain, link, self._link_sha256) != link.link_sha256:
            yield self._problem(link, "does not follow from the one before it: one of the two was changed")
        elif self._last is not None and (link.recorded_at > self._last.recorded_at) is (self._last.signature is None):
            yield self._problem(self._last, "has no signature, or one that it must not have")

    def _signature_problems(self, link: Link) -> Iterator[Problem]:
        if link.signature is None:
            return
        key_id = self._facts.key_id
        if not self._keys.knows(key_id):
            yield self._problem(link, f"is signed with the key {key_id}, which is not known here")
        elif not self._keys.is_link_signature(key_id, link.link_sha256, link.signature):
            yield self._problem(link, f"has not our signature: it, or one since link {self._signed_number}, is forged")
        self._signed_number = link.number

    def _content_problems(self, link: Link, contents: Contents) -> Iterator[Problem]:
        if content_hash(contents.ledger) != link.ledger_sha256:
            state = "missing" if contents.ledger == _NO_ROWS else "not what was recorded"
            yield self._row_problem(link, f"its rows of ledger_entries are {state}")
        if link.admitted_at.date() < self._dropped_before:
            self.ledger_only += 1
            return
        self.requests += 1
        if contents.request is None:
            yield self._row_problem(link, "its row of requests is missing")
        elif content_hash(contents.request) != link.request_sha256:
            yield self._row_problem(link, "its row of requests, or its attempts, are not what was recorded")

    def _problem(self, link: Link, what: str) -> Problem:
        message = f"Link {link.number} of chain {self._chain}, of request {link.request_id}, {what}."
        return Problem(message, link.request_id, self._chain, link.number)

    def _row_problem(self, link: Link, what: str) -> Problem:
        message = f"Request {link.request_id}: {what}."
        return Problem(message, link.request_id, self._chain, link.number)
