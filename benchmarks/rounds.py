"""Subjects that take turns within each round, and tables of their ratios to some of them, taken within a round."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.load import Load, WholeAnswers
from benchmarks.processes import pin_apart
from benchmarks.report import Measure, Samples, markdown, ratio
from benchmarks.subjects import Sample, Subject, sample

# How quick a gateway is differs from start to start, by as much as is to be told of it.
STARTS: Final = 5


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it."""

    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Beside:
    """One measure, as a median over the rounds, and how many times that of some subjects it is.

    Attributes:
        bases: Their names; those that are not measured are left out.
    """

    title: str
    measure: Measure
    bases: Sequence[str] = ()
    decimals: int = 0


async def prepare(subjects: Sequence[Subject], numbers: Iterator[int]) -> None:
    """Give every subject its core, and some answers to warm up with."""
    pin_apart(subjects)
    for subject in subjects:
        await sample(subject, WholeAnswers(8, 0.5), numbers)


async def rounds(loads: Mapping[Subject, Load], count: int, numbers: Iterator[int]) -> Samples:
    """The samples of each subject, one a round. Raises WrongAnswerError, and RuntimeError when rows are missing."""
    samples: dict[str, list[Sample]] = {subject.name: [] for subject in loads}
    for _, (subject, load) in itertools.product(range(count), loads.items()):
        samples[subject.name].append(await sample(subject, load, numbers))
    return samples


async def over_starts(
    start: Callable[[], AbstractAsyncContextManager[Sequence[Subject]]],
    loads: Mapping[str, Load],
    count: int,
    numbers: Iterator[int],
) -> Mapping[str, Samples]:
    """The samples of so many rounds after each of some starts, under each load.

    Args:
        start: Starts the subjects, each on its core and warm.
    """
    samples: dict[str, dict[str, list[Sample]]] = {title: {} for title in loads}
    for _ in range(STARTS):
        async with start() as subjects:
            for title, load in loads.items():
                for name, found in (await rounds(dict.fromkeys(subjects, load), count, numbers)).items():
                    samples[title].setdefault(name, []).extend(found)
    return samples


def print_table(title: str, samples: Samples, columns: Iterable[Beside]) -> None:
    """A table with a heading, printed as soon as it is there."""
    print(f"### {title}\n\n{table(samples, columns)}\n", flush=True)


def table(samples: Samples, columns: Iterable[Beside]) -> str:
    """A row for each subject."""
    shown = [(each, [base for base in each.bases if base in samples]) for each in columns]
    head = ["", *(title for column, bases in shown for title in (column.title, *(f"of {base}" for base in bases)))]
    rows = [
        [name, *(cell for column, bases in shown for cell in _cells(column, own, [samples[base] for base in bases]))]
        for name, own in samples.items()
    ]
    return markdown(head, rows)


def _cells(column: Beside, own: Sequence[Sample], bases: Iterable[Sequence[Sample]]) -> Iterator[str]:
    yield f"{median(map(column.measure, own)):,.{column.decimals}f}"
    yield from ("-" if own is base else ratio(own, base, column.measure) for base in bases)
