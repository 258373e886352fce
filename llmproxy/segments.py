"""Segment files under the journal: checked lines, appended one write at a time by one owner that is known to live.

A worker holds `<owner>.lock` with flock for as long as it lives and writes `<owner>-<number>.log`. One lock stands
for all segments of an owner: whoever gets it has the whole story, so that no begin is judged without its end.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from llmproxy.request import Document

BEGIN: Final = b"B"
HOLD: Final = b"H"
END: Final = b"E"
_CHECKSUM_BYTES: Final = 9  # eight hexadecimal digits and a space
# Goes behind a half-written line: ends it, and spoils its checksum even when nothing but the newline was missing.
_SCRATCH: Final = b"!\n"
_MAX_DEPTH: Final = 100  # orjson writes 254 levels; a record and a batch put a few of their own around a value


class Entry(NamedTuple):
    """One line read back; `segment` and `end_bytes` say where the next one starts."""

    kind: bytes
    request_id: str
    record: Document
    segment: int
    end_bytes: int
    size_bytes: int


def encode_json(value: object) -> bytes:
    """JSON that can always be read back: what JSON cannot hold is replaced, not refused."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_storable(value, 0))


def encode_line(kind: bytes, request_id: str, record: Document) -> bytes:
    """One line, checksum first; JSON has no raw newline, so a line is a record."""
    body = b" ".join((kind, request_id.encode(), encode_json(record)))
    return b"%08x %b\n" % (zlib.crc32(body), body)


def read_entries(segments: Iterable[tuple[int, Path]], start_bytes: int = 0) -> Generator[Entry | None, None, None]:
    """Entries of segments in turn, None for each damaged line; `start_bytes` is into the first. Raises OSError."""
    for number, path in segments:
        with path.open("rb") as file:
            end_bytes = file.seek(start_bytes)
            for line in file:
                end_bytes += len(line)
                yield _decode_line(line, number, end_bytes)
        start_bytes = 0


def segment_paths(directory: Path, owner: str) -> list[tuple[int, Path]]:
    """An owner's segments, oldest first."""
    paths = ((path.stem.removeprefix(f"{owner}-"), path) for path in directory.glob(f"{owner}-*.log"))
    return sorted((int(number), path) for number, path in paths if number.isdecimal())


def owners(directory: Path) -> list[str]:
    """Every owner that left a lock or a segment."""
    locks = {path.stem for path in directory.glob("*.lock")}
    return sorted(locks | {path.stem.rpartition("-")[0] for path in directory.glob("*-*.log")})


def try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock, None when a living process has it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class SegmentWriter:
    """Appends lines, goes on in a new segment when one is full, and deletes those no longer needed.

    A new segment starts with `carry()`, what is known of the requests still open: an old one then waits for nothing
    but the shipping of what ended in it, however long a stream lasts.
    """

    def __init__(self, directory: Path, segment_bytes: int, carry: Callable[[], bytes]) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._limit_bytes = segment_bytes
        self._carry = carry
        self._owner, self._lock = _become_owner(directory)
        self._segments = [_Segment(self._path(1), 1)]
        self._is_torn = False
        self._needed = 1
        self._synced_number = 0
        # Held by whoever syncs, deletes or closes; appending needs none, it happens in one thread only.
        self._files = threading.Lock()

    @property
    def owner(self) -> str:
        """The name of whoever writes here; nobody else ever had it."""
        return self._owner

    @property
    def number(self) -> int:
        """The segment that is being written."""
        return self._segments[-1].number

    def append(self, lines: bytes) -> int:
        """Write, and give the offset they start at. Raises OSError: then nothing was left behind, or a torn line."""
        if self._segments[-1].size_bytes >= self._limit_bytes:
            self._roll()
        data = _SCRATCH + lines if self._is_torn else lines
        segment = self._segments[-1]
        self._is_torn = True
        segment.write(data)
        self._is_torn = False
        return segment.size_bytes - len(lines)

    def read(self, number: int, start_bytes: int) -> Generator[Entry | None, None, None]:
        """What was written from there on. Raises OSError."""
        segments = [(segment.number, segment.path) for segment in self._segments if segment.number >= number]
        return read_entries(segments, start_bytes)

    def need_from(self, number: int) -> None:
        """Let segments before `number` go at the next sync."""
        self._needed = number

    def sync(self) -> None:
        """Make what was written safe from power loss, then delete what is not needed. Blocks. Raises OSError."""
        with self._files:
            segments = tuple(self._segments)
            for segment in segments:
                segment.sync()
            self._sync_directory(segments[-1].number)
            # Only after the sync: the begins carried out of a segment must be safe before it goes.
            for segment in segments[:-1]:
                segment.close()
                if segment.number < self._needed:
                    segment.path.unlink(missing_ok=True)
                    self._segments.remove(segment)

    def close(self, *, delete: bool) -> None:
        """Let go of the lock; `delete` when nothing here is needed any more, else another owner replays it."""
        with self._files:
            for segment in self._segments:
                segment.close()
                if delete:
                    segment.path.unlink(missing_ok=True)
            if delete:
                self._lock_path(self._owner).unlink(missing_ok=True)
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1

    def _roll(self) -> None:
        """Go on in a new segment, or stay when there is no making one: the write that follows tells if it matters."""
        carried = self._carry()
        with suppress(OSError):
            segment = _Segment(self._path(self.number + 1), self.number + 1)
            try:
                segment.write(carried)
            except OSError:
                segment.close()
                segment.path.unlink(missing_ok=True)
                return
            self._segments.append(segment)
            self._limit_bytes = self._segment_bytes + len(carried)
            self._is_torn = False

    def _sync_directory(self, number: int) -> None:
        if number == self._synced_number:
            return
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._synced_number = number

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._owner}-{number:08}.log"

    def _lock_path(self, owner: str) -> Path:
        return self._directory / f"{owner}.lock"


class _Segment:
    """One file, open for appending until `close`."""

    __slots__ = ("_descriptor", "_synced_bytes", "number", "path", "size_bytes")

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.size_bytes = 0
        self._synced_bytes = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    def write(self, data: bytes) -> None:
        """Append all of it, or none. Raises OSError, and only if the file cannot even be cut, a part is left."""
        left = data
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.size_bytes)
            self.size_bytes = os.fstat(self._descriptor).st_size
            raise
        self.size_bytes += len(data)

    def sync(self) -> None:
        size_bytes = self.size_bytes
        if size_bytes > self._synced_bytes:
            os.fdatasync(self._descriptor)
            self._synced_bytes = size_bytes

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        # The number may soon be another file's; a write that comes too late must fail instead.
        self._descriptor = -1


def _become_owner(directory: Path) -> tuple[str, int]:
    """A new owner's name and the descriptor of its lock."""
    while True:
        owner = secrets.token_hex(8)
        path = directory / f"{owner}.lock"
        descriptor = try_lock(path)
        if descriptor is None:
            continue
        # Between making and locking it, a worker that looks for orphans may have found it empty and deleted it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return owner, descriptor
        os.close(descriptor)


def _decode_line(line: bytes, segment: int, end_bytes: int) -> Entry | None:
    """None when any byte differs from what was written, or the newline is missing."""
    if not line.endswith(b"\n") or line[:_CHECKSUM_BYTES] != b"%08x " % zlib.crc32(line[_CHECKSUM_BYTES:-1]):
        return None
    parts = line[_CHECKSUM_BYTES:-1].split(b" ", 2)
    try:
        kind, request_id, record = parts
        return Entry(kind, request_id.decode(), orjson.loads(record), segment, end_bytes, len(line))
    except ValueError:
        return None


def _storable(value: object, depth: int) -> object:
    if depth > _MAX_DEPTH:
        return "nested too deeply to keep"
    if isinstance(value, dict):
        return {_text(str(key)): _storable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item, depth + 1) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return hex(value)
    if value is None or isinstance(value, (bool, int, float, orjson.Fragment)):
        return value
    return _text(str(value))


def _text(value: str) -> str:
    """Lone surrogates have no UTF-8 form; they become question marks."""
    return value.encode(errors="replace").decode()
