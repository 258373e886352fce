"""Why a request went the way it did, from its rows alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from llmproxy.errors import Failure
from llmproxy.request import Document

SKIPPED: Final = "skipped "
# How an attempt can end that was sent, and yet has no response.
_WITHOUT_RESPONSE: Final = (Failure.CONNECT, Failure.TIMEOUT, Failure.BROKEN, Failure.CUT, Failure.SUPERSEDED)


def explanation(request: Document, attempts: Sequence[Document]) -> Document:
    """Who served a request, who was passed over and why, what each attempt cost, and every decision in order."""
    served = _served_by(request, attempts)
    return {
        "request_id": request["id"],
        "summary": _summary(request, attempts, served),
        "outcome": request["outcome"],
        "http_status": request["http_status"],
        "request_model": request["request_model"],
        "served_by": served,
        "cache": request["cache"],
        "skipped": list(_skipped(request, attempts)),
        "attempts": [_attempt(attempt) for attempt in attempts],
        "cost_usd": request["cost_usd"],
        "cost_provenance": request["cost_provenance"],
        "price_source": request["price_source"],
        "decisions": request["decisions"],
    }


def _served_by(request: Document, attempts: Sequence[Document]) -> Document | None:
    sent = (attempt for attempt in reversed(attempts) if _is_sent(attempt))
    answered = next((attempt for attempt in sent if attempt["error_code"] is None), None)
    if answered is None or request["outcome"] in ("refused", "failed"):
        return None
    return {"provider": answered["provider_name"], "model": _target(answered), "attempt": answered["number"]}


def _skipped(request: Document, attempts: Sequence[Document]) -> Iterator[Document]:
    """Who was never asked, by the word of a decision, and who was asked and failed."""
    for decision in request["decisions"]:
        if decision["what"].startswith(SKIPPED):
            yield {"model": decision["what"].removeprefix(SKIPPED), "by": decision["by"], "why": decision["why"]}
    for attempt in attempts:
        if attempt["error_code"] is not None:
            yield {"model": _target(attempt), "by": f"attempt {attempt['number']}", "why": attempt["error_message"]}


def _attempt(attempt: Document) -> Document:
    facts = ("number", "region", "http_status", "failure", "error_message", "duration_seconds", "upstream_request_id")
    return {
        "model": _target(attempt),
        "is_sent": _is_sent(attempt),
        **{name: attempt[name] for name in facts},
        "cost_usd": attempt["cost_usd"],
        "cost_provenance": attempt["cost_provenance"],
    }


def _is_sent(attempt: Document) -> bool:
    """Whether a provider may have seen an attempt: a plugin may refuse one before, or its provider not be able to."""
    return attempt["http_status"] is not None or attempt["failure"] in _WITHOUT_RESPONSE


def _target(attempt: Document) -> str:
    return f"{attempt['provider_name']}/{attempt['model']}"


def _summary(request: Document, attempts: Sequence[Document], served: Document | None) -> str:
    sent = sum(map(_is_sent, attempts))
    tried = f"{sent} attempt{'' if sent == 1 else 's'}"
    match request["outcome"]:
        case "succeeded":
            return f"{_answered(request, attempts, served)}{_cost(request)}."
        case "disconnected":
            return f"The client hung up after {request['duration_seconds'] or 0:.2f} s and {tried}{_cost(request)}."
        case "interrupted":
            return f"The worker stopped before this had ended; the most it may have used was charged{_cost(request)}."
        case outcome:
            begun = f"{str(outcome).capitalize()} after {tried}" if sent else f"{str(outcome).capitalize()} at once"
            return f"{begun}: {request['error_message'] or 'no reason was recorded'}"


def _answered(request: Document, attempts: Sequence[Document], served: Document | None) -> str:
    if served is not None:
        failed = [_target(attempt) for attempt in attempts if attempt["error_code"] is not None]
        after = f" after {', '.join(failed)} had failed" if failed else ""
        return f"{served['model']} answered in {request['duration_seconds'] or 0:.2f} s{after}"
    source = "the cache" if request["cache"] else "a plugin"
    return f"Answered by {source}" + (" when every attempt had failed" if attempts else " without asking a provider")


def _cost(request: Document) -> str:
    if request["cost_usd"] is not None:
        return f", for {request['cost_usd']} USD ({request['cost_provenance']})"
    return ", at a price that is not known" if request["usage_provenance"] else ""
