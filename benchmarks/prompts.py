"""`python -m benchmarks.prompts`: what long prompts cost, beside a bare relay and nginx.

Whole answers to conversations of 2 kB, 100 kB and 1 MB; the answer is as short as ever. The subjects take turns within
each round; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from typing import Final

import uvloop

from benchmarks.everything import NGINX, OFF, proxies
from benchmarks.load import WholeAnswers
from benchmarks.nginx import say_if_missing
from benchmarks.report import RELAY, rate, wait, worker_microseconds
from benchmarks.rounds import Beside, Scale, print_table, rounds
from benchmarks.traffic import Order

SIZES: Final = {"2 kB": 2_000, "100 kB": 100_000, "1 MB": 1_000_000}
# What people paste: line breaks, quotation marks and letters beyond ASCII.
_SENTENCE: Final = 'She wrote: \\"Überweisung nach Łódź, bitte bis morgen\\", and left.\\n'.encode()
_TURNS: Final = (
    b'{"role":"user","content":"%b"}' % (_SENTENCE * 12),
    b'{"role":"assistant","content":"%b"}' % (_SENTENCE * 11),
)
_COLUMNS: Final = (
    Beside("answers/s", rate, (NGINX, RELAY, OFF)),
    Beside("CPU µs", worker_microseconds, (NGINX, RELAY, OFF)),
    Beside("core busy, %", lambda each: each.busy * 100),
    Beside("p50 ms", wait(50), (NGINX, RELAY), decimals=2),
)
FULL: Final = Scale(rounds=7, seconds=2)
QUICK: Final = Scale(rounds=2, seconds=1)


def main() -> None:
    """Measure, and print as the figures come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompts", description="Measure long prompts.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    say_if_missing()
    uvloop.run(_measure(QUICK if parser.parse_args().quick else FULL))


async def _measure(scale: Scale) -> None:
    numbers = itertools.count(1)
    async with proxies(numbers) as subjects:
        for (size, size_bytes), clients in itertools.product(SIZES.items(), (8, 1)):
            load = WholeAnswers(clients, scale.seconds, partial(Order, messages=conversation(size_bytes)))
            samples = await rounds(dict.fromkeys(subjects, load), scale.rounds, numbers)
            title = f"Prompts of {size}, {clients} client{'s' * (clients > 1)}"
            print_table(title, samples, _COLUMNS)


def conversation(size_bytes: int) -> bytes:
    """Messages, as JSON without its brackets, of about that many bytes and never more."""
    messages: list[bytes] = []
    for message in itertools.cycle(_TURNS):
        size_bytes -= len(message) + 1
        if size_bytes < 0:
            break
        messages.append(message)
    return b",".join(messages)


if __name__ == "__main__":
    main()
