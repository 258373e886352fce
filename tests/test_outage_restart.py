"""A worker that dies while Postgres is away: its place is taken, and what needs no database goes on."""

from __future__ import annotations

from pathlib import Path

from llmproxy.keys import key_hash
from llmproxy.testing import ScriptedUpstream, reply, wait_until
from llmproxy.testing.database import make_postgres
from tests.load_gateway import GatewayProcess
from tests.test_faults_storage import ask, in_front_of, recorded
from tests.wire import process_config, request

STORED_KEY = "sk-stored-in-postgres-0123456789"
REVOKED_KEY = "sk-revoked-in-postgres-0123456789"


async def test_a_worker_that_dies_in_an_outage_is_replaced(database_url: str, tmp_path: Path) -> None:
    """The new one knows the keys that the old one had read, and judges no others; later every request has its row."""
    await store_keys(database_url)
    async with (
        in_front_of(database_url) as (relay, url),
        ScriptedUpstream(default=reply("hi")) as upstream,
        GatewayProcess(process_config(url, upstream), tmp_path) as gateway,
    ):
        assert (await ask(gateway, request(key=STORED_KEY))).status == 200
        assert (await ask(gateway, request(key=REVOKED_KEY))).status == 401
        relay.refuse()
        relay.cut()
        await replace_worker(gateway)
        assert (await ask(gateway, request())).status == 200
        assert (await ask(gateway, request(key=STORED_KEY))).status == 200
        assert (await ask(gateway, request(key=REVOKED_KEY))).status == 401
        unknown = await ask(gateway, request(key="sk-made-in-the-meantime"))
        assert (unknown.status, unknown.headers["retry-after"]) == (503, "1")
        await relay.accept()
        assert await recorded(database_url, 3) == [("succeeded", 1)] * 3


async def store_keys(database_url: str) -> None:
    """Two keys that only Postgres knows, one of them revoked."""
    query = """
        INSERT INTO virtual_keys (id, workspace, key_sha256, key_hint, revoked_at)
        VALUES ('key_1', 'default', $1, 'sk-s', NULL), ('key_2', 'default', $2, 'sk-r', now())
    """
    database = make_postgres(database_url)
    await database.open()
    await database.execute(query, key_hash(STORED_KEY), key_hash(REVOKED_KEY))
    await database.close()


async def replace_worker(gateway: GatewayProcess) -> None:
    """Kill the worker, and wait until another serves in its place."""
    killed = set(gateway.workers)
    gateway.kill_worker()
    await wait_until(lambda: bool(set(gateway.workers) - killed), seconds=10)
