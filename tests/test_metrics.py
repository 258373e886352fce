"""`/metrics`: what it says equals what happened, from whichever worker, whoever died meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from llmproxy.api import Exchange, hookimpl
from llmproxy.testing import ProxyClient, StartProxy, fail, hang, reply, stream, tokens, wait_until
from llmproxy_plugins.metrics import Metrics
from llmproxy_plugins.metrics.families import FLIGHTS
from llmproxy_plugins.metrics.sheets import read_index, read_sheets
from tests.load_gateway import GatewayProcess
from tests.metrics import Scrape

KEY: Final = "sk-the-key-of-the-tests-client"
SERVED: Final = """
server: {{workers: 2}}
database: {{url: "{database_url}"}}
providers: {{demo: {{}}}}
models: {{echo: demo/echo}}
workspaces: {{default: {{keys: [{key}]}}}}
plugins: {{metrics: {{public: true}}}}
"""


async def scraped(client: ProxyClient) -> Scrape:
    """What the operator reads once every request has ended."""
    await client.app.gateway.pipeline.idle()
    response = await client.request("GET", "/metrics", key=client.admin_key)
    assert response.status == 200
    return Scrape(response.body.decode())


# What is counted


async def test_the_numbers_equal_the_traffic(proxy: StartProxy) -> None:
    """Requests by outcome, attempts by failure, tokens and dollars are those of the rows."""
    script = [reply("a"), fail(429), stream("b", "c", usage=tokens(7, 3)), fail(500), stream("d", usage=tokens(1, 1))]
    async with proxy(Metrics, upstream=script) as client:
        refused = await client.request("GET", "/metrics")
        statuses = [(await client.chat(stream=number in (2, 4))).status for number in range(5)]
        statuses.append((await client.chat(model="no/such-model")).status)
        rows, scrape = await client.rows(), await scraped(client)
    assert refused.status == 401
    assert statuses == [200, 429, 200, 502, 200, 404]
    total = "llmproxy_requests_total"
    outcomes = {outcome: scrape.sum(total, outcome=outcome) for outcome in scrape.values_of("outcome")}
    assert outcomes == {"succeeded": 3, "failed": 2, "refused": 1}
    assert scrape.sum(total, model="test", origin="client", operation="chat") == 5
    assert scrape.sum("llmproxy_requests_in_flight") == 0
    failures = {each: scrape.sum("llmproxy_attempts_total", failure=each) for each in scrape.values_of("failure")}
    assert failures == {"none": 3, "rate_limit": 1, "broken": 1}
    assert scrape.sum("gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 18
    assert scrape.sum("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 9
    paid = sum(row["amount_usd"] for row in rows.ledger if row["amount_usd"] is not None)
    assert paid > 0
    assert scrape.sum("llmproxy_cost_usd_total", model="test-model") == pytest.approx(float(paid))
    assert scrape.sum("gen_ai_server_request_duration_seconds_count") == 6
    took = sum(row["duration_seconds"] for row in rows.requests)
    assert scrape.sum("gen_ai_server_request_duration_seconds_sum") == pytest.approx(took, abs=0.001)
    # Of streams, and per token of those that have a second one.
    assert scrape.sum("gen_ai_server_time_to_first_token_seconds_count", gen_ai_request_model="test") == 2
    assert scrape.sum("gen_ai_server_time_per_output_token_seconds_count") == 1


async def test_requests_on_their_way_are_counted_until_they_end(proxy: StartProxy) -> None:
    """A request is in flight from when it was let in to when it has been recorded, hang-ups included."""
    async with proxy(Metrics, upstream=[hang()]) as client:
        asking = asyncio.get_running_loop().create_task(client.chat())
        await wait_until(lambda: len(client.upstream.requests) == 1)
        response = await client.request("GET", "/metrics", key=client.admin_key)
        assert Scrape(response.body.decode()).sum("llmproxy_requests_in_flight", model="test") == 1
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        await client.rows()
        scrape = await scraped(client)
    assert scrape.sum("llmproxy_requests_in_flight") == 0
    assert scrape.sum("llmproxy_requests_total", outcome="disconnected") == 1


async def test_what_caches_did_is_counted(proxy: StartProxy) -> None:
    """Each answer counts under what the cache was to it."""
    async with proxy(Metrics, {}, upstream=[reply("a")], config={"plugins": {"caching": {}}}) as client:
        for _ in range(3):
            assert (await client.chat(temperature=0)).status == 200
        scrape = await scraped(client)
    assert scrape.sum("llmproxy_cache_total", result="miss") == 1
    assert scrape.sum("llmproxy_cache_total", result="hit") == 2
    assert scrape.sum("gen_ai_server_request_duration_seconds_count", gen_ai_provider_name="none") == 2


class Clumsy:
    """Fails where it stops nobody, and where it stops the request."""

    name = "clumsy"

    def __init__(self, config: object, services: object) -> None:
        pass

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        if exchange.request.document.get("user") == "unlucky":
            raise KeyError("pre_request")

    @hookimpl
    def post_attempt(self, exchange: Exchange) -> None:
        raise KeyError("post_attempt")


async def test_failures_of_plugins_are_counted(proxy: StartProxy) -> None:
    """Those that stop nobody and those that end a request, by plugin and hook."""
    async with proxy(Metrics, Clumsy, upstream=[reply("a"), reply("b")]) as client:
        statuses = [(await client.chat(user=user)).status for user in ("ann", "bob", "unlucky")]
        scrape = await scraped(client)
    assert statuses == [200, 200, 500]
    assert scrape.sum("llmproxy_plugin_failures_total", plugin="clumsy", hook="post_attempt") == 2
    assert scrape.sum("llmproxy_plugin_failures_total", plugin="clumsy", hook="pre_request") == 1


async def test_a_reload_neither_loses_nor_doubles(proxy: StartProxy) -> None:
    """The old configuration's numbers stay, while it drains and afterwards, and there is one journal."""
    async with proxy(Metrics, Clumsy, upstream=[reply("a"), hang(), reply("b")]) as client:
        await client.chat()
        asking = asyncio.get_running_loop().create_task(client.chat())
        await wait_until(lambda: len(client.upstream.requests) == 2)
        await client.app.reload()
        await client.chat()
        draining = Scrape((await client.request("GET", "/metrics", key=client.admin_key)).body.decode())
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        await client.rows()
        await client.app.reload()
        scrape = await scraped(client)
    assert (draining.sum("llmproxy_requests_in_flight"), scrape.sum("llmproxy_requests_in_flight")) == (1, 0)
    assert len([each for each in draining.samples if each.name == "llmproxy_journal_pending"]) == 1
    assert scrape.sum("llmproxy_requests_total") == 3
    assert scrape.sum("llmproxy_requests_total", outcome="succeeded") == 2
    assert scrape.sum("llmproxy_plugin_failures_total") == 3


# Several workers


async def test_every_worker_tells_of_all_and_a_killed_one_loses_nothing(tmp_path: Path, database_url: str) -> None:
    """Two real workers: each scrape holds all the traffic, also after both were killed, their requests interrupted."""
    gateway = GatewayProcess(SERVED.format(database_url=database_url, key=KEY), tmp_path)
    # A connection for each request, so that the system spreads them over the workers.
    connector = aiohttp.TCPConnector(force_close=True)
    async with gateway, aiohttp.ClientSession(connector=connector) as session:
        origin = f"http://127.0.0.1:{gateway.port}"
        await _ask(session, origin, 24)
        assert await _agreed(session, origin, succeeded=24, in_flight=0) == {}
        assert len(_began_on_each_sheet(tmp_path)) == 2

        hanging = [asyncio.get_running_loop().create_task(_chat(session, origin, "demo/hang")) for _ in range(3)]
        assert await _agreed(session, origin, succeeded=24, in_flight=3) == {}
        for _ in range(2):
            await _replace_oldest(gateway)
        assert await asyncio.gather(*hanging) == [None] * 3
        await _ask(session, origin, 12)
        assert await _agreed(session, origin, succeeded=36, in_flight=0, interrupted=3) == {}
        assert await gateway.stop() == 0


async def _replace_oldest(gateway: GatewayProcess) -> None:
    """Kill the worker that has lived longest, and wait for the one that takes its place."""
    before = set(gateway.workers)
    gateway.kill_worker()
    await wait_until(lambda: len(gateway.workers) == 2 and set(gateway.workers) != before, 20)


async def _chat(session: aiohttp.ClientSession, origin: str, model: str) -> int | None:
    document = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        async with session.post(f"{origin}/v1/chat/completions", json=document, headers=headers) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return None


async def _ask(session: aiohttp.ClientSession, origin: str, times: int) -> None:
    for _ in range(times):
        assert await _chat(session, origin, "echo") == 200


async def _agreed(
    session: aiohttp.ClientSession, origin: str, *, in_flight: int, **outcomes: int
) -> Mapping[str, float]:
    """What differs from the traffic in any of ten scrapes in a row, once one has shown it all; nothing is the aim."""
    expected = {**outcomes, "in_flight": in_flight, "input": 0.0}
    async with asyncio.timeout(20):
        found = await _counted(session, origin)
        while found != {**expected, "input": found["input"]}:
            found = await _counted(session, origin)
    again = [await _counted(session, origin) for _ in range(10)]
    tokens_of_one = found["input"] / outcomes["succeeded"]
    assert tokens_of_one == int(tokens_of_one) > 0
    return {name: counted[name] for counted in again for name in counted if counted[name] != found[name]}


async def _counted(session: aiohttp.ClientSession, origin: str) -> Mapping[str, float]:
    """What one scrape says, from whichever worker it reaches."""
    async with session.get(f"{origin}/metrics") as response:
        scrape = Scrape(await response.text())
    assert scrape.sum("gen_ai_server_request_duration_seconds_count") == scrape.sum("llmproxy_attempts_total")
    outcomes = {each: scrape.sum("llmproxy_requests_total", outcome=each) for each in scrape.values_of("outcome")}
    return {
        **outcomes,
        "in_flight": scrape.sum("llmproxy_requests_in_flight"),
        "input": scrape.sum("gen_ai_client_token_usage_sum", gen_ai_token_type="input"),
    }


def _began_on_each_sheet(directory: Path) -> list[float]:
    """How many requests each worker has let in, of those that have let in any."""
    (group,) = (each for each in (directory / ".llmproxy" / "metrics").iterdir() if each.is_dir())
    sheets = read_sheets(group)
    began = [sum(sheet.values[s.start] for s in read_index(sheet.index) if s.family is FLIGHTS) for sheet in sheets]
    return [each for each in began if each]
