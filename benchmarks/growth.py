"""`python -m benchmarks.growth`: what a thousand times as many keys, workspaces, targets and rows change.

Two gateways, a small one and one a thousand times its size, take turns within each round; ratios are taken within a
round. What the audit keeps is `--rows`; the ledger outlives it, so `--entries` says how much more it has. A hundred
million of those take an hour to make and tens of gigabytes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import aiohttp
import uvloop

from benchmarks.gateway import ADMIN_KEY, Gateway, Installation, installation
from benchmarks.growth_rows import DAYS, Size, fill, window_sum
from benchmarks.load import WholeAnswers
from benchmarks.processes import pin_apart, running
from benchmarks.report import markdown
from benchmarks.subjects import Subject, sample
from benchmarks.traffic import Order

SCALE: Final = 1_000
SMALL: Final = "small"
LARGE: Final = "large"
_CALLS: Final = 5
_TITLES: Final[Mapping[str, str]] = {
    "/admin/v1/keys": "a page of keys",
    "/admin/v1/keys?after=key_50": "the page after it",
    "/admin/v1/keys?workspace=w0": "keys of a workspace",
    "/admin/v1/workspaces?limit=50": "a page of workspaces",
    "/admin/v1/requests": "a page of requests",
    "/admin/v1/requests?workspace=w0": "requests of a workspace",
    "/admin/v1/requests?limit=1000": "the requests that `tail` reads",
    "/admin/v1/spend?since=1d": "`spend` of a day",
    "/admin/v1/spend?since=30d": "`spend` of a month",
    "/admin/v1/spend?since=30d&workspace=w0": "`spend` of a month of a workspace",
    "/admin/v1/spend?since=30d&by=user": "`spend` of a month by user",
    "/admin/v1/spend?since=30d&by=key": "`spend` of a month by key",
    "/v1/models": "the models of a key",
}
# Of whom a budget of a month is opened.
_SHARES: Final[Mapping[str, Mapping[str, str]]] = {
    "the gateway": {},
    "a feature": {"feature": "feature7"},
    "a workspace": {"workspace": "w0"},
    "a key": {"key_id": "key_0"},
}

# What was measured of each subject: a value for each round, by what it is.
Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Grown:
    """An installation of one size."""

    name: str
    size: Size
    installed: Installation


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="Measure what growth costs.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="requests of the large gateway")
    parser.add_argument("--entries", type=int, default=0, help="entries of its ledger beside those requests'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load in each round")
    arguments = parser.parse_args()
    large = Size(100_000, workspaces=1_000, targets=2_000, rows=arguments.rows, entries=arguments.entries)
    uvloop.run(_measure(large, arguments.rounds, arguments.seconds))


async def _measure(large: Size, rounds: int, seconds: float) -> None:
    sizes = (large.keys, large.workspaces, large.targets, large.rows, large.entries)
    small = Size(*(value // SCALE for value in sizes))
    print(f"{large} beside {small}; {DAYS} days of rows, {rounds} rounds\n", flush=True)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        grown = [await _grow(stack, name, size, upstream_port) for name, size in ((SMALL, small), (LARGE, large))]
        await _starts(grown, rounds)
        subjects = {each.name: stack.enter_context(each.installed.serving()) for each in grown}
        pin_apart(subjects.values())
        await _loads(grown, subjects, rounds, seconds)
        await _questions(grown, subjects, rounds)


async def _grow(stack: ExitStack, name: str, size: Size, upstream_port: int) -> Grown:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmproxy-growth-")))
    installed = stack.enter_context(installation(directory, upstream_port))
    (directory / "config.yaml").write_text(size.config(upstream_port))
    with installed.serving():
        pass  # The first start makes the database and its schema.
    began = perf_counter()
    await fill(installed, size)
    print(f"{name}: filled in {perf_counter() - began:.0f} s\n", flush=True)
    return Grown(name, size, installed)


async def _starts(grown: Sequence[Grown], rounds: int) -> None:
    figures: Figures = {each: {SMALL: [], LARGE: []} for each in ("first answer, s", "CPU until then, s", "memory, MB")}
    for _, each in itertools.product(range(rounds), grown):
        began = perf_counter()
        with each.installed.serving() as gateway:
            await WholeAnswers(1, 0, each.size.usual_order).run(gateway.port, itertools.count())
            took = perf_counter() - began, _spent(gateway), gateway.worker.memory_info().rss / 1e6
            for title, value in zip(figures, took, strict=True):
                figures[title][each.name].append(value)
    _print("Starting", figures)


def _spent(gateway: Gateway) -> float:
    supervisor = gateway.worker.parent()
    times = [process.cpu_times() for process in (gateway.worker, supervisor) if process]
    return sum(each.user + each.system for each in times)


async def _loads(grown: Sequence[Grown], gateways: Mapping[str, Gateway], rounds: int, seconds: float) -> None:
    """The same few keys again and again, and every time another."""
    for title, which in (("a hundred keys", Size.usual_order), ("every time another key", Size.order)):
        figures: Figures = {each: {SMALL: [], LARGE: []} for each in ("worker, CPU µs", "database, CPU µs", "p50, ms")}
        numbers = itertools.count()
        for each in grown:
            await _warm_up(gateways[each.name], partial(which, each.size), each.size.workspaces, numbers)
        for _, each in itertools.product(range(rounds), grown):
            found = await _load(gateways[each.name], partial(which, each.size), seconds, numbers)
            for name, value in zip(figures, found, strict=True):
                figures[name][each.name].append(value)
        _print(f"A request, {title}", figures)


async def _warm_up(gateway: Gateway, order: Callable[[int], Order], requests: int, numbers: Iterator[int]) -> None:
    """Ask until every workspace has had its budget opened, which happens once a month."""
    asked = 0
    while asked < requests:
        asked += (await WholeAnswers(1, 1, order).run(gateway.port, numbers)).requests


async def _load(
    gateway: Gateway, order: Callable[[int], Order], seconds: float, numbers: Iterator[int]
) -> tuple[float, float, float]:
    subject = Subject(LARGE, gateway.port, gateway.worker, gateway)
    found = await sample(subject, WholeAnswers(8, seconds, order), numbers)
    per_request = 1e6 / found.seen.units
    waited = median(found.seen.waits) * 1e3
    return found.worker_seconds * per_request, found.database_seconds * per_request, waited


async def _questions(grown: Sequence[Grown], gateways: Mapping[str, Gateway], rounds: int) -> None:
    figures: Figures = {f"{title}, ms": {SMALL: [], LARGE: []} for title in _TITLES.values()}
    figures |= {_opening(who): {SMALL: [], LARGE: []} for who in _SHARES}
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {ADMIN_KEY}"}) as session:
        for _, each, path in itertools.product(range(rounds), grown, _TITLES):
            url = f"http://127.0.0.1:{gateways[each.name].port}{path}"
            figures[f"{_TITLES[path]}, ms"][each.name].append(await _asked(session, url))
    for _, each, who in itertools.product(range(rounds), grown, _SHARES):
        figures[_opening(who)][each.name].append(await window_sum(each.installed, _SHARES[who]) * 1e3)
    _print("Questions", figures)


def _opening(who: str) -> str:
    return f"opening a budget of a month of {who}, ms"


async def _asked(session: aiohttp.ClientSession, url: str) -> float:
    """The milliseconds that the quickest of a few answers took."""
    headers = {"authorization": "Bearer sk-growth-0"} if "/v1/models" in url else None
    took = []
    for _ in range(_CALLS):
        began = perf_counter()
        async with session.get(url, headers=headers) as answer:
            await answer.read()
            answer.raise_for_status()
        took.append(perf_counter() - began)
    return min(took) * 1e3


def _print(title: str, figures: Figures) -> None:
    rows = [[name, *_cells(found[SMALL], found[LARGE])] for name, found in figures.items()]
    print(f"### {title}\n\n{markdown(['', SMALL, LARGE, 'ratio (range)'], rows)}\n", flush=True)


def _cells(small: Sequence[float], large: Sequence[float]) -> list[str]:
    ratios = [one / other for one, other in zip(large, small, strict=True)]
    shown = [f"{median(values):,.{2 if median(small) < 100 else 0}f}" for values in (small, large)]
    return [*shown, f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
