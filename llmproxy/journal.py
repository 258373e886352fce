"""The local write-ahead record of what was let in, what it held, and how it ended.

What is written survives kill -9 of the worker, for it is in the page cache: with `write_soon`, all that requests have
noted in one turn of the event loop is written in one go, and before any of it leaves for a provider, or is answered
without one (see `flush`). Power loss takes at most what was written since the last `sync`. What is not yet in Postgres
is kept in memory up to the size of one segment; what ends beyond that is read back from the files, so an outage of any
length costs disk alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from llmproxy.config import JournalConfig
from llmproxy.errors import StorageError
from llmproxy.request import Document
from llmproxy.segments import (
    BEGIN,
    END,
    HOLD,
    Entry,
    SegmentWriter,
    encode_line,
    owners,
    read_entries,
    segment_paths,
    try_lock,
)


class Journal:
    """One worker's journal: a line when a request is let in, one when it ends, kept until shipped.

    Between them, a line says what the request holds whenever that changes: the last one counts should it never end.

    Not thread-safe, but for `sync`, which may run in a thread of its own.
    Raises StorageError when the directory cannot be used.

    Args:
        write_soon: Has what it is given called before long, as `call_soon` of the event loop does. Without it
            everything is written at once.
    """

    def __init__(
        self,
        directory: Path,
        config: JournalConfig,
        write_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._directory = directory
        self._memory_bytes = config.segment_bytes
        self._write_soon = write_soon
        # Begin lines of requests whose end is not yet written, and the last hold lines; a new segment starts with them.
        self._open: dict[str, bytes] = {}
        self._held: dict[str, bytes] = {}
        # What is to be written next, and which requests end with it.
        self._noted: list[_Noted] = []
        self._ending: set[str] = set()
        self._ended: deque[_Ended] = deque()
        self._ended_bytes = 0
        self._spill: _Position | None = None
        self._spilled = 0
        self._failure: OSError | None = None
        self._is_kept = False
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._segments = SegmentWriter(directory, config.segment_bytes, self._carry)
        except OSError as error:
            raise _unwritable(error) from error

    @property
    def owner(self) -> str:
        """The name of this journal; no other ever has it."""
        return self._segments.owner

    @property
    def writable(self) -> bool:
        """Whether the last write worked; while it is False new requests must be refused."""
        return self._failure is None

    @property
    def failure(self) -> str | None:
        """Why it is not writable, in one sentence."""
        return _unwritable(self._failure).message if self._failure else None

    @property
    def pending(self) -> int:
        """How many ended requests are not acknowledged."""
        return len(self._ended) + self._spilled + len(self._ending)

    def begin(self, request_id: str, record: Document) -> None:
        """Note that a request is let in.

        Raises StorageError when that cannot be written, or nothing could be just now: refuse the request.
        """
        line = encode_line(BEGIN, request_id, record)
        self._note(_Noted(line))
        self._open[request_id] = line

    def hold(self, request_id: str, record: Document, *, at_once: bool = False) -> None:
        """Note what a begun request holds, in place of what it held before.

        Raises StorageError as `begin` does: then it must not use what it would hold.

        Args:
            at_once: Have it written before this returns; if it cannot be, it was never noted.
        """
        line = encode_line(HOLD, request_id, record)
        self._note(_Noted(line), at_once=at_once)
        self._held[request_id] = line

    def end(self, request_id: str, record: Document) -> None:
        """Note how a request ended; the first end of a begun request counts.

        Never raises: what cannot be written is kept, and written by a later `begin`, `end` or `recover`.
        """
        if request_id in self._open and request_id not in self._ending:
            self._ending.add(request_id)
            self._noted.append(_Noted(encode_line(END, request_id, record), request_id, record))
            if not self._is_written_soon():
                self.recover()

    def flush(self) -> None:
        """Write all that is noted: to be called before anything is done that it tells of.

        Raises StorageError when that cannot be; it stays noted, and must not be done.
        """
        if not self._noted:
            return
        try:
            start_bytes = self._segments.append(b"".join([noted.line for noted in self._noted]))
        except OSError as error:
            self._failure = error
            raise _unwritable(error) from error
        self._failure = None
        written, self._noted = self._noted, []
        for line, request_id, record in written:
            if record is not None:
                del self._open[request_id]
                self._ending.remove(request_id)
                self._held.pop(request_id, None)
                self._enqueue(_Position(self._segments.number, start_bytes), len(line), record)
            start_bytes += len(line)

    def recover(self) -> None:
        """Write what is noted, as far as that can be; sets `writable`."""
        try:
            self.flush()
            if self._failure:
                self._segments.append(b"")
                self._failure = None
        except StorageError:
            # `failure` tells.
            return
        except OSError as error:
            self._failure = error

    def peek(self, limit: int) -> list[Document]:
        """The oldest ended records that are not acknowledged, at most `limit`. Raises StorageError."""
        if not self._ended and self._spill:
            try:
                self._read_back(self._spill, limit)
            except OSError as error:
                raise _unreadable(error) from error
        return [ended.record for ended in islice(self._ended, limit)]

    def acknowledge(self, count: int) -> None:
        """Forget the oldest `count` ended records: they are in Postgres."""
        for _ in range(count):
            self._ended_bytes -= self._ended.popleft().size_bytes
        self._segments.need_from(self._oldest_needed())

    def sync(self) -> None:
        """Make what was written safe from power loss, and delete segments that are done with. Blocks.

        Raises StorageError.
        """
        try:
            self._segments.sync()
        except OSError as error:
            raise _unwritable(error) from error

    def claim(self) -> Orphan | None:
        """The journal of a worker that died, for this caller alone; None when there is none. Raises StorageError."""
        try:
            claims = (_claim(self._directory, owner, self._memory_bytes) for owner in owners(self._directory))
            return next((orphan for orphan in claims if orphan), None)
        except OSError as error:
            raise _unreadable(error) from error

    def keep(self) -> None:
        """Leave the files for another worker to claim at `close`, although nothing is left in them."""
        self._is_kept = True

    def close(self) -> None:
        """Let go of the files: deleted when nothing is left in them, else for another worker to claim.

        Raises StorageError.
        """
        self.recover()
        try:
            self._segments.close(delete=not self._is_kept and not self._open and not self.pending)
        except OSError as error:
            raise _unwritable(error) from error

    def _note(self, noted: _Noted, *, at_once: bool = False) -> None:
        self._noted.append(noted)
        if not at_once and self._is_written_soon():
            return
        try:
            self.flush()
        except StorageError:
            self._noted.pop()
            raise

    def _is_written_soon(self) -> bool:
        """Whether what is noted now need not be written at once; where writing fails, everybody is to know."""
        if self._write_soon is None or self._failure:
            return False
        if len(self._noted) == 1:
            self._write_soon(self.recover)
        return True

    def _enqueue(self, position: _Position, size_bytes: int, record: Document) -> None:
        if self._spill is None and (not self._ended or self._ended_bytes + size_bytes <= self._memory_bytes):
            self._ended.append(_Ended(position.segment, size_bytes, record))
            self._ended_bytes += size_bytes
            return
        self._spill = self._spill or position
        self._spilled += 1

    def _read_back(self, spill: _Position, limit: int) -> None:
        """Fill the empty queue from the files."""
        with closing(self._segments.read(*spill)) as entries:
            for entry in entries:
                if entry is None:
                    continue
                self._spill = _Position(entry.segment, entry.end_bytes)
                if entry.kind == END:
                    self._ended.append(_Ended(entry.segment, entry.size_bytes, entry.record))
                    self._ended_bytes += entry.size_bytes
                    self._spilled -= 1
                if len(self._ended) >= limit or self._ended_bytes >= self._memory_bytes:
                    return
        self._spill, self._spilled = None, 0

    def _oldest_needed(self) -> int:
        if self._ended:
            return self._ended[0].segment
        return self._spill.segment if self._spill else self._segments.number

    def _carry(self) -> bytes:
        return b"".join([*self._open.values(), *self._held.values()])


class Orphan:
    """What a dead worker left, locked: nobody else replays it until `release`.

    Attributes:
        owner: The name of the worker's journal.
        damaged_lines: How many lines could not be read so far; a torn last one is usual after a power loss.
    """

    def __init__(self, lock: int, lock_path: Path, segments: list[tuple[int, Path]], batch_bytes: int) -> None:
        self.owner = lock_path.stem
        self._lock = lock
        self._lock_path = lock_path
        self._segments = segments
        self._batch_bytes = batch_bytes
        self.damaged_lines = 0

    @property
    def is_empty(self) -> bool:
        """Whether it has no segment at all."""
        return not self._segments

    def batches(self, limit: int) -> Generator[list[Replayed], None, None]:
        """Every request once: those that ended, in order, then those that did not. Raises StorageError."""
        batch: list[Replayed] = []
        batch_bytes = 0
        for replayed, size_bytes in self._replay():
            batch.append(replayed)
            batch_bytes += size_bytes
            if len(batch) >= limit or batch_bytes >= self._batch_bytes:
                yield batch
                batch, batch_bytes = [], 0
        if batch:
            yield batch

    def delete(self) -> None:
        """Delete it, once everything in it is in Postgres, and let go. Raises StorageError."""
        try:
            # Oldest first: an end whose begin is gone is still an end, a begin whose end is gone is not.
            for _, path in self._segments:
                path.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(error) from error
        finally:
            self.release()

    def release(self) -> None:
        """Let go of what is left, for anyone to claim."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _replay(self) -> Iterator[tuple[Replayed, int]]:
        begun: dict[str, Entry] = {}
        held: dict[str, Document] = {}
        try:
            for entry in read_entries(self._segments):
                if entry is None:
                    self.damaged_lines += 1
                elif entry.kind == BEGIN:
                    begun[entry.request_id] = entry
                elif entry.kind == HOLD:
                    held[entry.request_id] = entry.record
                else:
                    begun.pop(entry.request_id, None)
                    held.pop(entry.request_id, None)
                    yield Replayed(entry.record, is_ended=True), entry.size_bytes
        except OSError as error:
            raise _unreadable(error) from error
        for request_id, entry in begun.items():
            record = {**entry.record, "held": held[request_id]} if request_id in held else entry.record
            yield Replayed(record, is_ended=False), entry.size_bytes


class Replayed(NamedTuple):
    """A record of an orphan: how a request ended, or else only how it began, with what it last `held`, if anything."""

    record: Document
    is_ended: bool


class _Noted(NamedTuple):
    """A line that is to be written, and the record of a request that ends with it."""

    line: bytes
    request_id: str = ""
    record: Document | None = None


class _Ended(NamedTuple):
    segment: int
    size_bytes: int
    record: Document


class _Position(NamedTuple):
    segment: int
    start_bytes: int


def _claim(directory: Path, owner: str, batch_bytes: int) -> Orphan | None:
    lock_path = directory / f"{owner}.lock"
    lock = try_lock(lock_path)
    if lock is None:
        return None
    orphan = Orphan(lock, lock_path, segment_paths(directory, owner), batch_bytes)
    if orphan.is_empty:
        orphan.delete()
        return None
    return orphan


def _unwritable(error: OSError) -> StorageError:
    return StorageError(
        f"The local journal cannot be written ({error.strerror}), so no request is let in; "
        "make room in the state directory, or make it writable."
    )


def _unreadable(error: OSError) -> StorageError:
    return StorageError(f"The local journal cannot be read ({error.strerror}); check the state directory.")
