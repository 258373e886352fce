"""What tests of the demo provider share: a clock of their own, a request, and the whole of a response."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from llmproxy.config import ProviderConfig, Timeouts
from llmproxy.exchange import Target
from llmproxy.providers.demo import Demo
from llmproxy.request import Operation
from llmproxy.services import UpstreamResponse
from tests.providers import request, services

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@dataclass
class Clock:
    """Time that only passes when somebody sleeps."""

    slept: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


def demo(clock: Clock | None = None) -> Demo:
    """The provider, with a clock of ours."""
    return Demo("demo", ProviderConfig(), services(clock or Clock()))


async def send(
    model: str, operation: Operation = Operation.CHAT, clock: Clock | None = None, **members: Any
) -> UpstreamResponse:
    """The provider's response."""
    default: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello to the world."}]}
    if operation is not Operation.CHAT:
        default = {"prompt": "Once upon"} if operation is Operation.TEXT_COMPLETION else {"input": "Once upon"}
    provider = demo(clock)
    asked = request({"model": model, **default, **members}, operation)
    prepared = provider.prepare(asked, Target("demo", model), {})
    assert provider.transport is not None
    return await provider.transport.send(prepared, Timeouts())


async def read_all(response: UpstreamResponse) -> list[bytes]:
    """Every piece of a body."""
    pieces = []
    while piece := await response.read():
        pieces.append(piece)
    return pieces
