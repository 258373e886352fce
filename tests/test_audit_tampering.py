"""Tampering with a copy of what was recorded, in every way there is: verifying finds it and names the row."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from llmproxy.audit_chain import AuditKeys, Contents, Link, Problem, content_hash, link_hash
from llmproxy.audit_log import ChainFacts, LogCheck, LogEntry, LogHead, make_entry
from llmproxy.audit_reader import DatabaseReader, Span
from llmproxy.audit_verify import Report, verify
from llmproxy.db import Postgres
from llmproxy.services import Connection
from tests.audit_rows import KEYS, QUERIES, messages, written

TRIALS = 1_000
Row = tuple[Link, Contents]


@dataclass
class Copy:
    """Everything that the database holds of the audit, to be tampered with."""

    entries: list[LogEntry]
    chains: dict[UUID, list[Row]]
    span: Span = field(default_factory=Span)

    def copy(self) -> Copy:
        return Copy(list(self.entries), {chain: list(rows) for chain, rows in self.chains.items()})


class CopyReader:
    """Reads a copy."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self.span = Span()

    async def entries(self) -> AsyncIterator[LogEntry]:
        for entry in self._copy.entries:
            yield entry

    async def start(self, chain: UUID) -> Link | None:
        return None

    async def rows(self, chain: UUID, facts: ChainFacts, start: Link | None) -> AsyncIterator[Row]:
        for row in self._copy.chains.get(chain, []):
            yield row

    async def strays(self, log: LogCheck) -> AsyncIterator[Problem]:
        for chain in self._copy.chains.keys() - log.chains.keys():
            yield Problem("unknown chain", None, chain)


# What a tamperer did: tells whether a report names it.
Named = Callable[[Report], bool]


def names_request(*links: Link) -> Named:
    """Whether the first problem, or one that stands beside it, is about one of these requests."""
    wanted = {link.request_id for link in links}
    return lambda report: bool(wanted & {problem.request_id for problem in report.problems[:3]})


def names_place(chain: UUID, first: int, last: int) -> Named:
    """Whether the first problem is about one of these links."""
    return lambda report: report.problems[0].chain == chain and first <= (report.problems[0].number or 0) <= last


def names_entry(number: int) -> Named:
    """Whether a problem is about this entry of the log, or the next."""
    return lambda report: any(p.number in (number, number + 1) and p.chain is None for p in report.problems[:2])


def somewhere(report: Report) -> bool:
    """For what has no place of its own."""
    return bool(report.problems)


class Tamperer:
    """Someone who may write everything, but has not the key."""

    def __init__(self, copy: Copy, chance: random.Random) -> None:
        self.copy = copy
        self.chance = chance
        self.chain = chance.choice([chain for chain, rows in copy.chains.items() if len(rows) > 8])
        self.rows = copy.chains[self.chain]
        self.place = chance.randrange(len(self.rows))

    def edit_a_row(self) -> Named:
        """Change one character of what is stored of a request, its attempts or its ledger rows."""
        link, contents = self.rows[self.place]
        name = self.chance.choice(Contents._fields)
        text = str(getattr(contents, name))
        at = self.chance.randrange(len(text))
        changed = text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]
        self.rows[self.place] = (link, contents._replace(**{name: changed}))
        return names_request(link)

    def remove_or_add_a_row(self) -> Named:
        """Take an attempt or a ledger row away, or put one in, exactly as Postgres would show it."""
        link, contents = self.rows[self.place]
        attempts_at = (contents.request or "").rindex("(")
        request, attempts = (contents.request or "")[:attempts_at], (contents.request or "")[attempts_at:]
        change = self.chance.choice([_doubled, _emptied])
        changed = self.chance.choice(
            [
                Contents(f"{request}{change(attempts)}", contents.ledger),
                contents._replace(ledger=change(contents.ledger)),
            ]
        )
        self.rows[self.place] = (link, changed)
        return names_request(link)

    def delete_the_rows(self) -> Named:
        """Delete what a link stands for, and leave the link."""
        link, _ = self.rows[self.place]
        self.rows[self.place] = (link, Contents(None, ""))
        return names_request(link)

    def delete_a_link(self) -> Named:
        """Delete a link with all that it stands for."""
        self.place = self.chance.randrange(len(self.rows) - 1)
        del self.rows[self.place]
        return names_request(self.rows[self.place][0])

    def truncate(self) -> Named:
        """Cut the end of a chain off."""
        del self.rows[self.place :]
        return names_place(self.chain, self.place, self.place)

    def remove_a_chain(self) -> Named:
        """Remove a chain, and half the time also what the log says of it."""
        del self.copy.chains[self.chain]
        if self.chance.random() < 0.5:
            self.copy.entries[:] = [entry for entry in self.copy.entries if str(self.chain) not in entry.document]
            return somewhere
        return names_place(self.chain, 0, 0)

    def swap_contents(self) -> Named:
        """Let two requests have each other's rows."""
        other = self.chance.choice([n for n in range(len(self.rows)) if n != self.place])
        (one, contents), (two, others) = self.rows[self.place], self.rows[other]
        self.rows[self.place], self.rows[other] = (one, others), (two, contents)
        return names_request(one, two)

    def swap_links(self) -> Named:
        """Let two requests have each other's place in the chain."""
        other = self.chance.choice([n for n in range(len(self.rows)) if n != self.place])
        (one, contents), (two, others) = self.rows[self.place], self.rows[other]
        self.rows[self.place] = (two._replace(number=one.number), others)
        self.rows[other] = (one._replace(number=two.number), contents)
        return names_request(one, two)

    def edit_a_link(self) -> Named:
        """Change one column of a link."""
        link, contents = self.rows[self.place]
        name = self.chance.choice(Link._fields)
        changed = link._replace(**{name: _other_field(getattr(link, name))})
        self.rows[self.place] = (changed, contents)
        return names_request(link, changed)

    def insert_a_link(self) -> Named:
        """Put a request in that never was, with a link that fits but for the signatures."""
        link, contents = self.rows[self.place]
        forged = link._replace(request_id=uuid4(), signature=None)
        self.rows.insert(self.place, (forged, contents))
        self._relink()
        return names_place(self.chain, self.place + 1, self._next_signed())

    def rewrite(self) -> Named:
        """Change a value, and make all hashes anew."""
        link, contents = self.rows[self.place]
        text = (contents.request or "").replace("openai/gpt-4o", "openai/gpt-4x")
        changed = link._replace(request_sha256=content_hash(text))
        self.rows[self.place] = (changed, Contents(text, contents.ledger))
        self._relink()
        return names_place(self.chain, self.place + 1, self._next_signed())

    def sign_with_another_key(self) -> Named:
        """Change a value, make all hashes anew, and sign."""
        self.rewrite()
        key = AuditKeys("another key")
        for number, (link, contents) in enumerate(self.rows):
            if link.signature is not None and number >= self.place:
                self.rows[number] = (link._replace(signature=key.sign_link(link.link_sha256)), contents)
        return names_place(self.chain, self.place + 1, self._next_signed())

    def edit_the_log(self) -> Named:
        """Change, remove or double an entry of the log, or forge what follows."""
        number = self.chance.randrange(len(self.copy.entries) - 1)
        entry = self.copy.entries[number]
        match self.chance.randrange(4):
            case 0:
                name = self.chance.choice(LogEntry._fields)
                self.copy.entries[number] = entry._replace(**{name: _other_field(getattr(entry, name))})
            case 1:
                del self.copy.entries[number]
            case 2:
                self.copy.entries.insert(number, entry)
            case _:
                head = LogCheck(KEYS)
                for each in self.copy.entries[:number]:
                    list(head.feed(each))
                facts = json.loads(entry.document)
                forged = make_entry(head.head, AuditKeys("another key"), facts["at"], facts["kind"], {"chain": None})
                self.copy.entries[number] = forged
        return names_entry(entry.number)

    def _relink(self) -> None:
        """Numbers and hashes that fit, which needs no key."""
        previous = self.rows[self.place - 1][0].link_sha256 if self.place else self._genesis()
        for place, (link, contents) in enumerate(self.rows[self.place :], self.place):
            numbered = link._replace(number=place + 1)
            previous = link_hash(self.chain, numbered, previous)
            self.rows[place] = (numbered._replace(link_sha256=previous), contents)

    def _genesis(self) -> bytes:
        log = LogCheck(KEYS)
        for entry in self.copy.entries:
            list(log.feed(entry))
        return log.chains[self.chain].genesis

    def _next_signed(self) -> int:
        return next(link.number for link, _ in self.rows[self.place :] if link.signature is not None)


def _doubled(rows: str) -> str:
    return rows + rows


def _emptied(rows: str) -> str:
    return ""


def _other_field(value: Any) -> Any:  # whatever a column holds
    match value:
        case None:
            return bytes(32)
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case UUID():
            return uuid4()
        case int():
            return value + 1
        case str():
            return ("1" if value[:1] != "1" else "2") + value[1:]
        case _:
            return value + timedelta(microseconds=1)


TAMPERINGS = [name for name in vars(Tamperer) if not name.startswith("_")]


async def copied(connection: Connection) -> Copy:
    """All that there is."""
    reader, log = DatabaseReader(connection, QUERIES, Span()), LogCheck(KEYS)
    copy = Copy([entry async for entry in reader.entries()], {})
    for entry in copy.entries:
        assert list(log.feed(entry)) == []
    for chain, facts in log.chains.items():
        copy.chains[chain] = [row async for row in reader.rows(chain, facts, None)]
    return copy


async def recorded(database: Postgres, directory: Path) -> Copy:
    """A copy of what was written, which verifies."""
    await written(database, directory)
    async with database.transaction() as connection:
        copy = await copied(connection)
    assert messages(await verify(CopyReader(copy), KEYS)) == []
    return copy


def tampered(original: Copy, trial: int) -> tuple[str, Copy, Named]:
    """What was done in a trial, to what, and what tells whether a report names it."""
    chance, copy = random.Random(trial), original.copy()  # noqa: S311 - so that a failure can be repeated
    tampering = TAMPERINGS[trial % len(TAMPERINGS)]
    return tampering, copy, getattr(Tamperer(copy, chance), tampering)()


async def test_tampering_is_found_and_named(database: Postgres, tmp_path: Path) -> None:
    """In a thousand copies of what was recorded, each tampered with in one way, what was done is found and named."""
    original = await recorded(database, tmp_path)
    head = LogHead(original.entries[-1].number, original.entries[-1].entry_sha256)
    missed, done = [], Counter[str]()
    for trial in range(TRIALS):
        tampering, copy, is_named = tampered(original, trial)
        report = await verify(CopyReader(copy), KEYS, [head])
        done[tampering] += 1
        if not report.problems or not is_named(report):
            missed.append((trial, tampering, messages(report)[:3]))
    assert missed == [], f"{len(missed)} of {done}"
    assert set(done) == set(TAMPERINGS)


async def test_without_an_anchor_only_a_cut_end_is_missed(database: Postgres, tmp_path: Path) -> None:
    """What nobody finds without a head that was kept is the audit of an earlier moment; the report tells which."""
    original = await recorded(database, tmp_path)
    last, missed = original.entries[-1].number, 0
    for trial in range(TRIALS):
        _, copy, _ = tampered(original, trial)
        report = await verify(CopyReader(copy), KEYS)
        if report.problems:
            continue
        missed += 1
        assert copy.entries == original.entries[: len(copy.entries)]
        assert report.head.number == len(copy.entries) < last
        assert all(copy.chains[chain] == original.chains[chain] for chain in copy.chains)
    assert missed
