"""`python -m benchmarks.outage`: one of three targets is down for the middle third of the traffic, in every way.

The gateway, its upstreams and its clients share a process, so the times say nothing by themselves: what counts is that
no client notices, and what a request takes during the outage against one, at the same moment, to the next target alone.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from llmproxy.embedded import EmbeddedPostgres
from llmproxy.migrate import core_component
from llmproxy.request import Document
from llmproxy.testing import (
    FaultProxy,
    ProxyClient,
    ProxyResponse,
    Reply,
    ScriptedUpstream,
    StartProxy,
    cut_after,
    error_in_200,
    fail,
    hang,
    stream,
)
from llmproxy.testing.database import TestDatabases
from llmproxy_plugins.fallback import Fallback

TEXT: Final = ("All ", "is ", "well.")
FAULTS: Final[Mapping[str, Reply | None]] = {
    # No reply at all: nobody listens.
    "refuses connections": None,
    "hangs": hang(),
    "503": fail(503),
    "429": fail(429),
    "529": fail(529),
    "error inside a 200": error_in_200(),
    "cut before content": cut_after(1),
}
SECTION: Final[Document] = {
    "first_byte_seconds": 0.5,
    "answer_seconds": 0.5,
    "health": {"cool_down_seconds": 0.5, "max_cool_down_seconds": 1},
}
CLIENTS: Final = 4
_ALIAS: Final = "test"
# Where the alias leads while the first of its targets is left alone.
_NEXT: Final = "target2/m"


@dataclass(slots=True)
class Seen:
    """What the clients saw of one outage.

    Attributes:
        failed: What was wrong with each answer that was not the right one.
        open_seconds: What each request took that was sent past the target that was down, without trying it.
        healthy_seconds: What each took that in between was sent to where those went, by its own name.
        detours: How many needed more than one attempt.
    """

    failed: list[str] = field(default_factory=list)
    open_seconds: list[float] = field(default_factory=list)
    healthy_seconds: list[float] = field(default_factory=list)
    detours: int = 0

    @property
    def added(self) -> float:
        """What an open breaker adds to the median, as a share of it."""
        return median(self.open_seconds) / median(self.healthy_seconds) - 1


@dataclass(slots=True)
class Stage:
    """A gateway with three targets, the first of which can be made to fail."""

    client: ProxyClient
    first: ScriptedUpstream
    door: FaultProxy

    async def outage(self, fault: Reply | None, requests: int) -> Seen:
        """Traffic, in the middle third of which the first target is down."""
        seen = Seen()
        third = requests // 3
        await self._send(range(third), seen)
        # On a busy machine a pause may have been taken for a fault: the outage has to be found out anew.
        await self._take_for_well()
        await self._break(fault)
        await self._send(range(third, 2 * third), seen, is_down=True)
        await self._mend()
        await self._send(range(2 * third, requests), seen)
        return seen

    async def _send(self, numbers: Iterable[int], seen: Seen, *, is_down: bool = False) -> None:
        waiting = iter(numbers)

        async def ask() -> None:
            for number in waiting:
                # In turns one before the other and after it, streamed or not.
                names = [_ALIAS, _NEXT] if number % 4 < 2 else [_NEXT, _ALIAS]
                answered = {name: await self._one(number, name, seen) for name in (names if is_down else [_ALIAS])}
                response, seconds = answered[_ALIAS]
                is_direct = response.headers.get("x-llmproxy-attempts") == "1"
                seen.detours += not is_direct
                if is_down and is_direct:
                    seen.open_seconds.append(seconds)
                    seen.healthy_seconds.append(answered[_NEXT][1])

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(ask())

    async def _one(self, number: int, model: str, seen: Seen) -> tuple[ProxyResponse, float]:
        """One request, and how many seconds it took."""
        is_stream = number % 2 == 1
        began = perf_counter()
        response = await self.client.chat(f"Request {number}", model=model, stream=is_stream)
        seconds = perf_counter() - began
        if response.status != 200 or response.text != "".join(TEXT) or (is_stream and not response.is_done):
            seen.failed.append(f"{number}: {response.status} {response.body[:200]!r}")
        return response, seconds

    async def _break(self, fault: Reply | None) -> None:
        if fault is None:
            self.door.refuse()
            self.door.cut()
        else:
            self.first.default = fault

    async def _mend(self) -> None:
        self.first.default = stream(*TEXT)
        await self.door.accept()
        await self._take_for_well()

    async def _take_for_well(self) -> None:
        await self.client.request("POST", "/admin/v1/targets/reset", {}, key=self.client.admin_key)


@asynccontextmanager
async def stage(proxy: StartProxy) -> AsyncIterator[Stage]:
    """Everything, on loopback."""
    async with (
        ScriptedUpstream(default=stream(*TEXT)) as first,
        ScriptedUpstream(default=stream(*TEXT)) as second,
        ScriptedUpstream(default=stream(*TEXT)) as third,
        FaultProxy("127.0.0.1", first.port) as first_door,
        FaultProxy("127.0.0.1", second.port) as second_door,
        FaultProxy("127.0.0.1", third.port) as third_door,
        proxy(Fallback, SECTION, config=_targets([first_door, second_door, third_door])) as client,
    ):
        yield Stage(client, first, first_door)


def _targets(doors: Sequence[FaultProxy]) -> Document:
    """One alias with as many targets; each stands behind a door, so that all are equally far away."""
    names = [f"target{number}" for number in range(1, len(doors) + 1)]
    addresses = {name: f"http://{door.host}:{door.port}/v1" for name, door in zip(names, doors, strict=True)}
    providers = {
        name: {"kind": "openai", "base_url": address, "api_key": "sk-any", "models": ["m"]}
        for name, address in addresses.items()
    }
    first, *others = [f"{name}/m" for name in names]
    return {"providers": providers, "models": {"test": {"targets": [first], "fallbacks": others}}}


async def _measure(server_url: str, requests: int) -> None:
    databases = TestDatabases(server_url, [core_component()])
    print(f"{requests} requests each, half of them streamed, {CLIENTS} at a time\n")
    print("| The first of three targets | failed | with detours | healthy path, ms | breaker open, ms | added |")
    print("|---|---|---|---|---|---|", flush=True)
    try:
        async with stage(StartProxy(databases)) as scene:
            await scene.outage(FAULTS["503"], 90)
            for name, fault in FAULTS.items():
                print(_row(name, await scene.outage(fault, requests)), flush=True)
    finally:
        await databases.close()


def _row(name: str, seen: Seen) -> str:
    healthy, opened = median(seen.healthy_seconds) * 1000, median(seen.open_seconds) * 1000
    return f"| {name} | {len(seen.failed)} | {seen.detours} | {healthy:.2f} | {opened:.2f} | {seen.added:+.1%} |"


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description="Fail a target, in every way.")
    parser.add_argument("--requests", type=int, default=2000, help="for each way")
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory(prefix="llmproxy-outage-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        server = EmbeddedPostgres(Path(name))
        try:
            asyncio.run(_measure(server.start(), requests))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
