"""`python -m benchmarks.limits`: what rate limits cost a request, and how long a tenant waits beside a noisy one."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median, quantiles
from time import perf_counter
from typing import Any, Final

from benchmarks.load import WrongAnswerError
from llmproxy.embedded import EmbeddedPostgres
from llmproxy.migrate import core_component
from llmproxy.testing import ProxyClient, ProxyResponse, StartProxy, reply, slow_head
from llmproxy.testing.database import TestDatabases
from llmproxy.testing.running_proxy import client_session
from llmproxy_plugins.rate_limits import RateLimits
from llmproxy_plugins.shaping import Shaping
from tests.postgres import open_directory

QUIET: Final = "sk-benchmarks-quiet-5a0c81e2f7"
NOISY: Final = "sk-benchmarks-noisy-c4419b70d3"
_KEYS: Final = {"workspaces": {"quiet": {"keys": [QUIET]}, "noisy": {"keys": [NOISY]}}}
_LIMITS: Final[Mapping[str, Any]] = {
    "limits": [
        {"scope": "workspace", "requests": 10_000_000, "tokens": 10_000_000_000, "concurrent": 10_000},
        {"scope": "user", "match": "*", "requests": 10_000_000},
    ]
}
# Four at a time, each for a tenth of a second: forty requests a second, of which each of two tenants has twenty.
_SLOTS: Final = 4
_LASTS_SECONDS: Final = 0.1
_BURST: Final = 10
# Replies that the upstream has at the ready.
_ENOUGH: Final = 100_000


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description="Measure limits and shaping.")
    parser.add_argument("--seconds", type=float, default=10, help="how long each run takes")
    asyncio.run(_measure(parser.parse_args().seconds))


async def _measure(seconds: float) -> None:
    async with _databases() as databases:
        start = StartProxy(databases)
        print("### Rate limits: added to a request\n\n| | p50 ms | p99 ms |\n|---|---:|---:|")
        async with (
            start(upstream=[reply("hi")] * _ENOUGH, config=_KEYS) as without,
            start(RateLimits, _LIMITS, upstream=[reply("hi")] * _ENOUGH, config=_KEYS) as limited,
        ):
            await _compare({"no limits": without, "five limits": limited}, seconds)
        print("\n### Shaping: waits of a tenant that bursts within its share\n\n| | p50 s | p95 s | requests |")
        print("|---|---:|---:|---:|")
        account = {"accounts": [{"match": "upstream/*", "concurrent": _SLOTS, "max_wait_seconds": 60}]}
        slow = slow_head(reply("hi"), _LASTS_SECONDS)
        for is_noisy in (False, True):
            async with start(Shaping, account, upstream=[slow] * _ENOUGH, config=_KEYS) as client:
                waits = await _waits(client, seconds, is_noisy=is_noisy)
            name = "beside fifty times its share" if is_noisy else "alone"
            cuts = quantiles(waits, n=20, method="inclusive")
            print(f"| {name} | {median(waits):.3f} | {cuts[-1]:.3f} | {len(waits)} |", flush=True)


async def _compare(clients: Mapping[str, ProxyClient], seconds: float) -> None:
    """Ask one after the other, turn by turn, so that both see the same machine."""
    took: dict[str, list[float]] = {name: [] for name in clients}
    until = perf_counter() + seconds
    while perf_counter() < until:
        for name, client in clients.items():
            before = perf_counter()
            response = await client.request("POST", "/v1/chat/completions", _ASKED, key=QUIET, headers=_USER)
            took[name].append(perf_counter() - before)
            _check(response)
    for name, each in took.items():
        cuts = quantiles(each[20:], n=100, method="inclusive")
        print(f"| {name} | {cuts[49] * 1000:.2f} | {cuts[98] * 1000:.2f} |", flush=True)


async def _waits(client: ProxyClient, seconds: float, *, is_noisy: bool) -> list[float]:
    """How much longer than the provider the quiet tenant's requests took."""
    async with AsyncExitStack() as stack:
        if is_noisy:
            await stack.enter_async_context(_noise(client))
            await asyncio.sleep(1)
        async with asyncio.TaskGroup() as group:
            asked = []
            for _ in range(int(seconds)):
                asked += [group.create_task(_wait(client)) for _ in range(_BURST)]
                await asyncio.sleep(1)
        return [each.result() for each in asked]


async def _wait(client: ProxyClient) -> float:
    before = perf_counter()
    response = await client.request("POST", "/v1/chat/completions", _ASKED, key=QUIET)
    _check(response)
    return perf_counter() - before - _LASTS_SECONDS


def _check(response: ProxyResponse) -> None:
    if response.status != 200:
        raise WrongAnswerError(f"Answered with {response.status}.")


@asynccontextmanager
async def _noise(client: ProxyClient) -> AsyncIterator[None]:
    """Fifty times as many clients as a share has slots for, with connections of their own, which never let up."""
    port = int(client.origin.rpartition(":")[2])
    async with client_session(60) as session:
        noisy = ProxyClient(client.app, client.upstream, client.clock, session, port)
        clients = [asyncio.get_running_loop().create_task(_insist(noisy)) for _ in range(50 * _SLOTS // 2)]
        try:
            yield
        finally:
            for each in clients:
                each.cancel()
            await asyncio.wait(clients)


async def _insist(client: ProxyClient) -> None:
    while True:
        await client.request("POST", "/v1/chat/completions", _ASKED, key=NOISY)


_ASKED: Final = {"model": "test", "messages": [{"role": "user", "content": "hello"}]}
_USER: Final = {"x-llmproxy-user": "ann"}


@asynccontextmanager
async def _databases() -> AsyncIterator[TestDatabases]:
    with open_directory() as directory:
        server = EmbeddedPostgres(directory)
        databases = TestDatabases(server.start(), [core_component()])
        try:
            yield databases
        finally:
            await databases.close()
            server.stop()


if __name__ == "__main__":
    main()
