"""How long a provider asks to wait, in all the ways providers say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

# Whoever asks for more than a day has made a mistake in the unit.
_MAX_SECONDS: Final = 86_400
_NUMBER: Final = re.compile(r"\d{1,12}(?:\.\d{0,9})?")
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|h|m|s)")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_IN_TEXT: Final = re.compile(r"(?i:try again|retry) (?i:in|after) ((?:\d{1,9}(?:\.\d{1,9})?\s?(?:ms|h|m|s))+)")


def retry_after_seconds(headers: Mapping[str, str], *, delay: str = "", message: str = "") -> float | None:
    """The pause asked for; None when none is, or when it is negative or absurd.

    Args:
        headers: The response's, looked up in lower case. A date is read against the response's own `date`.
        delay: A duration the body gave on its own, such as Gemini's `retryDelay`.
        message: The error message, which may say "try again in 1.2s".
    """
    in_text = _IN_TEXT.search(message)
    ways = (
        _number(headers.get("retry-after-ms"), 0.001),
        _number(headers.get("retry-after"), 1),
        _until(headers.get("retry-after"), headers.get("date")),
        _duration(delay),
        _duration(in_text[1]) if in_text else None,
    )
    return next((seconds for seconds in ways if seconds is not None and 0 <= seconds <= _MAX_SECONDS), None)


def _number(text: str | None, unit_seconds: float) -> float | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    return float(text) * unit_seconds


def _until(date: str | None, now: str | None) -> float | None:
    then, since = _parsed(date), _parsed(now)
    return (then - since).total_seconds() if then and since else None


def _parsed(date: str | None) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(date or "")
    except (ValueError, OverflowError):
        return None
    # A date without a zone cannot be told from one with: none is taken for an answer.
    return parsed if parsed.tzinfo else None


def _duration(text: str) -> float | None:
    parts = _DURATION.findall(text.lower().replace(" ", ""))
    return sum(float(number) * _SECONDS[unit] for number, unit in parts) if parts else None
