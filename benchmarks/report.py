"""The figures as Markdown: medians over the rounds, and ratios taken round by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final, Literal, TypeVar

from benchmarks.starts import STREAMS, Start
from benchmarks.subjects import Sample

DIRECT, RELAY, GATEWAY = "no proxy", "bare relay", "llmproxy"
# From so many on, the few that something disturbed would be all that a range tells of.
_MANY_ROUNDS: Final = 20
_NOTHING: Final = "-"

# A subject's samples, one a round.
Samples = Mapping[str, Sequence[Sample]]
Measure = Callable[[Sample], float]
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Column:
    """One measure, as a median over the rounds.

    Attributes:
        beside: What stands beside it: how many times the bare relay's it is, with the range over the rounds, or how
            much a proxy adds to what there is without one.
    """

    title: str
    measure: Measure
    decimals: int = 0
    beside: Literal["ratio", "added"] | None = None


def rate(sample: Sample) -> float:
    """Answers or events a second."""
    return sample.seen.units / sample.seen.seconds


def worker_microseconds(sample: Sample) -> float:
    """CPU time of the worker for each answer or event."""
    return sample.worker_seconds / sample.seen.units * 1e6


def database_microseconds(sample: Sample) -> float:
    """CPU time of the database for each answer or event."""
    return sample.database_seconds / sample.seen.units * 1e6


def wait(percent: int) -> Measure:
    """A percentile of the waits, in milliseconds."""
    return lambda sample: quantiles(sample.seen.waits, n=100, method="inclusive")[percent - 1] * 1000


def worst_stretch(sample: Sample) -> float:
    """How much longer the slowest paced stream took than it should have, in percent."""
    return (max(sample.seen.stretches) - 1) * 100


def ratio(own: Sequence[S], base: Sequence[S], measure: Callable[[S], float]) -> str:
    """How many times another's it is, taken round by round: the median, and the range; of many, their middle half's."""
    ratios = [measure(one) / measure(other) for one, other in zip(own, base, strict=True)]
    low, high = min(ratios), max(ratios)
    if len(ratios) >= _MANY_ROUNDS:
        low, _, high = quantiles(ratios)
    return f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"


def table(samples: Samples, columns: Sequence[Column]) -> str:
    """A row for each subject."""
    head = ["", *(title for column in columns for title in _titles(column))]
    rows = [[name, *(cell for column in columns for cell in _cells(column, name, samples))] for name in samples]
    return markdown(head, rows)


def starts_table(starts: Mapping[str, Sequence[Start]]) -> str:
    """A row for each subject that was started."""
    head = ["", "first answer, s", "idle, MB", "of it its own, MB", "each stream, kB", "of it its own, kB"]
    rows = []
    for name, each in starts.items():
        idle = [[s.idle.resident_bytes / 1e6 for s in each], [s.idle.unique_bytes / 1e6 for s in each]]
        grown = [
            [(s.live.resident_bytes - s.idle.resident_bytes) / STREAMS / 1e3 for s in each],
            [(s.live.unique_bytes - s.idle.unique_bytes) / STREAMS / 1e3 for s in each],
        ]
        figures = [f"{median(s.seconds for s in each):.2f}", *(f"{median(values):.0f}" for values in (*idle, *grown))]
        rows.append([name, *figures])
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width if not index else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join(_line(row, widths) for row in (head, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"


def _titles(column: Column) -> list[str]:
    beside = {"ratio": ["of the relay (range)"], "added": ["added"]}
    return [column.title, *beside.get(column.beside or "", [])]


def _cells(column: Column, name: str, samples: Samples) -> list[str]:
    values = [column.measure(sample) for sample in samples[name]]
    figure = f"{median(values):,.{column.decimals}f}" if any(values) else _NOTHING
    match column.beside:
        case "ratio":
            return [figure, _ratio(values, [column.measure(sample) for sample in samples[RELAY]])]
        case "added":
            without = [column.measure(sample) for sample in samples[DIRECT]]
            added = median(value - base for value, base in zip(values, without, strict=True))
            return [figure, f"{added:.{column.decimals}f}" if name != DIRECT else _NOTHING]
        case None:
            return [figure]


def _ratio(values: Sequence[float], relay: Sequence[float]) -> str:
    if values == relay or not any(values):
        return _NOTHING
    ratios = [value / base for value, base in zip(values, relay, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
