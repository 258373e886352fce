"""How slow this machine is, beside the one for which limits in microseconds were set.

Pieces of work whose cost there is on record are measured again here. They were chosen for what they are, before their
outcome was seen: the record names each of them wholly, none depends on an input it leaves open, and none needs a
socket. Half of them are little but interpreted Python, as translations are. What the record gives for a "small" body,
as a range, or with an event loop and a kernel in it, is not among them.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from time import thread_time
from typing import Final

import pluggy

from benchmarks.report import markdown

Work = Callable[[], object]

# Long enough that the clock's own steps do not count, short enough that a round is soon over.
_SAMPLE_SECONDS: Final = 0.02
# Asking for a thread's CPU time is a system call of a microsecond or two.
_CALLS_PER_LOOK: Final = 20
_REPEATS: Final = 50
_KEY: Final = b"k" * 48
_spec: Final = pluggy.HookspecMarker("scale")
_impl: Final = pluggy.HookimplMarker("scale")


def microseconds(work: Work) -> float:
    """CPU time of one call."""
    calls, started = 0, thread_time()
    while (spent := thread_time() - started) < _SAMPLE_SECONDS:
        for _ in range(_CALLS_PER_LOOK):
            work()
        calls += _CALLS_PER_LOOK
    return spent / calls * 1e6


@dataclass(frozen=True, slots=True)
class Probe:
    """One piece of work.

    Attributes:
        work: Does it fifty times, so that calling it does not count.
        there_us: What one of them takes on the other machine.
        samples: What one of them took here, in microseconds, in each round.
    """

    name: str
    work: Work
    there_us: float
    samples: list[float] = field(default_factory=list)

    @property
    def here_us(self) -> float:
        """The median over the rounds."""
        return median(self.samples)

    @property
    def times(self) -> float:
        """How many times what it takes there it takes here."""
        return self.here_us / self.there_us


class Scale:
    """Probes, to be measured in the same rounds as what is to be put on the scale."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = probes

    def measure(self) -> None:
        """One round."""
        for probe in self._probes:
            probe.samples.append(microseconds(probe.work) / _REPEATS)

    @property
    def factor(self) -> float:
        """The median of what the probes say."""
        return median(probe.times for probe in self._probes)

    def __str__(self) -> str:
        """A table of the probes, with the range of what they say."""
        rows = [
            [each.name, f"{each.there_us:.1f}", f"{each.here_us:.2f}", f"{each.times:.2f}"] for each in self._probes
        ]
        times = [probe.times for probe in self._probes]
        rows.append(["median, and the range", "", "", f"{self.factor:.2f} ({min(times):.2f} to {max(times):.2f})"])
        return markdown(["Probe", "there, µs", "here, µs", "times"], rows)


# The probes


def known_probes() -> Sequence[Probe]:
    """Those whose cost on the other machine is on record."""
    hooks = _hooks()
    return (
        Probe("a pluggy hook, implemented by none", lambda: _call_none(hooks), 0.9),
        Probe("a pluggy hook, implemented by one, awaited", lambda: _await_one(hooks), 1.5),
        Probe("a pluggy hook, implemented by three", lambda: _call_three(hooks), 1.8),
        Probe("uuid.uuid4()", _make_uuids, 2.4),
        Probe("os.urandom(8)", _draw, 0.5),
        Probe("SHA-256 of a key", _digest, 0.4),
    )


class _Hooks:
    @_spec
    def none(self, exchange: object) -> None:
        """Nobody implements it."""

    @_spec
    async def one(self, exchange: object) -> None:
        """One implements it."""

    @_spec
    def three(self, exchange: object, chunk: object) -> None:
        """Three implement it."""


class _One:
    @_impl
    async def one(self, exchange: object) -> None:
        return None


class _OfThree:
    @_impl
    def three(self, exchange: object, chunk: object) -> None:
        return None


def _hooks() -> pluggy.HookRelay:
    manager = pluggy.PluginManager("scale")
    manager.add_hookspecs(_Hooks)
    for implementation in (_One(), *(_OfThree() for _ in range(3))):
        manager.register(implementation)
    return manager.hook


def _call_none(hooks: pluggy.HookRelay) -> None:
    for _ in range(_REPEATS):
        hooks.none(exchange=None)


def _call_three(hooks: pluggy.HookRelay) -> None:
    for _ in range(_REPEATS):
        hooks.three(exchange=None, chunk=None)


def _await_one(hooks: pluggy.HookRelay) -> None:
    async def awaited() -> None:
        for _ in range(_REPEATS):
            for result in hooks.one(exchange=None):
                await result

    # Nothing in it waits, so that the first step is the last.
    with suppress(StopIteration):
        awaited().send(None)


def _make_uuids() -> None:
    for _ in range(_REPEATS):
        uuid.uuid4()


def _draw() -> None:
    for _ in range(_REPEATS):
        os.urandom(8)


def _digest() -> None:
    for _ in range(_REPEATS):
        hashlib.sha256(_KEY).digest()
