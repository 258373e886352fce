"""The promise that makes bills and audits worth reading, under everything that can go wrong at once."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llmproxy.config import Config, JournalConfig, Section
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.hookspecs import hookimpl
from llmproxy.ids import new_id
from llmproxy.journal import Journal
from llmproxy.providers import Provider
from llmproxy.providers.openai import OpenAI
from llmproxy.records import admission, facts_of
from llmproxy.request import Document
from llmproxy.segments import owners
from llmproxy.services import Row, Services
from llmproxy.testing import RecordedRequest, Reply, ScriptedUpstream, StartProxy, reply, stream, wait_until
from llmproxy.testing.database import make_postgres
from llmproxy.testing.exchanges import make_exchange
from llmproxy.usage import Usage
from tests.load_client import Load, Seen
from tests.load_gateway import GatewayProcess
from tests.load_mix import answer, asking, make_cases, session_of
from tests.load_rows import Rows, read_rows, violations
from tests.test_journal import abandon

REQUESTS = 5000
SEED = 2026
WORKERS = 2
KEY = "sk-load-test-8f2b61c09d7e4a35"
# Workers look for dead workers' journals every five seconds.
REPLAYED_SECONDS = 30
CONFIG = """
server: {{workers: {workers}}}
database: {{url: "{database_url}"}}
journal: {{segment_bytes: 65536, sync_seconds: 0.1}}
timeouts: {{first_byte_seconds: 2, idle_seconds: 2}}
providers: {{upstream: {{kind: openai, base_url: "{base_url}"}}}}
prices: [{{match: upstream/*, input_usd_per_mtok: 1, output_usd_per_mtok: 2}}]
workspaces: {{acme: {{keys: [sk-load-test-8f2b61c09d7e4a35]}}}}
logging: {{format: json}}
"""


class CountingUpstream:
    """The upstream of the mix, which counts how often it saw each session."""

    def __init__(self) -> None:
        self.sessions: Counter[str] = Counter()

    def __call__(self, request: RecordedRequest) -> Reply:
        self.sessions[session_of(request)] += 1
        return answer(request)


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to the gateway while the load runs, each at its share of the load."""

    load: Load
    gateway: GatewayProcess
    postgres: EmbeddedPostgres

    async def run(self) -> None:
        """Kill three workers, one of them while Postgres is down."""
        await self._after(0.2)
        await self._kill()
        await self._after(0.4)
        await asyncio.to_thread(self.postgres.stop)
        await self._after(0.5)
        self.gateway.kill_worker()
        await asyncio.to_thread(self.postgres.start)
        await self._all_alive()
        await self._after(0.8)
        await self._kill()

    async def _after(self, share: float) -> None:
        await wait_until(lambda: len(self.load.seen) >= share * REQUESTS, seconds=60)

    async def _kill(self) -> None:
        self.gateway.kill_worker()
        await self._all_alive()

    async def _all_alive(self) -> None:
        await wait_until(lambda: len(self.gateway.workers) == WORKERS, seconds=10)


@pytest.mark.timeout(180)
async def test_every_admitted_request_has_one_row_in_each_table(
    embedded: EmbeddedPostgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hang-ups, failing upstreams, three kill -9 and a Postgres restart neither lose nor double a request's rows.

    Whoever got an answer, and whatever reached the upstream, has exactly one audit and one ledger row. A request
    whose worker was killed before anybody could tell has at most one.
    """
    upstream = CountingUpstream()
    database_url = await asyncio.to_thread(embedded.start)
    started = time.monotonic()
    async with ScriptedUpstream(default=upstream) as server:
        config = CONFIG.format(workers=WORKERS, database_url=database_url, base_url=server.base_url)
        async with GatewayProcess(config, tmp_path) as gateway:
            load = Load(gateway.port, KEY, make_cases(REQUESTS, SEED), upstream.sessions)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.run())
                tasks.create_task(Faults(load, gateway, embedded).run())
            loaded_seconds = time.monotonic() - started
            await wait_until(lambda: len(owners(gateway.journal)) == WORKERS, REPLAYED_SECONDS)
            assert await gateway.stop() == 0
            assert list(gateway.journal.iterdir()) == []
    rows, broken_rules = await recorded(database_url)
    with capsys.disabled():
        sys.stdout.write(report(load.seen, rows, loaded_seconds))
    assert broken_rules == {}
    assert lost_or_doubled(load.seen, upstream.sessions, rows) == {}
    assert told_otherwise(load.seen, rows) == []
    assert [entry for entry in gateway.log() if entry["level"] == "error"] == []
    assert outcomes(rows).keys() == {"succeeded", "refused", "failed", "disconnected", "interrupted"}


async def test_a_gateway_killed_as_a_whole_settles_at_its_next_start(database_url: str, tmp_path: Path) -> None:
    """What was on its way when every process was killed is recorded once, as interrupted, when one starts again."""
    async with ScriptedUpstream(default=answer) as server:
        config = CONFIG.format(workers=1, database_url=database_url, base_url=server.base_url)
        cases = [asking(f"session-{number}", "slow-stream") for number in range(5)]
        # More than Postgres has integers for.
        cases[0] = replace(cases[0], body=cases[0].body.replace(b"{", b'{"max_tokens": 9223372036854775808, ', 1))
        async with GatewayProcess(config, tmp_path) as gateway, asyncio.TaskGroup() as tasks:
            tasks.create_task(Load(gateway.port, KEY, cases).run())
            await server.wait_for(lambda: len(server.requests) == len(cases))
            gateway.kill()
        async with GatewayProcess(config, tmp_path) as gateway:
            await wait_until(lambda: len(owners(gateway.journal)) == 1, REPLAYED_SECONDS)
            assert await gateway.stop() == 0
            assert list(gateway.journal.iterdir()) == []
    rows, broken_rules = await recorded(database_url)
    assert broken_rules == {}
    assert rows.keys() == {case.session for case in cases}
    assert outcomes(rows) == {"interrupted": len(cases)}


async def test_what_nobody_serves_costs_nothing_when_its_worker_dies(database_url: str, tmp_path: Path) -> None:
    """It cannot have been sent: its row has neither tokens nor a cost."""
    journal = Journal(tmp_path / ".llmproxy" / "journal", JournalConfig())
    exchange = make_exchange(model="nobody/has-it")
    exchange.id, exchange.admitted_at = new_id(datetime.now(UTC)), datetime.now(UTC)
    journal.begin(exchange.id, admission(exchange, facts_of(exchange)))
    abandon(journal)
    async with ScriptedUpstream() as server:
        config = CONFIG.format(workers=1, database_url=database_url, base_url=server.base_url)
        async with GatewayProcess(config, tmp_path) as gateway:
            await wait_until(lambda: len(owners(gateway.journal)) == 1, REPLAYED_SECONDS)
            assert await gateway.stop() == 0
    database = make_postgres(database_url)
    await database.open()
    (row,) = await database.fetch("SELECT outcome, usage_provenance, cost_usd FROM requests")
    await database.close()
    assert tuple(row.values()) == ("interrupted", None, None)


class Innumerate(OpenAI):
    """A provider whose own code fails on every answer."""

    kind = "innumerate"

    def usage(self, document: Document) -> Usage | None:
        raise LookupError("prompt_tokens")


class InnumerateProviders:
    name = "innumerate"

    def __init__(self, config: Section, services: Services) -> None: ...

    @hookimpl
    def register_providers(self, config: Config) -> Sequence[type[Provider]]:
        return [Innumerate]


async def test_a_failing_provider_plugin_costs_no_row(proxy: StartProxy) -> None:
    """A request is recorded, and its worker can stop, although its usage could not be made out."""
    config = {"providers": {"upstream": {"kind": "innumerate"}}}
    async with proxy(InnumerateProviders, upstream=[reply("hi"), stream("hi")], config=config) as client:
        assert (await client.chat()).status == 500
        assert (await client.chat(stream=True)).status == 200
        rows = await client.rows()
    assert [row["outcome"] for row in rows.requests] == ["failed", "succeeded"]
    assert [row["request_id"] for row in rows.ledger] == [row["id"] for row in rows.requests]


async def recorded(database_url: str) -> tuple[Rows, dict[str, list[str]]]:
    """What Postgres has in the end, and the rules that it breaks."""
    database = make_postgres(database_url)
    await database.open()
    try:
        return await read_rows(database), await violations(database)
    finally:
        await database.close()


def lost_or_doubled(seen: Sequence[Seen], at_upstream: Mapping[str, int], rows: Rows) -> dict[str, list[str]]:
    """The sessions whose rows are too few or too many, by what is wrong with them."""
    owed = {each.case.session for each in seen if each.case.is_let_in and each.status} | at_upstream.keys()
    unowed = {each.case.session for each in seen if not each.case.is_let_in}
    wrong = {
        "lost": owed - rows.keys(),
        "doubled": {session for session, found in rows.items() if len(found) > 1},
        "never let in": rows.keys() & unowed,
        "sent twice": {session for session, count in at_upstream.items() if count > 1},
        "from nowhere": rows.keys() - {each.case.session for each in seen},
    }
    return {what: sorted(sessions) for what, sessions in wrong.items() if sessions}


def told_otherwise(seen: Sequence[Seen], rows: Rows) -> list[tuple[Seen, Row]]:
    """Whole answers that their rows tell another story of; an interrupted row knows no answer."""
    pairs = [(each, row) for each in seen if each.is_whole for row in rows.get(each.case.session, ())]
    return [(each, row) for each, row in pairs if row["outcome"] != "interrupted" and not tells(row, each)]


def tells(row: Row, seen: Seen) -> bool:
    """Whether a row has the id and the status that its client saw, and calls a success what was one."""
    is_success = row["outcome"] == "succeeded"
    return (row["id"], row["http_status"], is_success) == (seen.request_id, seen.status, seen.is_success)


def outcomes(rows: Rows) -> Counter[str]:
    """How many rows there are of each outcome."""
    return Counter(row["outcome"] for found in rows.values() for row in found)


def report(seen: Sequence[Seen], rows: Rows, seconds: float) -> str:
    """The figures, for people."""
    nothing = sum(each.status is None and each.case.hang_up is None for each in seen)
    statuses = Counter(each.status for each in seen if each.status)
    return (
        f"\n{len(seen)} requests in {seconds:.1f} s: {dict(sorted(statuses.items()))}, "
        f"{sum(each.case.hang_up is not None for each in seen)} hang-ups, {nothing} cut off by a kill\n"
        f"{sum(outcomes(rows).values())} rows: {dict(outcomes(rows).most_common())}\n"
    )
