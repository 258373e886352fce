"""`python -m benchmarks.everything`: the gateway with everything on, beside itself without, a bare relay and nginx.

With `--alone`, each plugin that is installed alone as well. Whole answers only. The subjects take turns within each
round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Final

import uvloop

from benchmarks.load import WholeAnswers
from benchmarks.nginx import PROGRAM, nginx, say_if_missing
from benchmarks.processes import running
from benchmarks.quotas import NO_EDITS, budgets, gateway, limits
from benchmarks.report import RELAY, database_microseconds, rate, wait, worker_microseconds
from benchmarks.rounds import Beside, Scale, over_starts, prepare, print_table
from benchmarks.subjects import Subject
from llmproxy.plugins import installed

NGINX: Final = "nginx"
OFF: Final = "llmproxy, no plugin"
ON: Final = "llmproxy, everything on"
# Each plugin that can do something to requests as they are here, and lets them pass.
_PLUGINS: Final[Mapping[str, str]] = {
    "budgets": budgets(),
    "rate_limits": limits(),
    "routing": "  routing: {}\n",
    "fallback": "  fallback: {}\n",
    "caching": "  caching: {}\n",
    "redaction": "  redaction: {detectors: {email: placeholder, card: mask}}\n",
    "runaway": "  runaway: {requests: null, loop: null}\n",
}
# Caching is off and redaction is not chosen by everybody: what they save or cost depends on what is asked.
_EVERYTHING: Final = ("budgets", "rate_limits", "routing", "fallback")

_COLUMNS: Final = (
    Beside("answers/s", rate, (NGINX, RELAY, OFF)),
    Beside("CPU µs", worker_microseconds, (RELAY, OFF)),
    Beside("database µs", database_microseconds),
    Beside("p50 ms", wait(50), decimals=2),
    Beside("p99 ms", wait(99), decimals=2),
)

# Many short rounds after each start: what else the machine does comes and goes within seconds.
FULL: Final = Scale(rounds=6, seconds=0.7)
QUICK: Final = Scale(rounds=2, seconds=0.5)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.everything", description="Measure plugins together.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--alone", action="store_true", help="each installed plugin alone as well")
    arguments = parser.parse_args()
    say_if_missing()
    uvloop.run(_measure(QUICK if arguments.quick else FULL, alone=arguments.alone))


async def _measure(scale: Scale, *, alone: bool) -> None:
    numbers = itertools.count(1)
    loads = {
        f"Whole answers, {clients} client{'s' * (clients > 1)}": WholeAnswers(clients, scale.seconds)
        for clients in (64, 8, 1)
    }
    samples = await over_starts(lambda: proxies(numbers, alone=alone), loads, scale.rounds, numbers)
    for title in loads:
        print_table(title, samples[title], _COLUMNS)


@asynccontextmanager
async def proxies(
    numbers: Iterator[int], *, alone: bool = False, edits: Mapping[str, str] = NO_EDITS
) -> AsyncIterator[Sequence[Subject]]:
    """Plain proxies and gateways, these with some edits of their configuration, each on its core and warm."""
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        subjects = [*_plain_proxies(stack, upstream_port), *gateways(stack, upstream_port, edits, alone=alone)]
        await prepare(subjects, numbers)
        yield subjects


def _plain_proxies(stack: ExitStack, upstream_port: int) -> Iterator[Subject]:
    """nginx where there is one, and the bare relay."""
    if PROGRAM is not None:
        process, port = stack.enter_context(nginx(upstream_port))
        yield Subject(NGINX, port, process)
    process, port = stack.enter_context(running("benchmarks.relay", f"http://127.0.0.1:{upstream_port}"))
    yield Subject(RELAY, port, process)


def gateways(
    stack: ExitStack, upstream_port: int, edits: Mapping[str, str] = NO_EDITS, *, alone: bool
) -> Iterator[Subject]:
    """A gateway without plugins, one with everything on and, if wanted, one for each plugin."""
    wanted = {OFF: "plugins: []", ON: everything()}
    if alone:
        wanted |= {f"llmproxy, {name}": _enabled([name]) for name in _PLUGINS if name in installed()}
    for name, plugins in wanted.items():
        yield stack.enter_context(gateway(name, upstream_port, plugins, edits))


def everything() -> str:
    """Everything on, as a configuration's plugins."""
    return _enabled(name for name in _EVERYTHING if name in installed())


def _enabled(names: Iterable[str]) -> str:
    return "plugins:\n" + "".join(_PLUGINS[name] for name in names)


if __name__ == "__main__":
    main()
