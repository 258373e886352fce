"""`python -m benchmarks.metrics`: what counting a request takes, and for how long a scrape of many series holds up.

No sockets and no gateway: CPU time alone, in medians. Beside it stands its ratio to a bare decoding and encoding of a
small request's JSON, and what the same numbers take with prometheus-client, whose files are shared in the same way,
where that is installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Final

import orjson

from llmproxy.api import Answer, Attempt, Config, Cost, Exchange, Outcome, RouteRequest, Services, Usage
from llmproxy.testing import WallClock, make_exchange, make_services
from llmproxy_plugins.metrics import Metrics
from llmproxy_plugins.metrics.config import MetricsConfig
from llmproxy_plugins.metrics.families import DURATION, TOKENS
from llmproxy_plugins.metrics.instruments import Instrument
from llmproxy_plugins.metrics.sheets import open_sheet

_REQUESTS: Final = 2000
_ROUNDS: Final = 15
_SERIES: Final = 500


def microseconds(call: Callable[[], object]) -> float:
    """What one of many calls takes, in the median of several rounds."""
    times = []
    for _ in range(_ROUNDS):
        started = thread_time()
        for _ in range(_REQUESTS):
            call()
        times.append(thread_time() - started)
    return median(times) / _REQUESTS * 1e6


def answered() -> tuple[Exchange, Attempt]:
    """A streamed request that went well, with its one attempt."""
    exchange = make_exchange(model="test", stream=True)
    attempt = Attempt(1, exchange.candidates[0], exchange.request, exchange.admitted_at, 0.0, is_sent=True)
    attempt.usage, attempt.cost = Usage(120, text_output_tokens=80), Cost(Decimal("0.0021"), "measured")
    exchange.attempts.append(attempt)
    exchange.usage, exchange.outcome = attempt.usage, Outcome.SUCCEEDED
    exchange.first_chunk_seconds, exchange.duration_seconds = 0.31, 1.84
    exchange.answer = Answer(stream=_Nothing(), cache="miss")
    return exchange, attempt


class _Nothing:
    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def count(plugin: Metrics) -> None:
    """Print what counting one request takes."""
    exchange, attempt = answered()

    def carry() -> None:
        plugin.pre_request(exchange)
        plugin.post_attempt(exchange, attempt)
        plugin.on_complete(exchange)

    counted = microseconds(carry)
    body = exchange.request.encode()
    bare = microseconds(lambda: orjson.dumps(orjson.loads(body)))
    print(f"{'a streamed request counted':34}{counted:8.2f} us, {counted / bare:.1f} of a bare decoding and encoding")


def count_with_library(directory: Path) -> None:
    """Print what the same numbers take with prometheus-client in its multiprocess mode."""
    if importlib.util.find_spec("prometheus_client") is None:
        return
    # It is read when the library is imported.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    from prometheus_client import CollectorRegistry, Counter, Histogram  # noqa: PLC0415 - see above

    registry, asked = CollectorRegistry(), ("a", "b", "c")
    histograms = [Histogram(f"histogram_{number}", "-", asked, registry=registry) for number in range(5)]
    counters = [Counter(f"counter_{number}", "-", asked, registry=registry) for number in range(6)]

    def carry() -> None:
        for histogram in histograms:
            histogram.labels("chat", "upstream", "test").observe(0.5)
        for counter in counters:
            counter.labels("chat", "upstream", "test").inc()

    print(f"{'as many with prometheus-client':34}{microseconds(carry):8.2f} us")


async def scrape(plugin: Metrics, services: Services) -> None:
    """Print what a scrape of many series takes, and for how long others wait at most."""
    sheets = [open_sheet(services.state_directory / "metrics", services.vitals.group, services.log) for _ in range(3)]
    for sheet in sheets:
        for family in (DURATION, TOKENS):
            instrument = Instrument(family, sheet)
            for number in range(_SERIES):
                instrument.observe(("chat", "upstream", f"model-{number}", "x"), 0.5)
    pauses: list[float] = []
    watching = asyncio.get_running_loop().create_task(_watch(pauses))
    started = thread_time()
    answer = await plugin.scrape(RouteRequest("GET", "/metrics", {}, {}, {}, b""))
    took_seconds = thread_time() - started
    watching.cancel()
    size = f"{2 * _SERIES} histograms of {len(sheets)} workers, {len(answer.body) / 1e6:.1f} MB"
    print(f"a scrape of {size}: {took_seconds * 1e3:.0f} ms, of which at most {max(pauses) * 1e3:.1f} at a time")
    for sheet in sheets:
        sheet.close()


async def _watch(pauses: list[float]) -> None:
    while True:
        before = thread_time()
        await asyncio.sleep(0)
        pauses.append(thread_time() - before)


async def main() -> None:
    """Measure it all."""
    with tempfile.TemporaryDirectory() as name:
        services = replace(make_services(clock=WallClock()), state_directory=Path(name))
        plugin = Metrics(MetricsConfig(workspaces=True), services)
        providers, models = {"upstream": {"models": ["test-model"]}}, {"test": "upstream/test-model"}
        plugin.register_providers(Config.model_validate({"providers": providers, "models": models}))
        await plugin.startup(services)
        count(plugin)
        count_with_library(Path(name))
        await scrape(plugin, services)
        plugin.shutdown(services)


if __name__ == "__main__":
    asyncio.run(main())
