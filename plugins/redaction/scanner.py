"""Finds values in texts: one pass over a text tells which rules can match at all, and only those search it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Final

from llmproxy_plugins.redaction.detectors import Check, Rule
from llmproxy_plugins.redaction.libraries import Searcher, compiled, prefilter


@dataclass(frozen=True, slots=True)
class Found:
    """A value in a text, by its place in characters, and which detector found it."""

    start: int
    end: int
    detector: str


class Scanner:
    """The rules of some detectors, compiled.

    Attributes:
        minds_bounds: Whether a rule asks where a text begins or ends.
    """

    def __init__(self, rules: Sequence[tuple[str, Rule]]) -> None:
        self._rules = tuple((detector, compiled(rule.pattern), rule.check) for detector, rule in rules)
        self._candidates = prefilter([rule.pattern for _, rule in rules])
        self._tails = _Tails(rule for _, rule in rules)
        self.minds_bounds: Final = any(rule.minds_bounds for _, rule in rules)

    def find(self, text: str) -> list[Found]:
        """Every value in `text`, rule by rule; values of different rules may overlap."""
        data = text.encode()
        found: list[Found] = []
        for number in self._candidates(data):
            detector, searcher, check = self._rules[number]
            found += [Found(start, end, detector) for start, end in _search(searcher, check, data)]
        return found if len(data) == len(text) or not found else _in_characters(found, data)

    def open_from(self, text: str) -> int:
        """Where the first value may begin that more text could complete or prolong; the text's length for none."""
        return self._tails.start(text)


def _search(searcher: Searcher, check: Check | None, data: bytes) -> Iterator[tuple[int, int]]:
    """The places, in bytes, of a rule's values. A candidate that is none may hide one that starts inside it."""
    position, group = 0, 1 if searcher.groups else 0
    while match := searcher.search(data, position):
        start, end = match.span(group)
        position = end
        if check is not None:
            value = data[start:end].decode()
            length = check(value)
            position = end = start + len(value[:length].encode())
        if end > start:
            yield start, end
        else:
            position = start + 1
            while position < len(data) and data[position] & 0xC0 == 0x80:
                position += 1


def _in_characters(found: Iterable[Found], data: bytes) -> list[Found]:
    """The same places counted in characters, the text between one and the next decoded once."""
    in_order = list(found)
    offsets = sorted({offset for each in in_order for offset in (each.start, each.end)})
    gaps = (len(data[before:after].decode()) for before, after in zip([0, *offsets], offsets, strict=False))
    characters = dict(zip(offsets, accumulate(gaps), strict=True))
    return [Found(characters[each.start], characters[each.end], each.detector) for each in in_order]


class _Tails:
    """What the end of a streamed text must look like for a value to go on behind it."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        alphabets: dict[str, int] = {}
        openings: dict[str, int] = {}
        for rule in rules:
            alphabets[rule.alphabet] = max(rule.longest, alphabets.get(rule.alphabet, 0))
            if rule.opening:
                openings[rule.opening] = max(rule.longest, openings.get(rule.opening, 0))
        # Any character at all: the run is as long as it may be.
        self._window = alphabets.pop("", 0)
        self._alphabets = tuple(alphabets.items())
        self._openings = tuple((partial(re.compile(opening).search), longest) for opening, longest in openings.items())

    def start(self, text: str) -> int:
        length = len(text)
        start = max(0, length - self._window)
        for alphabet, longest in self._alphabets:
            tail = text[-longest:]
            # No value begins with a space.
            start = min(start, length - len(tail[len(tail.rstrip(alphabet)) :].lstrip(" ")))
        for search, longest in self._openings:
            tail = text[-longest:]
            if opening := search(tail):
                start = min(start, length - len(tail) + opening.start())
        return start
