"""Answers as they are kept: which are worth keeping, in which form, and as what they are given again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Final, Literal

import orjson

from llmproxy.api import (
    Answer,
    Attempt,
    ChunkCollector,
    Document,
    Exchange,
    LLMProxyError,
    Operation,
    WholeEvents,
    completion_events,
)

_JSON_TYPE: Final = ("content-type", "application/json")
# Said by a model that has come to the end of what it had to say.
_GOOD_ENDS: Final = frozenset({"stop", "tool_calls", "function_call"})
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_CONTENTS: Final = ("content", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept answer, whole, with what must be known to serve it again.

    `stored_at` is in seconds of the wall clock. `target` is the provider/model that answered, `cost_usd` what that
    cost, None when it is not known.
    """

    body: bytes
    stored_at: float
    ttl_seconds: float
    provider: str
    target: str
    tokens: int
    cost_usd: str | None

    @classmethod
    def of(cls, body: bytes, attempt: Attempt, stored_at: float, ttl_seconds: float) -> Entry:
        """What an attempt has brought."""
        amount = attempt.cost.amount_usd if attempt.cost else None
        return cls(
            body=body,
            stored_at=stored_at,
            ttl_seconds=ttl_seconds,
            provider=attempt.target.provider,
            target=attempt.target.name,
            tokens=attempt.usage.total_tokens if attempt.usage else 0,
            cost_usd=None if amount is None else f"{amount:f}",
        )

    @classmethod
    def decoded(cls, data: bytes) -> Entry | None:
        """The entry that some bytes are; None when they are anything else."""
        head, _, body = data.partition(b"\n")
        try:
            entry = cls(body=body, **orjson.loads(head))
            return entry if entry.body and entry.stored_at + entry.ttl_seconds > 0 else None
        except (TypeError, ValueError):
            return None

    def encode(self) -> bytes:
        """The entry as bytes: a line that describes it, then the answer as it came."""
        head = {name: value for name, value in asdict(self).items() if name != "body"}
        return orjson.dumps(head) + b"\n" + self.body

    def age_seconds(self, now: float) -> float:
        """How old it is; the clocks of two machines may differ a little."""
        return max(now - self.stored_at, 0.0)

    @property
    def saving(self) -> str:
        """What serving it again saves."""
        cost = "an unknown cost" if self.cost_usd is None else f"{Decimal(self.cost_usd):f} USD"
        return f"saved {cost} and {self.tokens} tokens of {self.target}"

    def answer(self, exchange: Exchange, age_seconds: float | None) -> Answer:
        """The entry as the answer to a request, whole or as a stream, whichever it asks for.

        Of the headers that came with it none is true any more; who answered still is.

        Args:
            age_seconds: None when it has just been made.
        """
        headers = [("x-llmproxy-provider", self.provider), ("x-llmproxy-model", self.target)]
        cache: Literal["hit", "coalesced"] = "coalesced"
        if age_seconds is not None:
            headers.append(("age", str(int(age_seconds))))
            cache = "hit"
        if exchange.request.is_stream:
            events = completion_events(orjson.loads(self.body), show_usage=shows_usage(exchange))
            return Answer(200, headers, stream=WholeEvents([b"".join(events)]), cache=cache)
        return Answer(200, [_JSON_TYPE, *headers], self.body, cache=cache)


def shows_usage(exchange: Exchange) -> bool:
    """Whether a streaming client wants the event with the usage."""
    options = exchange.request.document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def collected(events: bytes, attempt: Attempt) -> bytes | None:
    """The whole answer that a stream was; None when it cannot be told without losing some of it."""
    if attempt.request.operation is not Operation.CHAT:
        return None
    collector = ChunkCollector()
    try:
        collector.feed(events)
        if attempt.progress is not None and attempt.progress.usage is not None:
            # Hidden from clients that did not ask for it, and others may.
            told = {"choices": [], "usage": attempt.progress.usage["usage"]}
            collector.feed(b"data: " + orjson.dumps(told) + b"\n\n")
        body = collector.finish()
    except LLMProxyError:
        return None
    return None if collector.lost else body


def unfit(body: bytes, request: Document, operation: Operation) -> str | None:
    """Why a whole answer is not to be served again; None when it may be."""
    if operation is Operation.EMBEDDINGS:
        return None
    try:
        choices = orjson.loads(body)["choices"]
        reasons = [_unfit_choice(choice, request) for choice in choices]
    except (KeyError, TypeError, ValueError, AttributeError):
        return "the answer cannot be read"
    return next((reason for reason in reasons if reason), None) if reasons else "the answer is empty"


def _unfit_choice(choice: Document, request: Document) -> str | None:
    end = choice.get("finish_reason")
    # With a limit of the client's own, what was said up to there is what it asked for.
    is_cut = end == "length" and all(request.get(name) is None for name in _LIMITS)
    if is_cut or (end != "length" and end not in _GOOD_ENDS):
        return f"the answer ended with '{str(end)[:50]}'"
    message: Any = choice.get("message")  # whatever the provider sent
    if message is None:
        return None if choice.get("text") else "the answer is empty"
    if message.get("refusal"):
        return "the model refused"
    if message.get("audio"):
        return "the vendor keeps the answer's audio for a while only"
    return None if any(message.get(name) for name in _CONTENTS) else "the answer is empty"
