"""`python -m benchmarks.quotas`: what budgets and limits on four scopes cost, against the same gateway without."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

import uvloop

from benchmarks.gateway import installation
from benchmarks.load import Load, Streams, WholeAnswers
from benchmarks.processes import running
from benchmarks.report import database_microseconds, rate, wait, worker_microseconds
from benchmarks.rounds import Beside, Scale, over_starts, prepare, print_table
from benchmarks.subjects import Subject

OFF: Final = "both off"
_SCOPES: Final = ("workspace", "key", "model", "[workspace, feature]")
_BUDGET: Final = "usd: 100000, window: month"
_LIMIT: Final = "requests: 1000000000, window: minute"
_NO_PLUGINS: Final = "plugins: []"
NO_EDITS: Final[Mapping[str, str]] = MappingProxyType({})
_COLUMNS: Final = (
    Beside("a second", rate, (OFF,)),
    Beside("CPU µs", worker_microseconds, (OFF,)),
    Beside("database µs", database_microseconds),
    Beside("p50 ms", wait(50), decimals=2),
    Beside("p99 ms", wait(99), decimals=2),
)
# Many short rounds after each start: what else the machine does comes and goes within seconds.
FULL: Final = Scale(rounds=12, seconds=0.5)
QUICK: Final = Scale(rounds=4, seconds=0.5)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quotas", description="Measure budgets and limits.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    numbers = itertools.count(1)
    loads: Mapping[str, Load] = {
        "Whole answers, 64 clients": WholeAnswers(64, scale.seconds),
        "Whole answers, 1 client": WholeAnswers(1, scale.seconds),
        "32 streams of 200 events": Streams(32, 200),
    }
    samples = await over_starts(lambda: _gateways(numbers), loads, scale.rounds, numbers)
    for title in loads:
        print_table(title, samples[title], _COLUMNS)


@asynccontextmanager
async def _gateways(numbers: Iterator[int]) -> AsyncIterator[Sequence[Subject]]:
    """One without plugins, one with budgets, and one with limits beside them."""
    plugins = {
        OFF: _NO_PLUGINS,
        "budgets on four scopes": f"plugins:\n{budgets()}",
        "budgets and limits on four scopes": f"plugins:\n{budgets()}{limits()}",
    }
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        subjects = [stack.enter_context(gateway(name, upstream_port, plugins[name])) for name in plugins]
        await prepare(subjects, numbers)
        yield subjects


def budgets() -> str:
    """Budgets on four scopes that let everything pass, as a part of a configuration's plugins."""
    return _plugin("budgets", _BUDGET)


def limits() -> str:
    """The same of rate limits."""
    return _plugin("rate_limits", _LIMIT)


def _plugin(name: str, limit: str) -> str:
    # As many patterns as scopes.
    pairs = [(scope, '["*", "*"]' if "[" in scope else '"*"') for scope in _SCOPES]
    return f"  {name}:\n    limits:\n" + "".join(
        f"      - {{scope: {scope}, match: {match}, {limit}}}\n" for scope, match in pairs
    )


@contextmanager
def gateway(
    name: str,
    upstream_port: int,
    plugins: str,
    edits: Mapping[str, str] = NO_EDITS,
    program: str = "llmproxy",
) -> Iterator[Subject]:
    """A gateway with these plugins, further edits of its configuration and a database of its own.

    Args:
        program: The module that is run.
    """
    with tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-") as place:
        directory = Path(place)
        with installation(directory, upstream_port) as installed:
            installed.edit({_NO_PLUGINS: plugins, **edits})
            with installed.serving(program) as served:
                yield Subject(name, served.port, served.worker, served)


if __name__ == "__main__":
    main()
