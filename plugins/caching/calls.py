"""What the cache knows of one exchange on its way: whether it may be answered from it, and what it may keep of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from llmproxy.api import Attempt, Document, Exchange, StateKey
from llmproxy_plugins.caching.flights import Flight
from llmproxy_plugins.caching.keys import IGNORED
from llmproxy_plugins.caching.tape import Tape


@dataclass(slots=True)
class Call:
    """One exchange, as the cache sees it.

    Attributes:
        status: What `x-llmproxy-cache` says when a provider answers.
        stored_key: Where its answer is kept; None when it is not to be.
        document: The request as it was when the key was made.
        flight: The flight it leads.
        bodies: What its attempts have brought whole, by their numbers.
        tapes: What their streams are recorded on.
        live: The tape of the stream that goes to the client.
        is_being_kept: Whether its answer is on its way to the store, which ends its flight as well.
    """

    status: Literal["miss", "bypass"]
    document: Document
    stored_key: str | None = None
    ttl_seconds: float = 0.0
    max_age_seconds: float = 0.0
    min_fresh_seconds: float = 0.0
    flight: Flight | None = None
    bodies: dict[int, bytes] = field(default_factory=dict)
    tapes: dict[int, Tape] = field(default_factory=dict)
    live: Tape | None = None
    is_being_kept: bool = False


CALL: Final = StateKey[Call]("caching.call")


def not_to_be_shared(exchange: Exchange, attempt: Attempt, call: Call) -> str | None:
    """Why an answer is for this request alone; None when another that is the same may have it."""
    if exchange.request.document is not call.document:
        return "a plugin behind the cache changed the request"
    if set(exchange.targets) != set(exchange.candidates):
        return "a plugin narrowed the targets down"
    if _counted(attempt.request.document) != _counted(call.document):
        return "a plugin changed what was sent"
    return None


def not_to_be_kept(exchange: Exchange, attempt: Attempt) -> str | None:
    """Why an answer is good for now, but not for later."""
    first = min(exchange.attempts, key=lambda each: each.number)
    # What has no share of the requests is there for the case that another fails.
    is_spare = not attempt.target.weight and any(target.weight for target in exchange.candidates)
    return "a fallback answered" if is_spare or attempt.target.name != first.target.name else None


def _counted(document: Document) -> Document:
    """The members that count, without the model, which is the target's own."""
    return {name: value for name, value in document.items() if name not in IGNORED and name != "model"}
