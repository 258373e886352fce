"""The running gateway of the test kit, and what it offers for tests of a single hook."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from llmproxy import testing
from llmproxy.api import (
    Answer,
    ConfigError,
    Exchange,
    Router,
    RouteRequest,
    Section,
    Services,
    hookimpl,
)
from llmproxy.testing import (
    StartProxy,
    cut_after,
    fail,
    hang,
    reply,
    stream,
)
from llmproxy.testing.database import TestDatabases
from llmproxy.testing.wall_clock import moment


class GreetingConfig(Section):
    word: str = "hello"


class Greeting:
    """Answers by itself; brings a route and a table."""

    name = "greeting"
    Config = GreetingConfig

    def __init__(self, config: GreetingConfig, services: Services) -> None:
        self.word = config.word
        self.services = services

    @hookimpl
    def register_routes(self, router: Router) -> None:
        router.add("GET", "/plugins/greeting", self.show)

    @hookimpl
    def pre_request(self, exchange: Exchange) -> Answer:
        return Answer(body=f'{{"choices": [{{"message": {{"content": "{self.word}"}}}}]}}'.encode())

    async def show(self, _request: RouteRequest) -> Answer:
        return Answer(body=self.services.clock.now().isoformat().encode())


class Recording:
    """Notes in what order plugins run."""

    name = "recording"
    seen: ClassVar[list[str]]

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        exchange.decide(self.name, "saw", str(exchange.request.model))


class Stamping:
    """Owns a table."""

    name = "stamping"
    migrations: ClassVar[Path]

    def __init__(self, config: Section, services: Services) -> None:
        self.database = services.database

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        await self.database.execute("INSERT INTO stamping_stamps (stamp) VALUES ($1)", exchange.id)


# The gateway


async def test_a_chat_reaches_the_upstream_and_its_answer_the_client(proxy: StartProxy) -> None:
    """`chat` asks the model `test`, which is the upstream's `test-model`, with the gateway's own key."""
    async with proxy(upstream=[reply("hi")]) as client:
        response = await client.chat("hello", temperature=0.5, headers={"x-llmproxy-feature": "demo"})
        assert (response.status, response.text) == (200, "hi")
        assert response.headers["X-LLMProxy-Model"] == "upstream/test-model"
        [request] = client.upstream.requests
        assert request.document == {
            "model": "test-model",
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0.5,
        }
        assert client.key not in request.raw_head.decode()


async def test_a_stream_is_read_to_its_end(proxy: StartProxy) -> None:
    """A streamed answer has its events, its text, and tells whether it was complete."""
    async with proxy(upstream=[stream("one ", "two"), cut_after(2)]) as client:
        whole = await client.chat("count", stream=True)
        assert (whole.status, whole.text, whole.is_done) == (200, "one two", True)
        assert [event["object"] for event in whole.events] == ["chat.completion.chunk"] * 4
        cut = await client.chat("count", stream=True)
        assert (cut.text, cut.is_done) == ("word1 ", False)
        assert cut.events[-1]["error"]["code"] == "upstream_cut"


async def test_plugins_run_in_the_order_given_with_their_settings(proxy: StartProxy) -> None:
    """Plugins are given as classes, not installed, each with the settings that follow it."""
    async with proxy(Recording, Greeting, {"word": "ahoy"}) as client:
        assert (await client.chat("hello")).text == "ahoy"
        assert client.upstream.requests == []
        [row] = (await client.rows()).requests
        assert row["decisions"] == [{"by": "recording", "what": "saw", "why": "test"}]


async def test_rows_are_there_once_everything_was_shipped(proxy: StartProxy) -> None:
    """One request row and one ledger row for each request let in, priced; one attempt row for each try."""
    async with proxy(upstream=[reply("a"), fail(500), stream("b")]) as client:
        for is_stream in (False, False, True):
            await client.chat("hello", stream=is_stream)
        rows = await client.rows()
        assert [row["outcome"] for row in rows.requests] == ["succeeded", "failed", "succeeded"]
        assert [row["request_id"] for row in rows.ledger] == [row["id"] for row in rows.requests]
        assert [row["amount_usd"] for row in rows.ledger] == [Decimal("0.000020"), None, Decimal("0.000020")]
        assert [row["http_status"] for row in rows.attempts] == [200, 500, 200]


async def test_settings_are_laid_over_those_of_the_kit(proxy: StartProxy) -> None:
    """What the test configures joins the kit's own sections and wins over single values."""
    config = {"models": {"other": "demo/echo"}, "providers": {"upstream": {"models": ["a", "b"]}}}
    async with proxy(config=config, upstream=[reply("hi")]) as client:
        listed = (await client.request("GET", "/v1/models")).document["data"]
        assert {"test", "other", "upstream/a", "upstream/b"} <= {model["id"] for model in listed}
        assert "upstream/test-model" not in {model["id"] for model in listed}
        assert (await client.chat("hello")).text == "hi"
        assert "hello" in (await client.chat("hello", model="other")).text


async def test_time_stands_still_where_the_test_put_it(proxy: StartProxy) -> None:
    """`now` is the gateway's time until the test sets another, and rows are still shipped meanwhile."""
    async with proxy(Greeting, now="02:00") as client:
        shown = await client.request("GET", "/plugins/greeting", key=client.admin_key)
        assert shown.body == b"2026-01-01T02:00:00+00:00"
        client.clock.set("2026-03-29T09:30+02:00")
        shown = await client.request("GET", "/plugins/greeting", key=client.admin_key)
        assert datetime.fromisoformat(shown.body.decode()) == datetime(2026, 3, 29, 7, 30, tzinfo=UTC)
        await client.chat("hello")
        [row] = (await client.rows()).requests
        assert row["admitted_at"] == client.clock.now()


async def test_tables_of_plugins_are_there(proxy: StartProxy, tmp_path: Path) -> None:
    """Migrations of a plugin given to the gateway are applied to its database before it starts."""
    (tmp_path / "0001_stamps.sql").write_text("CREATE TABLE stamping_stamps (stamp text NOT NULL);")
    Stamping.migrations = tmp_path
    async with proxy(Stamping, upstream=[reply("hi")]) as client:
        assert (await client.chat("hello")).text == "hi"
        [row] = await client.app.services.database.fetch("SELECT stamp FROM stamping_stamps")
        assert row["stamp"] == str((await client.rows()).requests[0]["id"])


async def test_requests_need_no_document(proxy: StartProxy) -> None:
    """Any path can be asked for, with any body and any key."""
    async with proxy() as client:
        assert (await client.request("GET", "/health/ready")).document["status"] == "ok"
        assert (await client.request("POST", "/v1/chat/completions", body=b"{")).status == 400
        assert (await client.request("GET", "/v1/models", key="sk-wrong")).status == 401
        assert (await client.request("GET", "/admin/v1/keys")).status == 401
        assert (await client.request("GET", "/admin/v1/keys", key=client.admin_key)).status == 200


async def test_wrong_settings_are_refused_with_every_mistake(proxy: StartProxy) -> None:
    """A gateway that cannot start raises what its operator would read."""
    with pytest.raises(ConfigError) as raised:
        async with proxy(Greeting, {"wort": "hello"}, config={"server": {"prot": 1}}):
            pass
    assert len(raised.value.mistakes) == 2
    assert "did you mean 'word'" in str(raised.value)


async def test_a_connection_that_breaks_off_is_a_connection_error(proxy: StartProxy) -> None:
    """Whoever uses the kit need not know which HTTP library is in it."""
    async with proxy(upstream=[hang()]) as client:
        asking = asyncio.get_running_loop().create_task(client.chat("hello"))
        await client.upstream.wait_for(lambda: bool(client.upstream.requests))
        for connection in client.app.server.connections:
            assert connection.transport is not None
            connection.transport.abort()
        with pytest.raises(ConnectionError):
            await asking


def test_nothing_is_left_behind(llmproxy_databases: TestDatabases) -> None:
    """Sockets, files, threads, tasks and databases are gone when the block ends, also when the test failed in it."""
    process = psutil.Process()

    async def use(*, is_failing: bool) -> set[asyncio.Task[object]]:
        async with StartProxy(llmproxy_databases)(upstream=[reply("hi"), stream("a")]) as client:
            await client.chat("hello")
            await client.chat("hello", stream=True)
            assert not is_failing
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(use(is_failing=False)) == set()
    files, children = process.num_fds(), process.children()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AssertionError):
            asyncio.run(use(is_failing=True))
        with pytest.raises(ConfigError):
            asyncio.run(refused(llmproxy_databases))
    assert process.num_fds() == files
    assert process.children() == children


async def refused(databases: TestDatabases) -> None:
    """Try to start a gateway that cannot start."""
    async with StartProxy(databases)(config={"providers": {"upstream": {"kind": "nothing"}}}):
        raise AssertionError


def test_the_kits_fixtures_cost_other_projects_nothing() -> None:
    """pytest imports the plugin wherever llmproxy is installed; the gateway is not imported with it."""
    code = "import sys, llmproxy.testing.pytest_plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = set(done.stdout.split())
    assert loaded & {"aiohttp", "asyncpg", "pydantic", "structlog", "llmproxy.app", "hypothesis"} == set()
    assert "llmproxy.testing.upstream" in loaded


def test_the_kit_has_everything_it_promises() -> None:
    """Each name in `__all__` can be imported, also those that bring the gateway along."""
    assert [name for name in testing.__all__ if not hasattr(testing, name)] == []
    assert testing.__all__ == sorted(testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        getattr(testing, "missing")  # noqa: B009 - the type checker knows that it is not there


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("02:00", datetime(2026, 1, 1, 2, tzinfo=UTC)),
        ("23:59:30", datetime(2026, 1, 1, 23, 59, 30, tzinfo=UTC)),
        ("2026-03-29T02:30", datetime(2026, 3, 29, 2, 30, tzinfo=UTC)),
        ("2026-03-29T02:30+02:00", datetime(2026, 3, 29, 0, 30, tzinfo=UTC)),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_moments_are_written_as_people_say_them(text: str | datetime, expected: datetime) -> None:
    """A time of day or a date and time; UTC where no offset is given."""
    assert moment(text) == expected
