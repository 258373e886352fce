"""The supervisor: N workers on one port, started again when they die, drained when it is time to stop.

It owns the listening sockets, one for each worker (SO_REUSEPORT): when a worker is killed, connections waiting in
its queue are kept by the kernel for the one that takes its place. It waits for signals and does nothing else, so
there is little in it that could fail.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llmproxy.errors import ConfigError
from llmproxy.seat import BACKLOG, CLOSING_SECONDS, WorkerSeat, log_refusal
from llmproxy.services import Log

_SIGNALS: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1}
)
# Ctrl-C reaches the whole terminal group, and the supervisor turns it into a drain; a reload that comes before a
# worker listens for it would kill the worker, which starts with what was accepted last anyway.
_IGNORED_BY_WORKERS: Final = (signal.SIGINT, signal.SIGHUP)
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0
_HEALTHY_SECONDS: Final = 10.0


@dataclass(slots=True)
class _Slot:
    """One worker's place, whoever fills it at the moment."""

    number: int
    listener: socket.socket
    pid: int | None = None
    started_at: float = 0.0
    ready_fd: int | None = None
    is_ready: bool = False
    pause_seconds: float = _FIRST_PAUSE_SECONDS
    respawn_at: float | None = field(default=None)


class Supervisor:
    """Runs `work` in one process per listening socket until told to stop.

    Args:
        work: Runs in the child and returns its exit code.
        accept: Has workers find the configuration on disk when they are told to reload, or when they start; raises
            an LLMProxyError when that cannot be taken over.
        on_ready: Called once, when every worker serves for the first time.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        work: Callable[[WorkerSeat], int],
        *,
        accept: Callable[[], None],
        on_ready: Callable[[], None],
        drain_seconds: float,
        log: Log,
    ) -> None:
        self._slots = [_Slot(number, listener) for number, listener in enumerate(listeners)]
        self._work = work
        self._accept = accept
        self._on_ready = on_ready
        self._drain_seconds = drain_seconds
        self._log = log
        self._announced = False
        self._stopping = False
        self._exit_code = 0
        self._pid = os.getpid()
        self._alive_read, self._alive_write = os.pipe()

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT, or until the first worker cannot start.

        Returns the exit code: 0 only when every worker ended its drain by itself.
        """
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for slot in self._slots:
                self._try_to_spawn(slot, old_mask)
            while any(slot.pid or slot.respawn_at for slot in self._slots):
                self._on_signal(signal.sigwait(_SIGNALS), old_mask)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            os.close(self._alive_write)
            os.close(self._alive_read)
        return self._exit_code

    def _on_signal(self, number: int, old_mask: set[int]) -> None:
        match number:
            case signal.SIGCHLD:
                self._reap()
            case signal.SIGUSR1:
                self._note_ready()
            case signal.SIGHUP:
                self._reload()
            case signal.SIGALRM:
                self._on_alarm(old_mask)
            case _:
                self._stop()

    def _try_to_spawn(self, slot: _Slot, old_mask: set[int]) -> None:
        try:
            self._spawn(slot, old_mask)
        except OSError as error:
            self._log.error("worker_not_started", worker=slot.number, error=str(error))
            self._postpone(slot)

    def _spawn(self, slot: _Slot, old_mask: set[int]) -> None:
        ready_read, ready_write = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(ready_read)
            os.close(ready_write)
            raise
        if pid == 0:
            os._exit(self._run_child(slot, ready_read, ready_write, old_mask))
        os.close(ready_write)
        slot.pid, slot.ready_fd, slot.is_ready = pid, ready_read, False
        slot.started_at, slot.respawn_at = time.monotonic(), None

    def _run_child(self, slot: _Slot, ready_read: int, ready_write: int, old_mask: set[int]) -> int:
        """Never returns into the supervisor's own code, whatever happens."""

        def announce_ready() -> None:
            os.write(ready_write, b"1")
            os.kill(self._pid, signal.SIGUSR1)

        def reload_all() -> None:
            os.kill(self._pid, signal.SIGHUP)

        try:
            os.close(ready_read)
            os.close(self._alive_write)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN if number in _IGNORED_BY_WORKERS else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            for other in self._slots:
                if other is not slot:
                    other.listener.close()
            return self._work(WorkerSeat(slot.number, slot.listener, self._alive_read, announce_ready, reload_all))
        except BaseException as error:  # noqa: BLE001 - the child must end here, not in the supervisor's loop
            self._log.error("worker_crashed", worker=slot.number, error=repr(error), exc_info=error)
            return 1

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid:
                self._ended(slot, os.waitstatus_to_exitcode(status))

    def _ended(self, slot: _Slot, exit_code: int) -> None:
        was_ready = self._read_ready(slot)
        slot.pid = None
        if slot.ready_fd is not None:
            os.close(slot.ready_fd)
            slot.ready_fd = None
        if self._stopping:
            return self._note_end(exit_code) if was_ready else None
        if not was_ready and not self._announced:
            self._exit_code = exit_code or 1
            return self._stop()
        self._log.warning("worker_died", worker=slot.number, exit_code=exit_code)
        if time.monotonic() - slot.started_at > _HEALTHY_SECONDS:
            slot.pause_seconds = _FIRST_PAUSE_SECONDS
        return self._postpone(slot)

    def _note_end(self, exit_code: int) -> None:
        # A worker that is told to stop once more when it has closed everything dies of the signal.
        if exit_code not in (0, -signal.SIGTERM):
            self._exit_code = 1

    def _postpone(self, slot: _Slot) -> None:
        """Start a worker later, and ever later while it does not live long."""
        slot.respawn_at = time.monotonic() + slot.pause_seconds
        slot.pause_seconds = min(slot.pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
        self._set_alarm()

    def _note_ready(self) -> None:
        ready = [self._read_ready(slot) for slot in self._slots]
        if all(ready) and not self._announced:
            self._announced = True
            self._on_ready()

    def _read_ready(self, slot: _Slot) -> bool:
        if not slot.is_ready and slot.ready_fd is not None:
            os.set_blocking(slot.ready_fd, False)
            try:
                slot.is_ready = os.read(slot.ready_fd, 1) == b"1"
            except BlockingIOError:
                slot.is_ready = False
        return slot.is_ready

    def _reload(self) -> None:
        try:
            self._accept()
        except Exception as error:  # noqa: BLE001 - plugins and providers are made to find out, and may raise anything
            return log_refusal(self._log, error)
        return self._signal_workers(signal.SIGHUP)

    def _stop(self) -> None:
        """Ask the workers to drain; the second time, do not ask."""
        if self._stopping:
            return self._signal_workers(signal.SIGKILL)
        self._stopping = True
        for slot in self._slots:
            slot.respawn_at = None
            slot.listener.close()
        self._signal_workers(signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, self._drain_seconds + CLOSING_SECONDS)
        return None

    def _on_alarm(self, old_mask: set[int]) -> None:
        if self._stopping:
            self._log.error("drain_overdue", workers=[slot.number for slot in self._slots if slot.pid])
            return self._signal_workers(signal.SIGKILL)
        now = time.monotonic()
        for slot in self._slots:
            if slot.respawn_at is not None and slot.respawn_at <= now:
                self._try_to_spawn(slot, old_mask)
        self._set_alarm()
        return None

    def _set_alarm(self) -> None:
        due = [slot.respawn_at for slot in self._slots if slot.respawn_at is not None]
        signal.setitimer(signal.ITIMER_REAL, max(0.001, min(due) - time.monotonic()) if due else 0)

    def _signal_workers(self, number: int) -> None:
        for slot in self._slots:
            if slot.pid is not None:
                os.kill(slot.pid, number)


def listening_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets that share one port. Raises ConfigError when it cannot be had."""
    sockets: list[socket.socket] = []
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if count > 1 and port:
            _check_free(family, address)
        for _ in range(count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            # Port 0 asks the system for one; the others must share it.
            address = listener.getsockname()
            listener.listen(BACKLOG)
            listener.settimeout(0)
    except OSError as error:
        for listener in sockets:
            listener.close()
        raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror or error}; choose another port.") from error
    return sockets


def _check_free(family: int, address: tuple[object, ...]) -> None:
    """Raise OSError when somebody listens: another gateway that shares its port as well would not be noticed."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
