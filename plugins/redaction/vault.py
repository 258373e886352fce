"""Placeholders and the values they stand for: one vault for each exchange, forgotten with it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from llmproxy_plugins.redaction.config import LITERAL

_HASH_CHARACTERS: Final = 16


def label(detector: str) -> str:
    """A detector's name as texts show it."""
    return detector.upper()


def masked(detector: str) -> str:
    """What stands for a value that nobody gets back."""
    return f"[{label(detector)}]"


def hashed(detector: str, value: str, key: bytes) -> str:
    """What stands for a value that nobody gets back, the same for the same value."""
    digest = hmac.new(key, value.encode(), hashlib.sha256).hexdigest()
    return f"[{label(detector)}:{digest[:_HASH_CHARACTERS]}]"


class Form(Enum):
    """How a text is written: plainly, as JSON inside of a string, or as a name with few characters to choose from."""

    TEXT = 1
    JSON = 2
    NAME = 3


class Marks:
    """What placeholders look like, with these detectors: `<EMAIL_1>` in texts, and `EMAIL_1` in names.

    Vendors allow no angle brackets in names.
    """

    def __init__(self, detectors: Iterable[str]) -> None:
        labels = sorted((label(each) for each in (*detectors, LITERAL)), key=len, reverse=True)
        one = f"(?:{'|'.join(labels)})_[0-9]{{1,9}}"
        self._in_texts: Final = re.compile(f"<{one}>")
        self._in_names: Final = re.compile(rf"(?<![A-Za-z0-9]){one}(?![A-Za-z0-9])")
        self._unfinished: Final = re.compile(r"<[A-Z0-9_]*")
        self._longest: Final = len(labels[0]) + 12

    def spans(self, text: str, form: Form) -> Sequence[tuple[int, int]]:
        """Where in a text there is something of this form."""
        if form is Form.NAME:
            return [match.span() for match in self._in_names.finditer(text)]
        return [match.span() for match in self._in_texts.finditer(text)] if "<" in text else ()

    def open_from(self, text: str) -> int:
        """Where a placeholder begins that more text could complete; the text's length for none."""
        start = text.rfind("<", -self._longest)
        return start if start >= 0 and self._unfinished.fullmatch(text, start) else len(text)


class Vault:
    """The values of one exchange, numbered for each detector in the order in which they appear.

    That order makes a conversation keep its numbers as it grows, and with them what the vendor has cached of it.
    """

    def __init__(self) -> None:
        self._placeholders: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._values)

    def placeholder(self, detector: str, value: str) -> str:
        """What stands for a value; the same for the same value."""
        known = self._placeholders.get((detector, value))
        if known is None:
            self._counts[detector] += 1
            number = f"{label(detector)}_{self._counts[detector]}"
            self._values[number] = value
            known = self._placeholders[detector, value] = f"<{number}>"
        return known

    def value(self, name: str) -> str | None:
        """What a placeholder stands for, by its name without brackets; None for one that was not made here."""
        return self._values.get(name)
