"""`python -m benchmarks.caching`: what a hit costs, against a miss and no cache at all, in interleaved rounds."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import orjson
import uvloop

from benchmarks.gateway import Gateway, installation
from benchmarks.load import Seen, WholeAnswers
from benchmarks.processes import pin_apart, running
from benchmarks.rounds import Scale
from tests.caching import redis_server

DIRECT: Final = "no proxy"
PLAIN: Final = "no cache"
MISSES: Final = "misses"
MEMORY: Final = "hits, memory"
REDIS: Final = "hits, Redis"
# The requests of the load name no temperature.
_ALWAYS: Final[Mapping[str, object]] = {"when": "always"}
# Looked up, not found and kept each time: an answer that is too old at once.
_NEVER_FRESH: Final = {**_ALWAYS, "ttl_seconds": 1e-6, "coalesce": False}


FULL: Final = Scale(rounds=7, seconds=3)
QUICK: Final = Scale(rounds=3, seconds=1)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caching", description="Measure what a hit costs.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        redis = {**_ALWAYS, "backend": "redis", "url": stack.enter_context(redis_server()).url}
        ports = {DIRECT: upstream_port}
        sections = {PLAIN: None, MISSES: _NEVER_FRESH, MEMORY: _ALWAYS, REDIS: redis}
        gateways = {name: stack.enter_context(_gateway(upstream_port, section)) for name, section in sections.items()}
        pin_apart(gateways.values())
        ports |= {name: gateway.port for name, gateway in gateways.items()}
        for clients in (1, 32):
            table = await _rounds(scale, ports, clients)
            print(f"### Clients: {clients}\n\n{table}\n", flush=True)


async def _rounds(scale: Scale, ports: Mapping[str, int], clients: int) -> str:
    # One number, so that all requests are the same one and have the same right answer.
    numbers = itertools.repeat(1)
    for port in ports.values():
        await WholeAnswers(clients, 0.3).run(port, numbers)
    seen: dict[str, list[Seen]] = {name: [] for name in ports}
    for _, (name, port) in itertools.product(range(scale.rounds), ports.items()):
        seen[name].append(await WholeAnswers(clients, scale.seconds).run(port, numbers))
    lines = ["| | p50 ms | p99 ms | p50 added, ms | answers/s | of misses (range) |", "|---|---:|---:|---:|---:|---:|"]
    return "\n".join([*lines, *(_line(name, seen) for name in ports)])


def _line(name: str, seen: Mapping[str, Sequence[Seen]]) -> str:
    p50, p99 = (median(_wait_ms(each, percent) for each in seen[name]) for percent in (50, 99))
    added = median(_wait_ms(a, 50) - _wait_ms(b, 50) for a, b in zip(seen[name], seen[DIRECT], strict=True))
    ratios = [_rate(a) / _rate(b) for a, b in zip(seen[name], seen[MISSES], strict=True)]
    rate = median(map(_rate, seen[name]))
    ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {name} | {p50:.2f} | {p99:.2f} | {added:.2f} | {rate:,.0f} | {ratio} |"


def _wait_ms(seen: Seen, percent: int) -> float:
    return quantiles(seen.waits, n=100, method="inclusive")[percent - 1] * 1000


def _rate(seen: Seen) -> float:
    return seen.units / seen.seconds


@contextmanager
def _gateway(upstream_port: int, section: Mapping[str, object] | None) -> Iterator[Gateway]:
    """A gateway of its own, with this section for the cache."""
    with (
        tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-") as name,
        installation(Path(name), upstream_port) as installed,
    ):
        config = Path(name) / "config.yaml"
        plugins = {} if section is None else {"caching": section}
        # JSON is YAML.
        config.write_text(config.read_text().replace("plugins: []", f"plugins: {orjson.dumps(plugins).decode()}"))
        with installed.serving() as gateway:
            yield gateway


if __name__ == "__main__":
    main()
