"""JSON inside of a string, such as a tool call's arguments: every string in it is a text of its own.

What stands between two strings, numbers as a rule, is one as well. Nothing else of it changes, not even its spaces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import orjson

from llmproxy_plugins.redaction.lenses import Edit, Lens, Place
from llmproxy_plugins.redaction.vault import Form

_STRING: Final = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
_ESCAPE: Final = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\(.)", re.DOTALL
)
_SIMPLE_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NUMBER_CHARACTERS: Final = "-+0123456789.eE"


def applied(text: str, edits: Iterable[Edit], counts: Counter[str]) -> str:
    """A text with its edits carried out and counted."""
    pieces: list[str] = []
    position = 0
    for edit in edits:
        if edit.detector:
            counts[edit.detector] += 1
        pieces += (text[position : edit.start], edit.replacement)
        position = edit.end
    return "".join((*pieces, text[position:]))


# A whole text


def rewrite_json(lens: Lens, raw: str) -> str:
    """Valid JSON as the lens has it, which is still valid JSON; the same object when nothing changes."""
    places = None if lens.minds_bounds else _raw_places(lens, raw)
    if places == ():
        return raw
    pieces: list[str] = []
    position = 0
    for start, end, is_string in _parts(raw) if places is None else _touched(_parts(raw), places):
        changed = _string(lens, raw[start:end]) if is_string else _between(lens, raw[start:end])
        pieces += (raw[position:start], changed)
        position = end
    result = "".join((*pieces, raw[position:]))
    return raw if result == raw else result


def _raw_places(lens: Lens, raw: str) -> Sequence[Place]:
    """Where the lens finds something when it is shown all parts in one: far quicker than thousands of small ones."""
    if "\\" not in raw:
        return lens.places(raw, Form.JSON)
    text = _ESCAPE.sub(_character, raw)
    found = lens.places(text, Form.JSON)
    if not found:
        return ()
    _, offsets = unescaped(raw)
    return [(offsets[start], offsets[end]) for start, end in found]


def _parts(raw: str) -> Iterator[tuple[int, int, bool]]:
    """Start and end of everything inside of strings, and of everything between them."""
    position = 0
    for match in _STRING.finditer(raw):
        yield position, match.start(), False
        yield *match.span(1), True
        position = match.end()
    yield position, len(raw), False


def _touched(parts: Iterable[tuple[int, int, bool]], places: Sequence[Place]) -> Iterator[tuple[int, int, bool]]:
    """The parts that hold, or share a character with, one of the places."""
    waiting = iter(places)
    place = next(waiting, None)
    for part in parts:
        while place is not None and place[1] <= part[0]:
            place = next(waiting, None)
        if place is None:
            return
        if place[0] < part[1]:
            yield part


def _string(lens: Lens, raw: str) -> str:
    text, _ = unescaped(raw)
    edits = lens.edits(text, Form.JSON)
    return escaped(applied(text, edits, lens.counts)) if edits else raw


def _between(lens: Lens, raw: str) -> str:
    return applied(raw, BetweenStrings(lens).edits(raw, Form.JSON), lens.counts)


# Strings


def unescaped(raw: str) -> tuple[str, Sequence[int]]:
    """The text that the inside of a JSON string stands for, and where in it each character, and the end, stands."""
    if "\\" not in raw:
        return raw, range(len(raw) + 1)
    pieces: list[str] = []
    offsets: list[int] = []
    position = 0
    for match in _ESCAPE.finditer(raw):
        pieces += (raw[position : match.start()], _character(match))
        offsets += range(position, match.start() + 1)
        position = match.end()
    pieces.append(raw[position:])
    offsets += range(position, len(raw) + 1)
    return "".join(pieces), offsets


def escaped(text: str) -> str:
    """The text as it is written inside of a JSON string."""
    return orjson.dumps(text).decode()[1:-1]


def _character(match: re.Match[str]) -> str:
    high, low, single, simple = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    if single:
        code = int(single, 16)
        # Half of a pair is no character.
        return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)
    return _SIMPLE_ESCAPES.get(simple, simple)


# Numbers


class BetweenStrings:
    """A lens for what stands between strings: what is no number any more can only be a string."""

    __slots__ = ("_lens", "counts", "minds_bounds")

    def __init__(self, lens: Lens) -> None:
        self._lens = lens
        self.counts = lens.counts
        self.minds_bounds = lens.minds_bounds

    def places(self, text: str, form: Form) -> Sequence[Place]:
        """Where there is something to change."""
        return self._lens.places(text, form)

    def edits(self, text: str, form: Form) -> Sequence[Edit]:
        """The changes, with quotes around what was part of a number."""
        return [_quoted(edit, text) for edit in self._lens.edits(text, form)]

    def open_from(self, text: str) -> int:
        """Where the first place or number begins that more text could still concern."""
        return min(self._lens.open_from(text), len(text.rstrip(_NUMBER_CHARACTERS)))


def _quoted(edit: Edit, text: str) -> Edit:
    value = text[edit.start : edit.end]
    if edit.replacement == value or value.strip(_NUMBER_CHARACTERS):
        return edit
    before, after = text[: edit.start], text[edit.end :]
    start = len(before.rstrip(_NUMBER_CHARACTERS))
    end = len(text) - len(after.lstrip(_NUMBER_CHARACTERS))
    replacement = f'"{before[start:]}{escaped(edit.replacement)}{text[edit.end : end]}"'
    return Edit(start, end, replacement, edit.detector)
