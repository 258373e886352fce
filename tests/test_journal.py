"""The journal: what was let in ends exactly once, whatever happens to the disk, the process or the bytes."""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.config import JournalConfig
from llmproxy.errors import StorageError
from llmproxy.journal import Journal, Orphan
from llmproxy.request import Document
from llmproxy.segments import BEGIN, END, encode_line, read_entries
from tests.processes import read_line, spawn

CONFIG = JournalConfig(segment_bytes=65_536)
BULK = "x" * 4_000

# Begins and ends requests until it is killed; what it has been told is done, it says on standard output.
WORKER = """
import os, sys
from pathlib import Path
from llmproxy.config import JournalConfig
from llmproxy.journal import Journal
journal = Journal(Path(sys.argv[1]), JournalConfig(segment_bytes=65_536))
number, held = 0, None
while True:
    request_id = f"{os.getpid()}-{number}"
    journal.begin(request_id, {"id": request_id, "bulk": "x" * 500})
    os.write(1, f"begun {request_id}\\n".encode())
    if number % 7 == 0:
        request_id, held = held, request_id
    if request_id:
        journal.end(request_id, {"id": request_id, "bulk": "y" * 500})
        os.write(1, f"ended {request_id}\\n".encode())
    number += 1
"""

# Claims every orphan there is, together with others that do the same, and says what it found.
CLAIMER = """
import sys
from pathlib import Path
from llmproxy.config import JournalConfig
from llmproxy.journal import Journal
journal = Journal(Path(sys.argv[1]), JournalConfig(segment_bytes=65_536))
print("ready", flush=True)
sys.stdin.readline()
while orphan := journal.claim():
    for batch in orphan.batches(50):
        for replayed in batch:
            print("ended" if replayed.is_ended else "begun", replayed.record["id"])
    orphan.delete()
journal.close()
"""


def record(request_id: str, **more: object) -> Document:
    """A record as small as can be."""
    return {"id": request_id, **more}


def replay(directory: Path) -> list[tuple[str, bool]]:
    """The id of every request that orphans in the directory hold, and whether it had ended."""
    journal = Journal(directory, CONFIG)
    found = []
    while orphan := journal.claim():
        found += [(item.record["id"], item.is_ended) for item in chain.from_iterable(orphan.batches(10))]
        orphan.delete()
    journal.close()
    return found


def abandon(journal: Journal) -> None:
    """Let go of a journal as death does: without a word in it."""
    journal._segments.close(delete=False)


def segments(directory: Path) -> list[Path]:
    """Segment files, oldest first."""
    return sorted(directory.glob("*.log"))


def drain(journal: Journal) -> list[str]:
    """Ship everything, in order."""
    shipped = []
    while records := journal.peek(7):
        shipped += [item["id"] for item in records]
        journal.acknowledge(len(records))
    return shipped


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond the limit, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_request_that_ended_is_shipped_and_its_files_go(tmp_path: Path) -> None:
    """An ended request is handed out until acknowledged; a journal with nothing left in it leaves no file."""
    journal = Journal(tmp_path, CONFIG)
    journal.begin("a", record("a"))
    assert (journal.pending, journal.peek(10)) == (0, [])
    journal.end("a", record("a", outcome="succeeded"))
    assert journal.peek(10) == journal.peek(10) == [{"id": "a", "outcome": "succeeded"}]
    assert journal.pending == 1
    journal.acknowledge(1)
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_shipped_is_left_for_the_next_worker(tmp_path: Path) -> None:
    """Closing with unshipped or open requests leaves them to be claimed: ended ones first, then the interrupted."""
    journal = Journal(tmp_path, CONFIG)
    for name in ("open", "done"):
        journal.begin(name, record(name))
    journal.end("done", record("done"))
    journal.close()
    assert replay(tmp_path) == [("done", True), ("open", False)]
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_end_counts(tmp_path: Path) -> None:
    """A second end, or the end of a request that never began, changes nothing."""
    journal = Journal(tmp_path, CONFIG)
    journal.begin("a", record("a"))
    for outcome in ("succeeded", "failed"):
        journal.end("a", record("a", outcome=outcome))
    journal.end("b", record("b"))
    assert journal.peek(10) == [{"id": "a", "outcome": "succeeded"}]
    journal.close()


def test_the_directory_and_its_files_are_private(tmp_path: Path) -> None:
    """Records may hold bodies: nobody but the owner can read them."""
    journal = Journal(tmp_path / "journal", CONFIG)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "journal").iterdir()}
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert modes == {0o600}
    journal.close()


def test_a_living_owner_is_never_an_orphan(tmp_path: Path) -> None:
    """A claim passes over journals whose owners live, its own included, and leaves their files alone."""
    living, other = Journal(tmp_path, CONFIG), Journal(tmp_path, CONFIG)
    living.begin("a", record("a"))
    before = sorted(tmp_path.iterdir())
    assert other.claim() is None
    assert living.claim() is None
    assert sorted(tmp_path.iterdir()) == before
    living.close()
    other.close()


def test_a_claimed_orphan_is_nobody_elses_until_released(tmp_path: Path) -> None:
    """Whoever claims an orphan has it alone; released, it can be claimed again, whole."""
    dead = Journal(tmp_path, CONFIG)
    dead.begin("a", record("a"))
    abandon(dead)
    journal = Journal(tmp_path, CONFIG)
    orphan = journal.claim()
    assert isinstance(orphan, Orphan)
    assert journal.claim() is None
    orphan.release()
    assert replay(tmp_path) == [("a", False)]
    journal.close()


def test_segments_go_once_everything_in_them_is_shipped(tmp_path: Path) -> None:
    """A stream that lasts does not keep old segments: it is begun again in each new one."""
    journal = Journal(tmp_path, CONFIG)
    journal.begin("long", record("long"))
    for number in range(100):
        journal.begin(str(number), record(str(number)))
        journal.end(str(number), record(str(number), bulk=BULK))
    journal.sync()
    assert len(segments(tmp_path)) > 4
    assert drain(journal) == [str(number) for number in range(100)]
    journal.sync()
    assert len(segments(tmp_path)) == 1
    abandon(journal)
    assert ("long", False) in replay(tmp_path)


def test_an_end_in_a_later_segment_settles_the_begin(tmp_path: Path) -> None:
    """A request whose begin and end lie segments apart is replayed once, as ended."""
    journal = Journal(tmp_path, CONFIG)
    journal.begin("long", record("long"))
    for number in range(40):
        journal.begin(str(number), record(str(number)))
        journal.end(str(number), record(str(number), bulk=BULK))
    journal.end("long", record("long"))
    abandon(journal)
    assert len(segments(tmp_path)) > 2
    assert Counter(replay(tmp_path)) == Counter([*((str(number), True) for number in range(40)), ("long", True)])


def test_a_long_outage_costs_disk_and_not_memory(tmp_path: Path) -> None:
    """While nothing is shipped, records beyond one segment's size are left on disk, and come back in order."""
    journal = Journal(tmp_path, CONFIG)
    names = [str(number) for number in range(200)]
    for name in names:
        journal.begin(name, record(name))
        journal.end(name, record(name, bulk=BULK))
    journal.sync()
    assert journal.pending == 200
    assert journal._ended_bytes <= CONFIG.segment_bytes
    first = [item["id"] for item in journal.peek(5)]
    journal.acknowledge(5)
    journal.begin("late", record("late"))
    journal.end("late", record("late"))
    journal.sync()
    assert first + drain(journal) == [*names, "late"]
    assert journal.pending == 0
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_line_in_its_own_files_does_not_stop_shipping(tmp_path: Path) -> None:
    """A record that can no longer be read back is passed over; the rest is shipped and `pending` returns to zero."""
    journal = Journal(tmp_path, CONFIG)
    for number in range(60):
        journal.begin(str(number), record(str(number)))
        journal.end(str(number), record(str(number), bulk=BULK))
    victim = segments(tmp_path)[-2]
    data = bytearray(victim.read_bytes())
    data[data.index(BULK.encode())] ^= 1
    victim.write_bytes(bytes(data))
    assert len(drain(journal)) == 59
    assert journal.pending == 0
    journal.close()


def test_any_value_can_be_journalled(tmp_path: Path) -> None:
    """Lone surrogates, huge numbers, deep nesting and foreign types are replaced; they never fail a request."""
    deep: list[object] = []
    for _ in range(600):
        deep = [deep]
    journal = Journal(tmp_path, CONFIG)
    odd = record("a", text="\ud800\x00", number=10**30, deep=deep, where=Path("x"), keys={1: "\udfff"})
    journal.begin("a", odd)
    journal.end("a", odd)
    assert journal.writable
    abandon(journal)
    assert replay(tmp_path) == [("a", True)]


def test_a_begin_that_cannot_be_written_refuses_the_request(tmp_path: Path) -> None:
    """On a full disk begin raises, the journal says why, nothing of the line is left, and it recovers."""
    journal = Journal(tmp_path, CONFIG)
    journal.begin("before", record("before"))
    size_bytes = segments(tmp_path)[0].stat().st_size
    with file_size_limit(size_bytes + 10), pytest.raises(StorageError, match="File too large"):
        journal.begin("refused", record("refused"))
    assert segments(tmp_path)[0].stat().st_size == size_bytes
    assert not journal.writable
    assert "make room" in (journal.failure or "")
    journal.recover()
    assert (journal.writable, journal.failure) == (True, None)
    journal.begin("after", record("after"))
    abandon(journal)
    assert replay(tmp_path) == [("before", False), ("after", False)]


def test_a_half_written_begin_never_counts_wherever_it_broke_off(tmp_path: Path) -> None:
    """Whatever length of a refused begin reached the disk, even all but its newline, nobody reads it as a begin."""
    line_bytes = len(encode_line(BEGIN, "refused", record("refused")))
    for written_bytes in range(line_bytes):
        directory = tmp_path / str(written_bytes)
        journal = Journal(directory, CONFIG)
        with file_size_limit(written_bytes), pytest.raises(StorageError):
            journal.begin("refused", record("refused"))
        journal.begin("after", record("after"))
        journal.end("after", record("after"))
        abandon(journal)
        assert replay(directory) == [("after", True)]


def test_an_end_that_cannot_be_written_is_kept_and_written_later(tmp_path: Path) -> None:
    """end never raises; until it is written the journal is not writable, and then nothing is missing."""
    journal = Journal(tmp_path, CONFIG)
    for name in ("a", "b"):
        journal.begin(name, record(name))
    with file_size_limit(segments(tmp_path)[0].stat().st_size + 5):
        journal.end("a", record("a"))
        journal.end("b", record("b"))
        journal.recover()
        assert (journal.writable, journal.pending, journal.peek(10)) == (False, 2, [])
        with pytest.raises(StorageError):
            journal.begin("c", record("c"))
    journal.recover()
    assert journal.writable
    assert [item["id"] for item in journal.peek(10)] == ["a", "b"]
    abandon(journal)
    assert replay(tmp_path) == [("a", True), ("b", True)]


def test_what_is_noted_in_one_turn_is_written_in_one_go(tmp_path: Path) -> None:
    """Nothing is in the file before the turn is over or somebody needs it there, and then all of it is."""
    turn: list[Callable[[], None]] = []
    journal = Journal(tmp_path, CONFIG, turn.append)
    journal.begin("a", record("a"))
    journal.begin("b", record("b"))
    journal.end("a", record("a"))
    journal.end("a", record("again"))
    assert (len(turn), segments(tmp_path)[0].stat().st_size, journal.pending) == (1, 0, 1)
    turn.pop()()
    assert [item["id"] for item in journal.peek(10)] == ["a"]
    journal.begin("c", record("c"))
    journal.flush()
    assert len(turn) == 1
    abandon(journal)
    assert Counter(replay(tmp_path)) == Counter([("a", True), ("b", False), ("c", False)])


def test_a_hold_that_must_be_there_at_once_is_there_or_was_never_noted(tmp_path: Path) -> None:
    """What could not be written then is not written later, when nobody holds it any more."""
    journal = Journal(tmp_path, CONFIG, lambda _: None)
    journal.begin("a", record("a"))
    journal.hold("a", record("a", holds=1), at_once=True)
    size_bytes = segments(tmp_path)[0].stat().st_size
    assert size_bytes > 0
    with file_size_limit(size_bytes), pytest.raises(StorageError):
        journal.hold("a", record("a", holds=2), at_once=True)
    journal.begin("b", record("b"))
    journal.recover()
    written = segments(tmp_path)[0].read_bytes()
    assert (b'"holds":1' in written, b'"holds":2' in written) == (True, False)
    abandon(journal)


def test_of_lines_that_do_not_fit_none_is_written(tmp_path: Path) -> None:
    """Whoever needs one of them there is told so, wherever it broke off; all are written once there is room."""
    journal = Journal(tmp_path, CONFIG, lambda _: None)
    journal.begin("before", record("before"))
    journal.flush()
    size_bytes = segments(tmp_path)[0].stat().st_size
    journal.begin("a", record("a"))
    journal.begin("b", record("b"))
    journal.end("before", record("before"))
    with file_size_limit(2 * size_bytes):
        for _ in range(2):
            with pytest.raises(StorageError, match="File too large"):
                journal.flush()
        with pytest.raises(StorageError):
            journal.begin("c", record("c"))
        assert (journal.writable, journal.pending, segments(tmp_path)[0].stat().st_size) == (False, 1, size_bytes)
    journal.recover()
    assert journal.writable
    assert [item["id"] for item in journal.peek(10)] == ["before"]
    abandon(journal)
    assert Counter(replay(tmp_path)) == Counter([("before", True), ("a", False), ("b", False)])


def test_a_roll_that_fails_goes_on_in_the_old_segment(tmp_path: Path) -> None:
    """When no new segment can be made, requests are still written as long as the old one takes them."""
    journal = Journal(tmp_path, CONFIG)
    journal.begin("full", record("full"))
    journal.end("full", record("full", bulk="x" * CONFIG.segment_bytes))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        journal.begin("next", record("next"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(segments(tmp_path)) == 1
    journal.begin("later", record("later"))
    assert len(segments(tmp_path)) == 2
    abandon(journal)
    assert Counter(replay(tmp_path)) == Counter([("full", True), ("next", False), ("later", False)])


def test_a_closed_journal_never_writes_to_a_file_of_somebody_else(tmp_path: Path) -> None:
    """An end that comes after close is kept in memory, though its descriptor's number may be taken by now."""
    journal = Journal(tmp_path, CONFIG)
    journal.begin("a", record("a"))
    abandon(journal)
    with (tmp_path / "other").open("w+") as other:
        journal.end("a", record("a"))
        assert other.read() == ""
    assert not journal.writable
    assert replay(tmp_path) == [("a", False)]


LINES = st.lists(
    st.builds(
        encode_line,
        st.sampled_from([BEGIN, END]),
        st.uuids().map(str),
        st.dictionaries(st.text(max_size=5), st.text(max_size=10) | st.integers(0, 9), max_size=3),
    ),
    min_size=1,
    max_size=3,
)


def read_lines(data: bytes) -> list[bytes]:
    """Every intact line of a segment with these bytes, encoded again."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        entries = read_entries([(1, Path(file.name))])
        return [encode_line(entry.kind, entry.request_id, entry.record) for entry in entries if entry]


@settings(deadline=None, max_examples=8)
@given(LINES)
def test_a_truncated_segment_gives_exactly_its_whole_lines(lines: list[bytes]) -> None:
    """Cut at any byte, what is whole is read and the torn rest is not."""
    data = b"".join(lines)
    for size_bytes in range(len(data) + 1):
        whole = [line for number, line in enumerate(lines) if len(b"".join(lines[: number + 1])) <= size_bytes]
        assert read_lines(data[:size_bytes]) == whole


@settings(deadline=None, max_examples=8)
@given(LINES, st.integers(1, 255))
def test_a_changed_byte_is_always_noticed(lines: list[bytes], mask: int) -> None:
    """Whatever byte is changed, no wrong record is read, and at most two lines are lost: its own and the next."""
    data = b"".join(lines)
    owners = [number for number, line in enumerate(lines) for _ in line]
    for position, owner in enumerate(owners):
        damaged = bytearray(data)
        damaged[position] ^= mask
        read = read_lines(bytes(damaged))
        assert read in (lines[:owner] + lines[owner + 1 :], lines[:owner] + lines[owner + 2 :])


def kill_worker(worker: subprocess.Popen[str], seed: int) -> list[str]:
    """What a worker said before it was killed, at some instant after its first word."""
    assert worker.stdout is not None
    told = [read_line(worker) for _ in range(1 + seed * 37 % 400)]
    worker.kill()
    return told + worker.stdout.read().splitlines()


def test_no_request_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    """After twenty kills each begun request is found exactly once; those reported ended are ended."""
    told: list[str] = []
    for seed in range(0, 20, 4):
        workers = [spawn(WORKER, str(tmp_path)) for _ in range(4)]
        for part, worker in enumerate(workers):
            with worker:
                told += kill_worker(worker, seed + part)
    begun = {line.removeprefix("begun ") for line in told if line.startswith("begun ")}
    ended = {line.removeprefix("ended ") for line in told if line.startswith("ended ")}
    found = replay(tmp_path)
    counts = Counter(name for name, _ in found)
    assert set(counts.values()) == {1}
    assert begun <= counts.keys()
    assert ended <= {name for name, is_ended in found if is_ended}
    # A worker may die between begin and saying so, once.
    assert len(counts) - len(begun) <= 20


def test_any_number_of_processes_share_the_orphans(tmp_path: Path) -> None:
    """Processes that claim at the same time replay every orphan, and each request once among them all."""
    for part in range(12):
        dead = Journal(tmp_path, CONFIG)
        for number in range(20):
            dead.begin(f"{part}-{number}", record(f"{part}-{number}"))
        dead.end(f"{part}-0", record(f"{part}-0"))
        abandon(dead)
    claimers = [spawn(CLAIMER, str(tmp_path)) for _ in range(4)]
    assert {read_line(claimer) for claimer in claimers} == {"ready"}
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write("\n")
        claimer.stdin.flush()
    found: list[str] = []
    for claimer in claimers:
        with claimer:
            found += claimer.communicate(timeout=20)[0].splitlines()
    expected = [f"{'begun' if number else 'ended'} {part}-{number}" for part in range(12) for number in range(20)]
    assert sorted(found) == sorted(expected)
    assert list(tmp_path.iterdir()) == []
