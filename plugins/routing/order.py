"""Orders of preference, without I/O: drawn by weight, or sorted by what is expected of each target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import log
from random import Random
from typing import Final

from llmproxy.api import Target

# A number above 0 and up to 1 for each target, each as likely as any other.
Draw = Callable[[Target], float]

_DRAWS: Final = 2**64


def by_weight(targets: Sequence[Target], draw: Draw) -> list[Target]:
    """The targets in an order drawn by lot: how likely each is to be first, its weight among the others' says.

    Of those that are left, the same holds for the next place. All weights are above zero.
    """
    # Whoever's turn comes at random moments, at a rate of its weight, is first that often.
    return sorted(targets, key=lambda target: -log(draw(target)) / target.weight)


def draw_at_random(random: Random) -> Draw:
    """A draw of its own for each request."""
    return lambda _target: 1 - random.random()


def draw_for(subject: str) -> Draw:
    """The same draw for a subject at every time and in every process.

    As the draws of targets do not depend on each other (highest random weight hashing), a subject moves only to a
    target that is new or has gained weight, or away from one that is gone or has lost some.
    """

    def draw(target: Target) -> float:
        place = "\0".join((subject, target.provider, target.model, target.credential or ""))
        return (int.from_bytes(blake2b(place.encode(), digest_size=8).digest()) + 1) / _DRAWS

    return draw


def by_least(
    targets: Sequence[Target], expected: Callable[[Target], float], random: Random, *, tolerance: float = 0
) -> list[Target]:
    """The targets with the least expected first, those that are alike in an order of chance.

    Args:
        tolerance: The share by which one may exceed another and still come before it.
    """

    def rank(target: Target) -> tuple[float, float]:
        return expected(target) * random.uniform(1, 1 + tolerance), random.random()

    return sorted(targets, key=rank)
