"""`python -m benchmarks.failover`: what an answer costs that the first of two targets fails to give.

The gateways differ in that target alone: it is well, answers every request with 500, refuses connections, or has been
left alone for failing. The subjects take turns within each round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import uvloop

from benchmarks.load import WholeAnswers
from benchmarks.processes import pin_apart, running
from benchmarks.quotas import gateway
from benchmarks.report import database_microseconds, rate, wait, worker_microseconds
from benchmarks.rounds import Beside, Scale, print_table, rounds
from benchmarks.subjects import Subject
from benchmarks.traffic import Order

WELL: Final = "first target well"
_ALIAS: Final = "chat"
_PLUGINS: Final = """\
models:
  chat: {{targets: [first/model], fallbacks: [bench/model]}}
plugins:
  fallback: {{health: {{{health}}}}}
"""
# So that each request finds out anew; and so that none does once three have.
_NEVER_LEFT_ALONE: Final = "consecutive_failures: 1000000000, min_requests: 1000000000"
_LEFT_ALONE: Final = "consecutive_failures: 3, cool_down_seconds: 86400, max_cool_down_seconds: 86400"
_COLUMNS: Final = (
    Beside("answers/s", rate, (WELL,)),
    Beside("CPU µs", worker_microseconds, (WELL,)),
    Beside("database µs", database_microseconds, (WELL,)),
    Beside("p50 ms", wait(50), (WELL,), decimals=2),
    Beside("p99 ms", wait(99), (WELL,), decimals=2),
)
FULL: Final = Scale(rounds=7, seconds=2)
QUICK: Final = Scale(rounds=2, seconds=1)


@dataclass(frozen=True, slots=True)
class Case:
    """What becomes of the first target.

    Attributes:
        url: Where it is.
        health: The plugin's rules for leaving it alone.
        attempts: How many every answer has to take.
    """

    url: str
    health: str
    attempts: int

    def load(self, clients: int, seconds: float) -> WholeAnswers:
        """Requests for the alias, whose answers have to say that they took so many attempts."""
        field = f"\r\nx-llmproxy-attempts: {self.attempts}\r\n".encode()
        return WholeAnswers(clients, seconds, partial(Order, model=_ALIAS), field)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description="Measure failed-over answers.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    numbers = itertools.count(1)
    with ExitStack() as stack:
        _, upstream_port = stack.enter_context(running("benchmarks.upstream"))
        cases = _cases(upstream_port, stack.enter_context(_closed_port()))
        subjects = {stack.enter_context(_serving(name, each, upstream_port)): each for name, each in cases.items()}
        pin_apart(subjects)
        for subject in subjects:
            # Unlike those that count, these may take any number of attempts.
            await WholeAnswers(8, 0.5, partial(Order, model=_ALIAS)).run(subject.port, numbers)
        for clients in (64, 8, 1):
            loads = {subject: case.load(clients, scale.seconds) for subject, case in subjects.items()}
            samples = await rounds(loads, scale.rounds, numbers)
            title = f"Whole answers, {clients} client{'s' * (clients > 1)}"
            print_table(title, samples, _COLUMNS)


def _cases(upstream_port: int, closed_port: int) -> dict[str, Case]:
    well, failing, closed = (
        f"http://127.0.0.1:{place}/v1" for place in (upstream_port, f"{upstream_port}/failing", closed_port)
    )
    return {
        WELL: Case(well, _NEVER_LEFT_ALONE, 1),
        "first answers 500": Case(failing, _NEVER_LEFT_ALONE, 2),
        "first refuses connections": Case(closed, _NEVER_LEFT_ALONE, 2),
        "first left alone": Case(failing, _LEFT_ALONE, 1),
    }


@contextmanager
def _serving(name: str, case: Case, upstream_port: int) -> Iterator[Subject]:
    first = f'providers:\n  first: {{kind: openai, base_url: "{case.url}", api_key: of-the-vendor}}\n'
    edits = {"providers:\n": first, '"bench/*"': '"*"'}
    with gateway(name, upstream_port, _PLUGINS.format(health=case.health), edits) as subject:
        yield subject


@contextmanager
def _closed_port() -> Iterator[int]:
    """A port of loopback that nobody listens on, and nobody else gets."""
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        yield int(owner.getsockname()[1])


if __name__ == "__main__":
    main()
