"""Lenses: what is to be changed in one text, for a request on its way in and for its answer on its way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from llmproxy_plugins.redaction.config import LITERAL
from llmproxy_plugins.redaction.scanner import Found, Scanner
from llmproxy_plugins.redaction.vault import Form, Marks, Vault


@dataclass(frozen=True, slots=True)
class Edit:
    """What to put in place of a part of a text, and which detector asks for it; "" when none does."""

    start: int
    end: int
    replacement: str
    detector: str = ""


# Start and end of a part of a text.
Place = tuple[int, int]


class Lens(Protocol):
    """Says what to change in a text.

    Attributes:
        counts: How many edits of each detector were carried out, kept by whoever does so.
        minds_bounds: Whether it may find something in a text that it would not in a longer one around it.
    """

    counts: Counter[str]
    minds_bounds: bool

    def places(self, text: str, form: Form) -> Sequence[Place]:
        """Where there is something to change, in order and apart from each other."""

    def edits(self, text: str, form: Form) -> Sequence[Edit]:
        """The changes, in order and apart from each other."""

    def open_from(self, text: str) -> int:
        """Where the first place begins that more text could still concern; the text's length for none."""


# What to put in place of a detector's value.
Replace = Callable[[str, str], str]

# Of two values that overlap, both are dealt with as the stricter action would have it.
_STRICTNESS: Final = {
    name: rank for rank, name in enumerate(("report", "restore", "placeholder", "hash", "mask", "block"))
}
_RESTORE: Final = ""


class RequestLens:
    """Finds what must not reach a provider, and what the client itself has written like a placeholder."""

    def __init__(
        self,
        find: Callable[[str], list[Found]],
        actions: Mapping[str, str],
        replace: Replace,
        marks: Marks | None,
        *,
        minds_bounds: bool,
    ) -> None:
        self.minds_bounds = minds_bounds
        self._find = find
        self._actions = {**actions, LITERAL: "placeholder"}
        self._replace = replace
        self._marks = marks
        self.counts: Counter[str] = Counter()

    def places(self, text: str, form: Form) -> Sequence[Place]:
        """Where the client has written something that must change."""
        return [(each.start, each.end) for each in self._found(text, form)]

    def edits(self, text: str, form: Form) -> Sequence[Edit]:
        """The changes to a text of the request."""
        return [self._edit(each, text, form) for each in self._found(text, form)]

    def _found(self, text: str, form: Form) -> Sequence[Found]:
        found = self._find(text)
        if self._marks is not None:
            found += [Found(*span, LITERAL) for span in self._marks.spans(text, form)]
        return merged(found, self._actions) if found else ()

    def open_from(self, text: str) -> int:
        """Requests are there as a whole."""
        return len(text)

    def _edit(self, each: Found, text: str, form: Form) -> Edit:
        value = text[each.start : each.end]
        detector = "" if each.detector == LITERAL else each.detector
        if self._actions[each.detector] == "report":
            return Edit(each.start, each.end, value, detector)
        new = self._replace(each.detector, value)
        return Edit(each.start, each.end, _as_name(new) if form is Form.NAME else new, detector)


class AnswerLens:
    """Finds placeholders, to put back what they stand for, and what the model has made up.

    Args:
        scanner: Looks for what the model makes up; None when nobody asked for that.
    """

    def __init__(
        self, marks: Marks | None, vault: Vault, scanner: Scanner | None, actions: Mapping[str, str], replace: Replace
    ) -> None:
        self.minds_bounds = scanner is not None and scanner.minds_bounds
        self._marks = marks
        self._vault = vault
        self._scanner = scanner
        self._actions = {**actions, _RESTORE: "restore"}
        self._replace = replace
        self.counts: Counter[str] = Counter()

    def places(self, text: str, form: Form) -> Sequence[Place]:
        """Where there is a placeholder of this exchange, or something that the model has made up."""
        return [(each.start, each.end) for each in self._found(text, form)]

    def edits(self, text: str, form: Form) -> Sequence[Edit]:
        """The changes to a text of the answer."""
        return [self._edit(each, text) for each in self._found(text, form)]

    def _found(self, text: str, form: Form) -> Sequence[Found]:
        found = self._scanner.find(text) if self._scanner is not None else []
        if self._marks is not None and self._vault:
            spans = self._marks.spans(text, form)
            found += [Found(*span, _RESTORE) for span in spans if self._value(text, span) is not None]
        return merged(found, self._actions) if found else ()

    def open_from(self, text: str) -> int:
        """Where a placeholder or a value may have begun."""
        start = self._marks.open_from(text) if self._marks is not None and self._vault else len(text)
        return min(start, self._scanner.open_from(text)) if self._scanner is not None else start

    def _edit(self, each: Found, text: str) -> Edit:
        value = text[each.start : each.end]
        if each.detector == _RESTORE:
            return Edit(each.start, each.end, self._value(text, (each.start, each.end)) or value)
        is_kept = self._actions[each.detector] == "report"
        return Edit(each.start, each.end, value if is_kept else self._replace(each.detector, value), each.detector)

    def _value(self, text: str, span: Place) -> str | None:
        return self._vault.value(text[slice(*span)].strip("<>"))


class Collector:
    """Changes nothing and keeps every text it is shown."""

    minds_bounds = True

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}
        self.counts: Counter[str] = Counter()

    def places(self, text: str, form: Form) -> Sequence[Place]:
        """None."""
        return ()

    def edits(self, text: str, form: Form) -> Sequence[Edit]:
        """None."""
        self.texts[text] = None
        return ()

    def open_from(self, text: str) -> int:
        """Requests are there as a whole."""
        return len(text)


def merged(found: Iterable[Found], actions: Mapping[str, str]) -> list[Found]:
    """In order, those that overlap as one, so that no part of either is left over.

    Of two actions alike, the longer value's name counts. What is only to be reported gives way: it would leave a part
    of the other as it is.
    """
    result: list[Found] = []
    for each in sorted(found, key=lambda each: (each.start, -each.end)):
        if not result or each.start >= result[-1].end:
            result.append(each)
            continue
        before = result[-1]
        milder, stricter = sorted(
            (before, each), key=lambda one: (_STRICTNESS[actions[one.detector]], one.end - one.start)
        )
        if actions[milder.detector] == "report":
            result[-1] = stricter
        else:
            result[-1] = Found(before.start, max(before.end, each.end), stricter.detector)
    return result


def _as_name(text: str) -> str:
    return text.strip("<>[]").replace(":", "_")
