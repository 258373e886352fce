"""`llmproxy serve` as operators run it: real processes, real signals, a real database."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
import pytest

from llmproxy.embedded import EmbeddedPostgres
from llmproxy.keys import new_key
from llmproxy.testing.database import make_postgres
from tests.processes import ROOT, read_line, spawn

KEY = "sk-the-key-of-the-tests-client"
Config = dict[str, Any]  # whatever YAML can say


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return once it holds, asking again and again."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.01)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Serve:
    """`llmproxy serve` in a process of its own.

    Attributes:
        greeting: What it said on standard output once it served.
    """

    def __init__(self, directory: Path, config: Config | None, *options: str, state: Path | None = None) -> None:
        self._directory = directory
        self.errors = directory / "stderr.txt"
        self.greeting: Config = {}
        self.arguments = ["serve", "--port", "0", "--state-dir", str(state or directory / "state"), *options]
        if config is not None:
            self.configure(config)
            self.arguments += ["--config", str(directory / "config.yaml")]

    def configure(self, config: Config) -> None:
        """Write the configuration file; JSON is YAML."""
        (self._directory / "config.yaml").write_text(json.dumps(config))

    def launch(self) -> subprocess.Popen[str]:
        """Start it, and leave it at that."""
        with self.errors.open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "llmproxy", *self.arguments],
                cwd=self._directory,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        self.arguments.append("--json")
        self.process = self.launch()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.greeting = json.loads(line)
        return self

    def __exit__(self, *_error: object) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    @property
    def log(self) -> str:
        """What it wrote on standard error so far."""
        return self.errors.read_text()

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return [child for child in children if _lives(child)]

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        address = urlsplit(self.greeting["url"])
        return http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)

    def models(self) -> list[str]:
        """The models it offers."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {KEY}"})
            response = connection.getresponse()
            return [model["id"] for model in json.load(response)["data"]]

    def chat(self, connection: http.client.HTTPConnection, model: str, **fields: object) -> http.client.HTTPResponse:
        """The response of a model, of which only the head has been read."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], **fields})
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        return connection.getresponse()

    def stop(self) -> int:
        """Ask it to stop, and wait; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def config(database_url: str) -> Config:
    """The demo provider, an alias, and one workspace, on the session's database server."""
    return {
        "database": {"url": database_url},
        "providers": {"demo": {}},
        "models": {"first": "demo/echo"},
        "workspaces": {"default": {"keys": [KEY]}},
    }


def failing(serve: Serve) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one that does not get to serve."""
    process = serve.launch()
    try:
        output, _ = process.communicate(timeout=30)
    finally:
        # One that serves after all must not outlive the test that fails by it.
        process.kill()
    return process.returncode, output, serve.log


# Workers


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_workers_run_on_the_configured_event_loop(tmp_path: Path, config: Config, event_loop: str) -> None:
    """On either one they answer, stream and drain; what is not asked for is not even loaded."""
    config["server"] = {"event_loop": event_loop}
    with Serve(tmp_path, config) as serve, contextlib.closing(serve.connect()) as connection:
        loaded = {Path(each.path).parent.name for each in serve.workers()[0].memory_maps()}
        assert ("uvloop" in loaded) is (event_loop == "uvloop")
        assert json.load(serve.chat(connection, "first"))["choices"]
        assert serve.chat(connection, "first", stream=True).read().endswith(b"data: [DONE]\n\n")
        assert serve.stop() == 0


def test_a_killed_worker_comes_back_and_no_request_is_lost(tmp_path: Path, config: Config) -> None:
    """While one of two workers is gone every new connection is served, and soon there are two again."""
    with Serve(tmp_path, config, "--workers", "2") as serve:
        killed, other = serve.workers()
        killed.kill()
        assert [serve.models()[0] for _ in range(10)] == ["first"] * 10
        until(lambda: len(serve.workers()) == 2)
        assert killed.pid not in {worker.pid for worker in serve.workers()}
        assert other.pid in {worker.pid for worker in serve.workers()}
        assert "worker_died" in serve.log
        assert serve.stop() == 0


def test_a_worker_that_comes_back_serves_what_was_accepted(tmp_path: Path, config: Config) -> None:
    """Edits that nobody has asked to take over, wrong or right, do not reach a worker that takes a dead one's place."""
    with Serve(tmp_path, config) as serve:
        serve.configure({**config, "models": {"second": "demo/story"}})
        serve.process.send_signal(signal.SIGHUP)
        until(lambda: "config_reloaded" in serve.log)
        for edit in ({**config, "modles": {}}, {**config, "models": {"third": "demo/story"}}):
            serve.configure(edit)
            (worker,) = serve.workers()
            worker.kill()
            until(lambda: serve.workers() not in ([], [worker]))  # noqa: B023 - called before the next round
            assert serve.models()[0] == "second"
        assert serve.log.count("worker_died") == 2


def test_a_supervisor_survives_what_it_runs_into() -> None:
    """A fork that fails is tried again, and a reload that raises anything at all is refused."""
    with spawn(MISHAPS) as process:
        assert read_line(process) == "ready"
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        events = [json.loads(process.stderr.readline()) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert [event["event"] for event in events] == ["worker_not_started", "worker_not_started", "reload_refused"]
    assert events[2]["mistakes"] == ["KeyError('a plugin of its own')"]


MISHAPS = """
import os, signal, socket
from llmproxy.config import LoggingConfig
from llmproxy.logs import make_log
from llmproxy.supervisor import Supervisor

fork, failures = os.fork, 2

def fork_at_last():
    global failures
    failures -= 1
    if failures >= 0:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

def accept():
    raise KeyError("a plugin of its own")

def work(seat):
    seat.announce_ready()
    signal.pause()

os.fork = fork_at_last
with socket.create_server(("127.0.0.1", 0)) as listener:
    supervisor = Supervisor(
        [listener],
        work,
        accept=accept,
        on_ready=lambda: print("ready", flush=True),
        drain_seconds=5,
        log=make_log(LoggingConfig(format="json")),
    )
    raise SystemExit(supervisor.run())
"""


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path, config: Config) -> None:
    """Nobody serves on without a supervisor: the port is free again and no process is left."""
    with Serve(tmp_path, config, "--workers", "2") as serve:
        workers = serve.workers()
        serve.process.kill()
        serve.process.wait()
        assert psutil.wait_procs(workers, timeout=20)[1] == []
        with pytest.raises(ConnectionRefusedError):
            serve.connect().connect()


def test_a_worker_that_cannot_start_ends_it_all(tmp_path: Path, config: Config) -> None:
    """What only a worker finds out is a sentence and a failure, not an endless series of attempts."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal").write_text("a file where a directory has to be")
    status, output, errors = failing(Serve(tmp_path, config))
    assert (status != 0, output) == (True, "")
    assert "journal" in errors
    assert "Traceback" not in errors


# Stopping


def test_a_running_stream_ends_as_it_should_while_new_clients_are_refused(tmp_path: Path, config: Config) -> None:
    """After SIGTERM nothing new is let in, what runs is carried to its end, and the exit status is 0."""
    with Serve(tmp_path, config) as serve, contextlib.closing(serve.connect()) as connection:
        response = serve.chat(connection, "demo/slow", stream=True, max_tokens=10)
        first = response.readline()
        serve.process.send_signal(signal.SIGTERM)
        until(lambda: not _accepts(serve))
        rest = response.read()
        assert first.startswith(b"data: ")
        assert rest.endswith(b"data: [DONE]\n\n")
        assert serve.process.wait(20) == 0


def test_a_drain_that_is_over_cuts_what_still_runs(tmp_path: Path, config: Config) -> None:
    """A request that never ends is recorded as broken off, its row is shipped, and the stop is a clean one."""
    config["server"] = {"drain_seconds": 0.5}
    with Serve(tmp_path, config) as serve, _hanging(serve) as connection:
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(10) == 0
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
        assert "drain_cut_short" in serve.log
        assert "drain_overdue" not in serve.log
        assert list((tmp_path / "state" / "journal").iterdir()) == []
        assert asyncio.run(_outcomes(config["database"]["url"])) == ["disconnected"]


def test_a_second_sigterm_does_not_wait(tmp_path: Path, config: Config) -> None:
    """Whoever asks twice means it: a request that never ends holds nothing up, and the exit status tells of it."""
    with Serve(tmp_path, config) as serve, _hanging(serve):
        serve.process.send_signal(signal.SIGTERM)
        until(lambda: not _accepts(serve))
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(5) == 1


def test_a_worker_killed_while_it_drains_is_no_clean_stop(tmp_path: Path, config: Config) -> None:
    """The exit status is 0 only when every worker has ended its drain."""
    with Serve(tmp_path, config, "--workers", "2") as serve, _hanging(serve):
        workers = serve.workers()
        serve.process.send_signal(signal.SIGTERM)
        until(lambda: len(serve.workers()) == 1)
        (busy,) = serve.workers()
        assert busy in workers
        busy.kill()
        assert serve.process.wait(10) == 1


@contextlib.contextmanager
def _hanging(serve: Serve) -> Iterator[http.client.HTTPConnection]:
    """A connection whose request has been let in and is never answered."""
    with contextlib.closing(serve.connect()) as connection:
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({"model": "demo/hang", "messages": []}),
            {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
        )
        until(lambda: _is_busy(serve))
        yield connection


async def _outcomes(database_url: str) -> list[str]:
    """How the requests that are recorded ended."""
    database = make_postgres(database_url)
    await database.open()
    try:
        return [row["outcome"] for row in await database.fetch("SELECT outcome FROM requests ORDER BY id")]
    finally:
        await database.close()


def _accepts(serve: Serve) -> bool:
    try:
        with contextlib.closing(serve.connect()) as connection:
            connection.connect()
    except (ConnectionRefusedError, ConnectionResetError):
        # Reset is who is still waiting in line when the door is closed.
        return False
    return True


def _is_busy(serve: Serve) -> bool:
    """Whether a request has been let in, which is when the journal says so."""
    journal = Path(serve.arguments[serve.arguments.index("--state-dir") + 1]) / "journal"
    return any(file.stat().st_size for file in journal.rglob("*") if file.is_file() and b"hang" in file.read_bytes())


# Reloading


def test_a_broken_file_changes_nothing_and_a_good_one_everything(tmp_path: Path, config: Config) -> None:
    """SIGHUP with mistakes in the file keeps the old configuration and tells them; without, every worker follows."""
    with Serve(tmp_path, config, "--workers", "2") as serve:
        serve.configure({**config, "modles": {}, "plugins": {"nonesuch": {}}})
        serve.process.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in serve.log)
        assert "modles" in serve.log
        assert "nonesuch" in serve.log
        assert serve.models()[0] == "first"

        serve.configure({**config, "journal": {"batch_rows": 7}})
        serve.process.send_signal(signal.SIGHUP)
        until(lambda: serve.log.count("reload_refused") == 2)

        serve.configure({**config, "models": {"second": "demo/story"}})
        serve.process.send_signal(signal.SIGHUP)
        until(lambda: serve.log.count("config_reloaded") == 2)
        assert {serve.models()[0] for _ in range(10)} == {"second"}
        assert serve.stop() == 0
        # The supervisor has read the files that were wrong, and no worker was bothered with them.
        assert serve.log.count("reload_refused") == 2


def test_the_admin_api_reloads_every_worker(tmp_path: Path, config: Config) -> None:
    """Asking one worker over HTTP is enough for all; asking in vain is answered with the mistakes."""
    with Serve(tmp_path, config, "--workers", "2") as serve:
        admin_key = Path(serve.greeting["admin_key_file"]).read_text()
        serve.configure({**config, "models": {"second": "demo/story"}})
        assert _asked_to_reload(serve, admin_key)[0] == 202
        until(lambda: serve.log.count("config_reloaded") == 2)
        serve.configure({**config, "journal": {"batch_rows": 7}, "logging": {"level": "debug"}})
        status, error = _asked_to_reload(serve, admin_key)
        assert status == 400
        assert "journal: " in error
        assert "logging: " in error
        assert {serve.models()[0] for _ in range(10)} == {"second"}


def test_a_worker_that_comes_back_has_the_workspaces_of_the_last_reload(tmp_path: Path, config: Config) -> None:
    """A new worker serves the keys that the reloaded file names, not those from when the gateway started."""
    with Serve(tmp_path, config) as serve:
        serve.configure({**config, "workspaces": {"default": {"keys": ["sk-another-key-than-before"]}}})
        serve.process.send_signal(signal.SIGHUP)
        until(lambda: "config_reloaded" in serve.log)
        (worker,) = serve.workers()
        worker.kill()
        until(lambda: bool(serve.workers()) and serve.workers() != [worker])
        with contextlib.closing(serve.connect()) as connection:
            assert serve.chat(connection, "demo/echo").status == 401


def test_a_reload_may_not_expose_what_a_start_would_not(tmp_path: Path, config: Config) -> None:
    """Listening beyond loopback by an option, a weak key is refused by the admin API and by the supervisor alike."""
    strong = {**config, "workspaces": {"default": {"keys": [new_key()]}}}
    with Serve(tmp_path, strong, "--host", "0.0.0.0") as serve:  # noqa: S104 - what makes the key too weak
        admin_key = Path(serve.greeting["admin_key_file"]).read_text()
        serve.configure({**config, "workspaces": {"default": {"keys": ["secret"]}}})
        status, error = _asked_to_reload(serve, admin_key)
        assert (status, "workspaces.default.keys.0" in error) == (400, True)
        serve.process.send_signal(signal.SIGHUP)
        until(lambda: "reload_refused" in serve.log)
        assert "config_reloaded" not in serve.log


def _asked_to_reload(serve: Serve, admin_key: str) -> tuple[int, str]:
    with contextlib.closing(serve.connect()) as connection:
        connection.request("POST", "/admin/v1/config/reload", headers={"authorization": f"Bearer {admin_key}"})
        response = connection.getresponse()
        return response.status, response.read().decode()


# Starting


def test_out_of_the_box_it_serves_with_a_database_of_its_own(state_directory: Path) -> None:
    """Without a file it serves the demo with the key and the command it prints, and stops its database at the end."""
    state = state_directory / "state"
    state.mkdir(mode=0o755)
    serve = Serve(state_directory, None, state=state)
    process = serve.launch()
    assert process.stdout is not None
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        lines = [process.stdout.readline() for _ in range(6)]
        assert lines[0].startswith("llmproxy "), serve.log
        assert b"data: [DONE]" in _pasted(lines[-1])
        assert lines[2].split()[-1] == str(state / "admin-key")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        home = EmbeddedPostgres(state).home
        stack.callback(shutil.rmtree, home)
        assert (home / "data").is_dir()
        assert not (home / "data" / "postmaster.pid").exists()


def _pasted(command: str) -> bytes:
    """What the printed curl command would get, taken apart as a shell would."""
    curl, option, url, *rest = shlex.split(command)
    assert (curl, option) == ("curl", "-N")
    given = list(zip(rest[::2], rest[1::2], strict=True))
    headers = dict(value.split(": ", 1) for name, value in given if name == "-H")
    (body,) = (value for name, value in given if name == "-d")
    address = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname or "", address.port)) as connection:
        connection.request("POST", address.path, body, headers)
        return connection.getresponse().read()


def test_a_wrong_file_tells_every_mistake_with_its_place(tmp_path: Path) -> None:
    """Mistakes of the core, of providers and of plugins are all told at once, with file and line."""
    file = tmp_path / "config.yaml"
    file.write_text("server: {prot: 1}\nplugins: {nonesuch: {}}\n")
    status, output, errors = failing(Serve(tmp_path, None, "--config", str(file)))
    assert (status, output) == (1, "")
    assert [line.removeprefix(f"{file}:").partition(": ")[0] for line in errors.splitlines()] == ["1:10", "2:11"]


def test_a_missing_database_is_told_in_a_sentence(tmp_path: Path, config: Config) -> None:
    """Without a database it does not start, says where it looked, and never the password."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    config["database"] = {"url": f"postgresql://me:hush@127.0.0.1:{port}/llmproxy"}
    status, output, errors = failing(Serve(tmp_path, config))
    assert (status, output) == (1, "")
    assert len(errors.splitlines()) == 1
    assert f"127.0.0.1:{port}" in errors
    assert "hush" not in errors


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_told_in_a_sentence(tmp_path: Path, config: Config, workers: str) -> None:
    """Two gateways never share a port unnoticed, however many workers they have."""
    with Serve(tmp_path, config, "--workers", workers) as serve:
        port = str(urlsplit(serve.greeting["url"]).port)
        second = tmp_path / "second"
        second.mkdir()
        status, output, errors = failing(Serve(second, config, "--workers", workers, "--port", port))
        assert (status, output) == (1, "")
        assert errors.startswith(f"Cannot listen on 127.0.0.1:{port}: ")


def test_weak_keys_are_not_shown_to_the_network(tmp_path: Path, config: Config) -> None:
    """With a key that can be guessed it listens on loopback alone, and says which key it is."""
    config["workspaces"] = {"acme": {"keys": ["secret", KEY, "a" * 40]}}
    status, output, errors = failing(Serve(tmp_path, config, "--host", "0.0.0.0"))  # noqa: S104 - it must refuse
    assert (status, output) == (1, "")
    assert [line.partition(": ")[0] for line in errors.splitlines()] == [
        "workspaces.acme.keys.0",
        "workspaces.acme.keys.2",
    ]
    assert "secret" not in errors


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's user has set for a gateway of theirs is not meant for these."""
    for name in [name for name in os.environ if name.startswith("LLMPROXY_") or name.endswith("_API_KEY")]:
        if name != "LLMPROXY_TEST_DATABASE_URL":
            monkeypatch.delenv(name)
