"""Processes that are measured: which core they have, what they used of it, and what they hold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import psutil

ROOT: Final = Path(__file__).parent.parent
_STOP_SECONDS: Final = 30


class Cores(NamedTuple):
    """Who runs where: the subject has a core of its own, everybody else shares the other."""

    subject: set[int]
    others: set[int]


@cache
def cores() -> Cores:
    """The first core and the last that we may use; empty where processes cannot be pinned.

    Found out once: afterwards we are pinned ourselves, and may use one of them only.
    """
    if sys.platform != "linux":
        return Cores(set(), set())
    usable = sorted(os.sched_getaffinity(0))
    return Cores({usable[0]}, {usable[-1]})


def pin(processes: Iterable[psutil.Process], to: set[int]) -> None:
    """Keep processes, with all the threads they have and will have, on some cores."""
    if sys.platform != "linux" or not to:
        return
    for process in processes:
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, to)


class Measured(Protocol):
    """Something that is measured: the process that answers and its database, as far as it has them."""

    @property
    def worker(self) -> psutil.Process | None:
        """The process that answers."""

    @property
    def database(self) -> psutil.Process | None:
        """Its database."""


def pin_apart(measured: Iterable[Measured]) -> None:
    """Give every worker the one core, by turns, and us with all that we have started the other."""
    # Once all have been started: whatever we start is of our family, and moved with it.
    pin(family(psutil.Process()), cores().others)
    for each in measured:
        pin(family(each.database) if each.database else (), cores().others)
        pin([each.worker] if each.worker else (), cores().subject)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process | None) -> float:
    """What a process has used so far, in the kernel and outside, with all its descendants that live or have ended."""
    total = 0.0
    for each in family(process) if process else ():
        # One that ends meanwhile is counted by its parent from then on.
        with suppress(psutil.NoSuchProcess, OSError):
            times = each.cpu_times()
            total += _own_cpu_seconds(each) + times.children_user + times.children_system
    return total


def _own_cpu_seconds(process: psutil.Process) -> float:
    if sys.platform == "linux":
        # The process's own clock, as clock_getcpuclockid(3) names it: times are told in hundredths of a second only.
        return time.clock_gettime((~process.pid << 3) | 2)
    times = process.cpu_times()
    return float(times.user + times.system)


class Memory(NamedTuple):
    """Bytes of a process: all that is resident, and what would be free if it ended."""

    resident_bytes: int
    unique_bytes: int


def memory(process: psutil.Process | None) -> Memory:
    """What a process holds now."""
    if process is None:
        return Memory(0, 0)
    info = process.memory_full_info()
    return Memory(info.rss, info.uss)


@contextmanager
def running(module: str, *arguments: str) -> Iterator[tuple[psutil.Process, int]]:
    """A Python program that prints its port once it serves: its process, and the port."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield psutil.Process(process.pid), int(first_line(process))
        finally:
            stop(process)


def first_line(process: subprocess.Popen[str]) -> str:
    """The first line that a process prints. Raises RuntimeError when it ends without one."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise RuntimeError("A process that is measured has ended before it served.")
    return line


def free_port() -> int:
    """One that nobody listens on, for a program that cannot choose for itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(process: subprocess.Popen[str], port: int, seconds: float) -> None:
    """Wait until a process accepts connections. Raises RuntimeError when it has ended, or does not in that time."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise RuntimeError("A process that is measured does not accept connections.")


def stop(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, and wait until it has; kill it when it does not."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
