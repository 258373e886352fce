"""What is measured: no proxy, a bare relay, and the gateway, each behind a port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Final

import psutil

from benchmarks.gateway import Gateway
from benchmarks.load import Load, Seen
from benchmarks.processes import cpu_seconds

# Rows travel to Postgres in batches, behind the answers.
_RECORDED_SECONDS: Final = 60
_POLL_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Subject:
    """Something on a port that answers as the upstream does.

    Attributes:
        worker: The process that answers; None where the load talks to the upstream itself.
        gateway: Set when it is one, whose records are then waited for and counted.
        workspace: The only one whose records count; None when all do.
    """

    name: str
    port: int
    worker: psutil.Process | None = None
    gateway: Gateway | None = None
    workspace: str | None = None

    @property
    def database(self) -> psutil.Process | None:
        """Its database, if it has one."""
        return self.gateway.database if self.gateway else None

    async def settle(self, requests: int, since: datetime) -> None:
        """Wait until that many requests are in the ledger. Raises RuntimeError when they never are, or are more."""
        if self.gateway is None:
            return
        until = perf_counter() + _RECORDED_SECONDS
        while (recorded := await self.gateway.recorded(since, self.workspace)) < requests and perf_counter() < until:  # noqa: ASYNC110 - it is another process that is waited for
            await asyncio.sleep(_POLL_SECONDS)
        if recorded != requests:
            raise RuntimeError(f"{requests} requests were answered and {recorded} are in the ledger.")


@dataclass(frozen=True, slots=True)
class Sample:
    """One load on one subject. CPU time counts until the last row is in Postgres.

    Attributes:
        busy: The worker's share of its core while the load lasted.
    """

    seen: Seen
    worker_seconds: float
    database_seconds: float
    busy: float


async def sample(subject: Subject, load: Load, numbers: Iterator[int]) -> Sample:
    """Measure one load on one subject."""
    since = datetime.now(UTC)
    worker, database = cpu_seconds(subject.worker), cpu_seconds(subject.database)
    seen = await load.run(subject.port, numbers)
    busy = (cpu_seconds(subject.worker) - worker) / seen.seconds
    await subject.settle(seen.requests, since)
    return Sample(seen, cpu_seconds(subject.worker) - worker, cpu_seconds(subject.database) - database, busy)
