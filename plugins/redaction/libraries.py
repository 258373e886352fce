"""The two libraries of the extra `redaction`, behind the little of them that is used.

RE2 searches in linear time, whatever an operator's pattern and a client's text are; python-stdnum knows the check
digits of the world's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final, Protocol

from llmproxy.api import ConfigError

_MISSING: Final = "The plugin redaction needs two more libraries; install them with: pip install 'llmproxy[redaction]'"
# Twice what the largest dictionaries have needed; RE2's own default gives up on some hundred words.
_MAX_MEMORY_BYTES: Final = 134_217_728


def _library(name: str) -> Any:  # Neither library is typed; the functions below are.
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(_MISSING) from error


_re2: Final = _library("re2")
_stdnum: Final = _library("stdnum")


class Match(Protocol):
    """Where a pattern was found."""

    def span(self, group: int = 0) -> tuple[int, int]:
        """Start and end of a group, in bytes; (-1, -1) for one that took no part."""


class Searcher(Protocol):
    """A compiled pattern over UTF-8."""

    groups: int

    def search(self, text: bytes, pos: int) -> Match | None:
        """The first match at or after `pos`; what stands before `pos` still counts as context."""


def compiled(pattern: str) -> Searcher:
    """The pattern, ready to search. Raises ValueError when RE2 does not accept it."""
    try:
        searcher: Searcher = _re2.compile(pattern, _options())
    except _re2.error as error:
        raise ValueError(f"not a pattern that RE2 accepts: {_reason(error)}") from error
    return searcher


def prefilter(patterns: Sequence[str]) -> Callable[[bytes], Sequence[int]]:
    """A function from a text to the numbers of the patterns that it holds, in one pass over the text.

    Raises ConfigError when they are too many.
    """
    patterns_at_once = _re2.Set.SearchSet(_options())
    # An empty pattern is in every text: where it was not found, the search ran out of memory and says nothing at all.
    for pattern in ("", *patterns):
        patterns_at_once.Add(pattern)
    try:
        patterns_at_once.Compile()
    except _re2.error as error:
        raise ConfigError(
            "The patterns and dictionaries of the plugin 'redaction' are too large; shorten them."
        ) from error
    every = range(len(patterns))
    return lambda text: _candidates(patterns_at_once.Match(text), every)


def _candidates(found: Sequence[int], every: Sequence[int]) -> Sequence[int]:
    return [number - 1 for number in found if number] if 0 in found else every


def literal(word: str) -> str:
    """A pattern that finds just this word."""
    escaped: str = _re2.escape(word)
    return escaped


def number_check(kind: str) -> Callable[[str], bool]:
    """Whether a number is valid by the rules of its kind, a module of stdnum such as `iban` or `no.fodselsnummer`."""
    is_valid: Callable[[str], bool] = _library(f"stdnum.{kind}").is_valid
    return is_valid


def _options() -> Any:  # RE2's own type
    options = _re2.Options()
    options.max_mem = _MAX_MEMORY_BYTES
    options.log_errors = False
    return options


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
