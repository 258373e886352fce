"""What somebody does, against what they usually do: without I/O or a clock, and without a word of any prompt."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from heapq import nsmallest
from statistics import median
from typing import Any, Final

from llmproxy.api import Document
from llmproxy_plugins.runaway.settings import LoopRule, RunawayConfig

_PAST_MINUTES: Final = 30
_LEAST_PAST_MINUTES: Final = 3
_SHINGLE_WORDS: Final = 3
_SKETCH_SIZE: Final = 32
_READ_CHARACTERS: Final = 8192
_MOST_SKETCHES: Final = 256
_ZERO: Final = Decimal(0)

# Hashes of a text's words in a row, the smallest ones: two texts share about as many as they have in common.
Sketch = frozenset[int]


@dataclass(slots=True)
class _History:
    """One subject's last minutes."""

    minute: int = 0
    requests: int = 0
    spent_usd: Decimal = _ZERO
    past_requests: deque[int] = field(default_factory=lambda: deque(maxlen=_PAST_MINUTES))
    past_usd: deque[Decimal] = field(default_factory=lambda: deque(maxlen=_PAST_MINUTES))
    turns: deque[tuple[float, Sketch]] = field(default_factory=lambda: deque(maxlen=_MOST_SKETCHES))

    def roll(self, now: float) -> None:
        """Begin the next minute, if it has begun. Minutes without a request say nothing of what is usual."""
        minute = int(now // 60)
        if minute == self.minute:
            return
        if self.requests:
            self.past_requests.append(self.requests)
            self.past_usd.append(self.spent_usd)
        self.minute, self.requests, self.spent_usd = minute, 0, _ZERO


class Watch:
    """Notes what each subject does, and says when that is a runaway. The subjects that were met last are remembered."""

    def __init__(self, config: RunawayConfig) -> None:
        self._config = config
        self._histories: OrderedDict[str, _History] = OrderedDict()

    def request(self, subject: str, now: float) -> str | None:
        """A request came: why that is one too many, None if it is not."""
        history, rule = self._history(subject, now), self._config.requests
        history.requests += 1
        if rule is None:
            return None
        usual = _usual(history.past_requests)
        if history.requests <= max(rule.floor, rule.factor * usual):
            return None
        return f"{history.requests} requests within a minute, where {usual:g} are usual"

    def spend(self, subject: str, amount_usd: Decimal, now: float) -> str | None:
        """Something was spent: why that is too much, None if it is not."""
        history, rule = self._history(subject, now), self._config.spend
        history.spent_usd += amount_usd
        if rule is None:
            return None
        usual = _usual(history.past_usd)
        if history.spent_usd <= max(rule.floor_usd, Decimal(rule.factor) * Decimal(usual)):
            return None
        return f"{history.spent_usd:.4f} USD spent within a minute, where {usual:.4f} are usual"

    def turn(self, subject: str, sketch: Sketch, now: float) -> str | None:
        """Something was asked: why that is a loop, None if it is none."""
        rule, turns = self._config.loop, self._history(subject, now).turns
        if rule is None or not sketch:
            return None
        while turns and turns[0][0] < now - rule.window_seconds:
            turns.popleft()
        turns.append((now, sketch))
        alike = sum(_are_alike(sketch, each, rule) for _, each in turns)
        if alike < rule.repeats:
            return None
        return f"{alike} nearly identical turns within {rule.window_seconds:g} seconds"

    def depth(self, document: Document) -> str | None:
        """Why a conversation has too many tool calls in a row, None if it has not."""
        rule = self._config.depth
        if rule is None or (calls := tool_calls_in_a_row(document)) <= rule.tool_calls:
            return None
        return f"{calls} turns with tool calls in a row"

    def clear(self, subject: str) -> None:
        """Begin anew with a subject that was reset; what is usual for it stays known."""
        if (history := self._histories.get(subject)) is not None:
            history.requests, history.spent_usd = 0, _ZERO
            history.turns.clear()

    def _history(self, subject: str, now: float) -> _History:
        history = self._histories.get(subject)
        if history is None:
            history = self._histories[subject] = _History(int(now // 60))
            if len(self._histories) > self._config.max_subjects:
                self._histories.popitem(last=False)
        self._histories.move_to_end(subject)
        history.roll(now)
        return history


def sketch_of(document: Document) -> Sketch:
    """What the last turn of a request is like: the user's, or what the last tools answered."""
    words = " ".join(_last_turn(document))[-_READ_CHARACTERS:].split()
    last = max(len(words) - _SHINGLE_WORDS + 1, 1 if words else 0)
    # Python's own hash, which has another key in every process: nothing can be read from it elsewhere.
    shingles = {hash(tuple(words[first : first + _SHINGLE_WORDS])) for first in range(last)}
    return frozenset(nsmallest(_SKETCH_SIZE, shingles))


def tool_calls_in_a_row(document: Document) -> int:
    """How many of the last turns were calls of tools, with no word of a user between."""
    calls = 0
    for message in reversed(_messages(document)):
        if message.get("role") == "user":
            break
        calls += bool(message.get("tool_calls"))
    return calls


def _are_alike(one: Sketch, other: Sketch, rule: LoopRule) -> bool:
    return len(one & other) >= rule.similarity * max(len(one), len(other))


def _usual(past: Iterable[int | Decimal]) -> float:
    known = [float(each) for each in past]
    return median(known) if len(known) >= _LEAST_PAST_MINUTES else 0.0


def _last_turn(document: Document) -> Iterator[str]:
    messages = _messages(document)
    if not messages:
        for member in ("prompt", "input"):
            yield from _texts(document.get(member))
        return
    role = messages[-1].get("role")
    for message in reversed(messages):
        if message.get("role") != role:
            break
        yield from _texts(message.get("content"))


# What clients send can be anything.
def _messages(document: Document) -> list[Document]:
    messages = document.get("messages")
    return [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text
