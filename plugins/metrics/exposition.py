"""What a scrape gets: the sheets of all workers added up, in Prometheus' text format or in OpenMetrics.

Everything here goes in small steps, so that whoever takes them can let requests pass in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from llmproxy.api import Outcome
from llmproxy_plugins.metrics.families import (
    EXPOSED,
    FLIGHTS,
    IN_FLIGHT,
    JOURNAL_PENDING,
    PENDING,
    REQUESTS,
    Family,
    Kind,
    Labels,
)
from llmproxy_plugins.metrics.sheets import Copy, Series, read_index

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def exposition(sheets: Sequence[Copy], *, is_open_metrics: bool) -> Iterator[str]:
    """The lines of a scrape, in pieces; an empty one is a step that had nothing to say."""
    sums = Sums()
    for sheet in sheets:
        for series in read_index(sheet.index):
            sums.add(series, sheet)
            yield ""
    for family in EXPOSED:
        yield _head(family, is_open_metrics=is_open_metrics)
        for labels, values in sums.of(family):
            yield _samples(family, labels, values)
    if is_open_metrics:
        yield "# EOF\n"


class Sums:
    """The numbers of all workers, series by series."""

    def __init__(self) -> None:
        self._sums: dict[Family, dict[Labels, list[float]]] = {family: {} for family in EXPOSED}
        self._processes: set[float] = set()

    def of(self, family: Family) -> Sequence[tuple[Labels, Sequence[float]]]:
        """Every series of a family, in order."""
        return sorted(self._sums[family].items())

    def add(self, series: Series, sheet: Copy) -> None:
        """Add what a sheet says of a series."""
        values = sheet.values[series.start : series.start + series.family.width].tolist()
        if series.family is FLIGHTS:
            self._add_flights(series.labels, values, is_alive=sheet.is_alive)
        elif series.family is PENDING:
            self._add_pending(values, is_alive=sheet.is_alive)
        else:
            self._add(series.family, series.labels, values)

    def _add_flights(self, labels: Labels, values: Sequence[float], *, is_alive: bool) -> None:
        began, ended, lost = values
        if not is_alive:
            lost = began - ended
        self._add(IN_FLIGHT, labels[: len(IN_FLIGHT.labels)], [began - ended - lost])
        if lost:
            self._add(REQUESTS, (*labels, str(Outcome.INTERRUPTED)), [lost])

    def _add_pending(self, values: Sequence[float], *, is_alive: bool) -> None:
        process, pending = values
        # While a configuration is replaced, the old one and the new one both have a sheet, and one journal.
        if is_alive and process not in self._processes:
            self._processes.add(process)
            self._add(JOURNAL_PENDING, (), [pending])

    def _add(self, family: Family, labels: Labels, values: list[float]) -> None:
        sums = self._sums[family]
        before = sums.get(labels)
        sums[labels] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]


def _head(family: Family, *, is_open_metrics: bool) -> str:
    is_total = family.kind is Kind.COUNTER and not is_open_metrics
    name = f"{family.name}_total" if is_total else family.name
    return f"# HELP {name} {family.meaning}\n# TYPE {name} {family.kind}\n"


def _samples(family: Family, labels: Labels, values: Sequence[float]) -> str:
    pairs = zip(family.labels, labels, strict=True)
    shown = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs if value)
    if family.kind is Kind.HISTOGRAM:
        return _histogram(family, shown, values)
    name = f"{family.name}_total" if family.kind is Kind.COUNTER else family.name
    return f"{name}{{{shown}}} {values[0]!r}\n" if shown else f"{name} {values[0]!r}\n"


def _histogram(family: Family, shown: str, values: Sequence[float]) -> str:
    *counts, total = values
    name, reached = family.name, list(accumulate(counts))
    bounds = [*map(repr, family.buckets), "+Inf"]
    lines = [f'{name}_bucket{{{shown},le="{bound}"}} {count!r}\n' for bound, count in zip(bounds, reached, strict=True)]
    return f"{''.join(lines)}{name}_count{{{shown}}} {reached[-1]!r}\n{name}_sum{{{shown}}} {total!r}\n"
