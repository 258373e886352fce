"""The audit as a file that proves itself: JSON lines with the signed log, and every link with what it stands for.

The last line is a signature of all others, so that nothing of the file can be left out.

Contents stand in the file as the text that was hashed: rows as Postgres writes them, in the order of the columns that
the chain's first entry in the log names.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import orjson

from llmproxy.audit_chain import AuditKeys, Contents, Link, Problem
from llmproxy.audit_log import ChainFacts, LogCheck, LogEntry
from llmproxy.audit_reader import Span
from llmproxy.audit_verify import AuditReader
from llmproxy.errors import BadRequest
from llmproxy.request import Document

FORMAT: Final = "llmproxy audit 1"
_PURPOSE: Final = b"llmproxy export "
_NUMBERS: Final = 2**63


async def export(reader: AuditReader, keys: AuditKeys) -> AsyncIterator[bytes]:
    """The lines of a file, of what a reader sees. Raises StorageError."""
    digest = hashlib.sha256()
    async for line in _lines(reader, keys):
        digest.update(line)
        yield line
    yield _line({"end": keys.sign(_PURPOSE, digest.digest()).hex(), "key_id": keys.key_id})


async def _lines(reader: AuditReader, keys: AuditKeys) -> AsyncIterator[bytes]:
    yield _line({"format": FORMAT, "since": reader.span.since, "until": reader.span.until})
    log = LogCheck(keys, reader.span.until)
    async for entry in reader.entries():
        # What is wrong is for whoever verifies the file to find.
        list(log.feed(entry))
        yield _line({"entry": _entry_document(entry)})
    for chain, facts in log.chains.items():
        start = await reader.start(chain)
        yield _line({"chain": chain, "start": _link_document(start) if start else None})
        async for link, contents in reader.rows(chain, facts, start):
            yield _line({"link": _link_document(link), **contents._asdict()})


def _line(document: Document) -> bytes:
    return orjson.dumps(document, default=str, option=orjson.OPT_APPEND_NEWLINE)


def _entry_document(entry: LogEntry) -> Document:
    return _hexadecimal(entry._asdict())


def _link_document(link: Link) -> Document:
    return _hexadecimal(link._asdict())


def _hexadecimal(fields: Document) -> Document:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}


class ExportReader:
    """The audit as an exported file has it.

    Args:
        lines: The lines of the file; they are read once, from the first to the last.
        keys: Whose signature the file may have.

    Raises:
        BadRequest: Now or when it is read, at a line that cannot be one of an export.
    """

    def __init__(self, lines: Iterable[bytes], keys: AuditKeys) -> None:
        self._lines = _Lines(lines)
        self._keys = keys
        header = self._lines.take("format")
        if header is None or header["format"] != FORMAT:
            raise BadRequest(f"This is no file that 'llmproxy audit export' wrote: it does not begin with {FORMAT!r}.")
        with self._lines:
            self.span: Final = Span(_moment(header["since"]), _moment(header["until"]))

    async def entries(self) -> AsyncIterator[LogEntry]:
        """The signed log, from its beginning."""
        while line := self._lines.take("entry"):
            with self._lines:
                fields = line["entry"]
                digests = bytes.fromhex(fields["entry_sha256"]), fields["key_id"], bytes.fromhex(fields["signature"])
                yield LogEntry(int(fields["number"]), str(fields["document"]), *digests)

    async def start(self, chain: UUID) -> Link | None:
        """The link of a chain after which the file begins; None for the chain's own beginning."""
        line = self._lines.take("chain", str(chain))
        with self._lines:
            return _link(line["start"]) if line and line["start"] else None

    async def rows(self, chain: UUID, facts: ChainFacts, start: Link | None) -> AsyncIterator[tuple[Link, Contents]]:
        """Every link that comes next in the file."""
        while line := self._lines.take("link"):
            with self._lines:
                request = line["request"]
                yield _link(line["link"]), Contents(None if request is None else str(request), str(line["ledger"]))

    async def strays(self, log: LogCheck) -> AsyncIterator[Problem]:
        """What is wrong with the file as a file."""
        digest = self._lines.digest
        line = self._lines.take("end")
        with self._lines:
            key_id, signature = (str(line["key_id"]), bytes.fromhex(line["end"])) if line else ("", b"")
        if line is None:
            yield Problem(f"Line {self._lines.number} of the file is missing, or is not what belongs there.")
        elif self._lines.rest() or not self._keys.is_signature(key_id, _PURPOSE, digest, signature):
            yield Problem("The file is not as it was written: the signature at its end is not ours, or not the end.")


class _Lines:
    """The lines of a file, one of which is looked at before it is taken; as a context, it blames the current line."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines: Iterator[bytes] = iter(lines)
        self._next: dict[str, Any] | None = None  # a JSON object of whoever made the file
        self._next_data = b""
        self._digest = hashlib.sha256()
        self.number = 0
        self._advance()

    def take(self, kind: str, value: str | None = None) -> dict[str, Any] | None:
        """The next line, if it is of this kind, and about this."""
        line = self._next
        if line is None or kind not in line or (value is not None and line[kind] != value):
            return None
        self._advance()
        return line

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the lines that were taken."""
        return self._digest.digest()

    def rest(self) -> bool:
        """Whether there are more."""
        return self._next is not None

    def _advance(self) -> None:
        self._digest.update(self._next_data)
        data = next(self._lines, None)
        self._next_data = data or b""
        self.number += 1
        with self:
            self._next = None if data is None else dict(orjson.loads(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | OverflowError):
            raise BadRequest(f"The file has a line that is none of an export, about line {self.number}.") from error


def _link(fields: dict[str, Any]) -> Link:  # a JSON object of whoever made the file
    number = int(fields["number"])
    if not 0 < number < _NUMBERS:
        raise ValueError(number)
    return Link(
        number,
        _time(fields["recorded_at"]),
        UUID(fields["request_id"]),
        _time(fields["admitted_at"]),
        bytes.fromhex(fields["request_sha256"]),
        bytes.fromhex(fields["ledger_sha256"]),
        bytes.fromhex(fields["link_sha256"]),
        None if fields["signature"] is None else bytes.fromhex(fields["signature"]),
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else _time(text)


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment
