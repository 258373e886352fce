"""The embedded server: started once, adopted by others, stopped by the last, and never in anybody's way."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from llmproxy.embedded import EmbeddedPostgres
from llmproxy.errors import StorageError
from llmproxy.testing.database import make_postgres
from tests.postgres import copy_home
from tests.processes import read_line, spawn

# Starts, says where, and stops when its input is closed.
HOLD = """
import sys
from pathlib import Path
from llmproxy.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
print(server.start(), flush=True)
sys.stdin.read()
print(server.stop(), flush=True)
"""

UNPRIVILEGED = 65534
# After the imports, for the interpreter itself may lie where only root may read.
DROP_RIGHTS = f"""
import os, subprocess, llmproxy.embedded
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid({UNPRIVILEGED}, {UNPRIVILEGED}, {UNPRIVILEGED})
    os.setresuid({UNPRIVILEGED}, {UNPRIVILEGED}, {UNPRIVILEGED})
"""

FORK = """
import os, sys
from pathlib import Path
from llmproxy.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
if os.fork() == 0:
    print(server.stop(), flush=True)
    os._exit(0)
os.wait()
print(server.stop(), flush=True)
"""


# Says whom the server runs as, made under a name of the test's own once input is closed.
USER = """
import sys
from llmproxy import embedded_files
embedded_files.SYSTEM_USER = sys.argv[1]
print("ready", flush=True)
sys.stdin.read()
user = embedded_files.system_user()
print(user and user.pw_uid, flush=True)
"""


async def is_answering(url: str) -> bool:
    """Whether a server can be reached."""
    postgres = make_postgres(url)
    try:
        await postgres.open()
    except StorageError:
        return False
    await postgres.close()
    return True


def postmaster_pid(server: EmbeddedPostgres) -> int:
    """The server's own process."""
    return int((server.home / "data" / "postmaster.pid").read_text().split()[0])


async def test_data_survives_a_restart(embedded: EmbeddedPostgres) -> None:
    """What was written before a stop is there after the next start, at the same URL."""
    url = embedded.start()
    before = make_postgres(url)
    await before.open()
    await before.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await before.close()
    assert embedded.stop()
    assert not await is_answering(url)
    assert embedded.start() == url
    after = make_postgres(url)
    await after.open()
    assert await after.fetch_row("SELECT answer FROM kept") == {"answer": 42}
    await after.close()


async def test_settings_are_small(embedded: EmbeddedPostgres) -> None:
    """The server runs with the small settings, listens on no network and keeps its durability."""
    postgres = make_postgres(embedded.start())
    await postgres.open()
    names = ("shared_buffers", "jit", "io_workers", "max_connections", "listen_addresses", "fsync")
    rows = await postgres.fetch("SELECT name, current_setting(name) AS value FROM unnest($1::text[]) AS name", names)
    await postgres.close()
    assert [row["value"] for row in rows] == ["32MB", "off", "1", "100", "", "on"]


async def test_the_last_user_stops_it(state_directory: Path, embedded: EmbeddedPostgres) -> None:
    """A second process gets the same server, and it runs until both have stopped using it."""
    url = embedded.start()
    with spawn(HOLD, str(state_directory)) as other:
        assert read_line(other) == url
        assert not embedded.stop()
        assert await is_answering(url)
        output, _ = other.communicate()
    assert output.strip() == "True"
    assert not await is_answering(url)


async def test_a_killed_user_does_not_count(state_directory: Path, embedded: EmbeddedPostgres) -> None:
    """A server left by a killed process is adopted, and stopped by who adopted it."""
    with spawn(HOLD, str(state_directory)) as other:
        url = read_line(other)
        other.kill()
    assert await is_answering(url)
    assert embedded.start() == url
    assert embedded.stop()
    assert not await is_answering(url)


def test_processes_that_start_at_once_share_it(state_directory: Path) -> None:
    """Four processes that start on an empty directory at once get one server."""
    processes = [spawn(HOLD, str(state_directory)) for _ in range(4)]
    urls = {read_line(process) for process in processes}
    stopped = [process.communicate()[0].strip() for process in processes]
    assert len(urls) == 1
    assert sorted(stopped) == ["False", "False", "False", "True"]


def test_a_forked_child_does_not_stop_it(state_directory: Path) -> None:
    """A child forked from the holder leaves the server alone; the holder stops it."""
    with spawn(FORK, str(state_directory)) as process:
        output, errors = process.communicate()
    assert output.split() == ["False", "True"], errors


async def test_a_killed_server_is_started_again(embedded: EmbeddedPostgres) -> None:
    """After kill -9 of the server itself, the next start recovers it, and its user can still stop it."""
    url = embedded.start()
    os.kill(postmaster_pid(embedded), signal.SIGKILL)
    second = EmbeddedPostgres(embedded.home.parent)
    assert second.start() == url
    assert await is_answering(url)
    assert not second.stop()
    assert embedded.stop()
    assert not await is_answering(url)


async def test_a_process_id_given_out_again_is_no_server(embedded: EmbeddedPostgres) -> None:
    """Stale lock files that name a living stranger, as after a container's restart, do not hinder a start."""
    url = embedded.start()
    pid_file = embedded.home / "data" / "postmaster.pid"
    text = pid_file.read_text()
    embedded.stop()
    pid_file.write_text(text.replace(text.split()[0], str(os.getpid()), 1))
    (embedded.home / ".s.PGSQL.5432.lock").write_text(pid_file.read_text())
    assert embedded.start() == url
    assert await is_answering(url)


def test_an_interrupted_initialisation_is_done_again(state_directory: Path) -> None:
    """What a start killed during initialisation left behind is thrown away."""
    embedded = EmbeddedPostgres(state_directory)
    half = embedded.home / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    assert embedded.start().startswith("postgresql://")
    assert not half.exists()
    assert embedded.stop()


@pytest.mark.parametrize("name", ["with a space", "x" * 120])
async def test_any_directory_will_do(state_directory: Path, initialised_home: Path, name: str) -> None:
    """A path that is no socket address, by its length or its characters, works too."""
    (state_directory / name).mkdir(mode=0o755)
    copy_home(initialised_home, state_directory / name / "postgres")
    server = EmbeddedPostgres(state_directory / name)
    url = server.start()
    assert await is_answering(url)
    assert server.stop()
    assert server.home.parent == state_directory / name


def test_data_of_another_version_is_refused(embedded: EmbeddedPostgres) -> None:
    """Data of another major version is left as it is, with a sentence that says what to do."""
    (embedded.home / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StorageError, match=r"made by PostgreSQL 16, but this is 18; export it"):
        embedded.start()


def test_a_server_that_cannot_start_says_where_to_read_why(embedded: EmbeddedPostgres) -> None:
    """A start that fails is a StorageError that names the server's log, and a later start works."""
    config = embedded.home / "data" / "postgresql.conf"
    text = config.read_text()
    config.write_text(f"{text}\nno_such_setting = 1\n")
    with pytest.raises(StorageError, match=r"postgres\.log"):
        embedded.start()
    config.write_text(text)
    assert embedded.start()


def test_a_program_of_it_that_fails_says_why(state_directory: Path) -> None:
    """What it printed itself is for the operator."""
    server = EmbeddedPostgres(state_directory)
    server.home.mkdir(parents=True)
    in_the_way = server.home / "data.new"
    in_the_way.touch()
    with pytest.raises(StorageError) as failed:
        server.start()
    assert re.search(r"initdb failed \(exit status 1\): initdb: error: .*data\.new", failed.value.for_operator)
    in_the_way.unlink()
    assert server.start()
    assert server.stop()


def test_processes_that_make_its_user_at_once_share_it() -> None:
    """Run as root on a machine without that user, all of them have it; others need none."""
    name = f"llmproxy-{uuid4().hex[:8]}"
    try:
        processes = [spawn(USER, name) for _ in range(4)]
        assert {read_line(process) for process in processes} == {"ready"}
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        made = [process.communicate() for process in processes]
        expected = pwd.getpwnam(name).pw_uid if os.geteuid() == 0 else None
    finally:
        if os.geteuid() == 0:
            subprocess.run([str(shutil.which("userdel")), name], check=True, capture_output=True)
    assert [told for told, _ in made] == [f"{expected}\n"] * 4, made


@pytest.fixture
def closed_directory() -> Iterator[Path]:
    """A directory that only its owner may enter."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_permissions_are_never_changed(closed_directory: Path) -> None:
    """A state directory that is closed to others stays so, whoever the server has to run as."""
    server = EmbeddedPostgres(closed_directory)
    server.start()
    assert server.stop()
    assert stat.S_IMODE(closed_directory.stat().st_mode) == 0o700
    assert EmbeddedPostgres(closed_directory).home == server.home
    if server.home.parent != closed_directory:
        shutil.rmtree(server.home)


def test_an_ordinary_user_may_start_it(closed_directory: Path) -> None:
    """Without root's rights the data lives in the state directory itself."""
    if os.geteuid() == 0:
        os.chown(closed_directory, UNPRIVILEGED, UNPRIVILEGED)
    with spawn(DROP_RIGHTS + HOLD, str(closed_directory)) as process:
        output, errors = process.communicate()
    assert output.split()[-1:] == ["True"], errors
    assert (closed_directory / "postgres" / "data" / "PG_VERSION").exists()
