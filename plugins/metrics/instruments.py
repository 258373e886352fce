"""What counts: a look-up by labels, and an addition to numbers in memory."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from llmproxy_plugins.metrics import families
from llmproxy_plugins.metrics.families import Family, Labels
from llmproxy_plugins.metrics.sheets import Place, Sheet


class Instrument:
    """Writes one family's numbers down on a sheet."""

    __slots__ = ("_buckets", "_family", "_places", "_sheet")

    def __init__(self, family: Family, sheet: Sheet) -> None:
        self._family = family
        self._sheet = sheet
        self._buckets = family.buckets
        self._places: dict[Labels, Place] = {}

    def add(self, labels: Labels, amount: float = 1.0, number: int = 0) -> None:
        """Add to a series, which begins at zero."""
        values, start = self._places.get(labels) or self._place(labels)
        values[start + number] += amount

    def observe(self, labels: Labels, value: float) -> None:
        """Put a value into a histogram."""
        values, start = self._places.get(labels) or self._place(labels)
        buckets = self._buckets
        values[start + bisect_left(buckets, value)] += 1.0
        values[start + len(buckets) + 1] += value

    def write(self, labels: Labels, *numbers: float) -> None:
        """Replace the numbers of a series."""
        values, start = self._places.get(labels) or self._place(labels)
        for offset, number in enumerate(numbers):
            values[start + offset] = number

    def _place(self, labels: Labels) -> Place:
        # The index holds strings, and a member of an enumeration would be found in it under another type.
        place = self._places[labels] = self._sheet.place(self._family, tuple(map(str, labels)))
        return place


class Instruments:
    """One for each family."""

    def __init__(self, sheet: Sheet) -> None:
        self.duration: Final = Instrument(families.DURATION, sheet)
        self.first_token: Final = Instrument(families.FIRST_TOKEN, sheet)
        self.per_token: Final = Instrument(families.PER_TOKEN, sheet)
        self.tokens: Final = Instrument(families.TOKENS, sheet)
        self.cost: Final = Instrument(families.COST, sheet)
        self.requests: Final = Instrument(families.REQUESTS, sheet)
        self.flights: Final = Instrument(families.FLIGHTS, sheet)
        self.attempts: Final = Instrument(families.ATTEMPTS, sheet)
        self.cache: Final = Instrument(families.CACHE, sheet)
        self.pending: Final = Instrument(families.PENDING, sheet)
        self.plugin_failures: Final = Instrument(families.PLUGIN_FAILURES, sheet)
