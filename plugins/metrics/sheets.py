"""Where the numbers are: sheets, each written by one worker, and read by whichever is asked for them.

A sheet is memory that a file shares, so that adding to it costs no more than to a list, and what was added is there
even if the worker is killed the next moment. A worker that takes a dead one's place goes on with its sheet: nothing is
summed up and moved, so nothing can be lost or doubled on the way.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from llmproxy.api import Log, StorageError
from llmproxy_plugins.metrics.families import FLIGHTS, RECORDED, Family, Labels

_BLOCK: Final = 4096
_BYTES: Final = 8
_BLOCK_BYTES: Final = _BLOCK * _BYTES
_FAMILIES: Final = {family.name: family for family in RECORDED}


class Place(NamedTuple):
    """Where the numbers of one series are."""

    values: memoryview[float]
    start: int


class Series(NamedTuple):
    """What an index says of one series."""

    start: int
    family: Family
    labels: Labels


class Sheet:
    """The numbers of one worker, for as long as it holds the lock of `descriptor`, which is its own to close."""

    def __init__(self, path: Path, descriptor: int, log: Log) -> None:
        self._descriptor = descriptor
        self._log = log
        self._index = os.open(_index_of(path), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._blocks = [_mapped(descriptor, number) for number in range(os.fstat(descriptor).st_size // _BLOCK_BYTES)]
        self._places: dict[tuple[Family, Labels], Place] = {}
        self._end = 0
        self._take_over(_index_of(path).read_bytes())

    def place(self, family: Family, labels: Labels) -> Place:
        """Where to add to; where there is no room for a new series, a place that nobody reads."""
        place = self._places.get((family, labels))
        if place is None:
            place = self._places[family, labels] = self._made(family, labels)
        return place

    def close(self) -> None:
        """Leave the sheet for another worker to go on with; nothing may be added any more."""
        # The maps hold copies of the descriptor, which would keep the lock for as long as anybody holds a place.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._index)
        os.close(self._descriptor)

    def _take_over(self, index: bytes) -> None:
        whole = index[: index.rfind(b"\n") + 1]
        os.ftruncate(self._index, len(whole))
        for series in read_index(whole):
            place = self._places[series.family, series.labels] = self._at(series.start)
            self._end = series.start + series.family.width
            if series.family is FLIGHTS:
                # One store, so that a death in between changes nothing: what has begun, and not ended, never will.
                place.values[place.start + 2] = place.values[place.start] - place.values[place.start + 1]

    def _made(self, family: Family, labels: Labels) -> Place:
        try:
            return self._allocated(family, labels)
        except OSError as error:
            self._log.warning("metrics_not_written", family=family.name, error=str(error))
            return Place(_as_numbers(bytearray(family.width * _BYTES)), 0)

    def _allocated(self, family: Family, labels: Labels) -> Place:
        start = self._end
        if start % _BLOCK + family.width > _BLOCK:
            start += _BLOCK - start % _BLOCK
        if start // _BLOCK >= len(self._blocks):
            # Written, not only made longer: to touch a hole on a full disk would kill the process.
            _write(self._descriptor, bytes(_BLOCK_BYTES), len(self._blocks) * _BLOCK_BYTES)
            self._blocks.append(_mapped(self._descriptor, len(self._blocks)))
        line = orjson.dumps([start, family.name, *labels]) + b"\n"
        _write(self._index, line, os.fstat(self._index).st_size)
        self._end = start + family.width
        return self._at(start)

    def _at(self, start: int) -> Place:
        return Place(self._blocks[start // _BLOCK], start % _BLOCK)


@dataclass(frozen=True, slots=True)
class Copy:
    """A sheet as it was at one moment, and whether somebody still wrote on it."""

    index: bytes
    values: array[float]
    is_alive: bool


def open_sheet(root: Path, group: str, log: Log) -> Sheet:
    """A sheet to write on: a dead worker's of the same group, or a new one. Blocks. Raises StorageError.

    What earlier groups have left is deleted, for their numbers end with them.
    """
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        with _locked(root / "lock"):
            _delete_others(root, group)
            directory = root / group
            directory.mkdir(mode=0o700, exist_ok=True)
            for path in sorted(directory.glob("*.values")):
                descriptor = os.open(path, os.O_RDWR)
                if _try_lock(descriptor, fcntl.LOCK_EX):
                    return Sheet(path, descriptor, log)
                os.close(descriptor)
            return _new_sheet(directory, log)
    except OSError as error:
        raise StorageError(f"The metrics cannot be kept in {root}: {error.strerror}.") from error


def read_sheets(directory: Path) -> Sequence[Copy]:
    """Every sheet of a group. Blocks. Raises StorageError."""
    try:
        return [_copied(path) for path in sorted(directory.glob("*.values"))]
    except OSError as error:
        raise StorageError(f"The metrics cannot be read in {directory}: {error.strerror}.") from error


def read_index(lines: bytes) -> Iterator[Series]:
    """Every series of an index, but for a last one that is not written out yet."""
    for line in lines[: lines.rfind(b"\n") + 1].splitlines():
        start, name, *labels = orjson.loads(line)
        yield Series(start, _FAMILIES[name], tuple(labels))


def _copied(path: Path) -> Copy:
    with path.open("rb") as file:
        # Held while it is read, so that nobody takes the sheet over meanwhile.
        is_alive = not _try_lock(file.fileno(), fcntl.LOCK_SH)
        # The index first: what stands there has its place in the values.
        index, values = _index_of(path).read_bytes(), array("d")
        data = file.read()
        values.frombytes(data[: len(data) - len(data) % _BYTES])
        return Copy(index, values, is_alive)


def _new_sheet(directory: Path, log: Log) -> Sheet:
    path = directory / f"{len(list(directory.glob('*.values'))):04}.values"
    # First of the two, for whoever finds the values looks for it.
    _index_of(path).touch(mode=0o600)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    # It may have to wait for somebody who reads the sheet already.
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return Sheet(path, descriptor, log)


def _delete_others(root: Path, group: str) -> None:
    """Delete the groups of which no worker lives; one that restarts all its workers at once begins anew."""
    for directory in root.iterdir():
        if directory.is_dir() and directory.name != group and not _is_alive(directory):
            shutil.rmtree(directory)


def _is_alive(directory: Path) -> bool:
    return any(_copied(path).is_alive for path in directory.glob("*.values"))


def _index_of(path: Path) -> Path:
    return path.with_suffix(".index")


def _mapped(descriptor: int, number: int) -> memoryview[float]:
    return _as_numbers(mmap.mmap(descriptor, _BLOCK_BYTES, offset=number * _BLOCK_BYTES))


def _as_numbers(memory: mmap.mmap | bytearray) -> memoryview[float]:
    return memoryview(memory).cast("d")


def _write(descriptor: int, data: bytes, at: int) -> None:
    """Write all of it, or leave the file as it was. Raises OSError."""
    try:
        if os.pwrite(descriptor, data, at) < len(data):
            raise OSError(28, "No space left on device")
    except OSError:
        os.ftruncate(descriptor, at)
        raise


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
