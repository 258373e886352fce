"""What the journal holds of an exchange: one document when it is let in, one when it has ended.

The ending document has the columns of `requests`, `attempts`, `ledger_entries` and `request_bodies` as its keys,
so that shipping it needs no knowledge of exchanges, and replaying it none of how it came about.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

from llmproxy import estimate
from llmproxy.errors import LLMProxyError, UpstreamError
from llmproxy.exchange import TOKEN_CLASSES, Attempt, Cost, Document, Exchange, Operation, Target, Usage
from llmproxy.stream import BodyCapture

_MAX_MESSAGE_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True)
class Bodies:
    """The bodies to keep of one exchange, as far as its workspace wants them."""

    request: BodyCapture | None = None
    response: BodyCapture | None = None


def admission(exchange: Exchange) -> Document:
    """The document written when an exchange is let in: enough to settle it should nothing else ever be written."""
    request = exchange.request
    return {
        **_identity(exchange),
        "path": exchange.path,
        "is_stream": request.is_stream,
        "request_bytes": request.size_bytes,
        "max_output_tokens": _max_output_tokens(exchange),
    }


def completion(exchange: Exchange, http_status: int, response_bytes: int, bodies: Bodies) -> Document:
    """The document written when an exchange has ended, complete in itself."""
    answered = next((a for a in reversed(exchange.attempts) if a.error is None), None)
    shared = {
        **_identity(exchange),
        **_target_columns(answered.target if answered else exchange.target),
        **_usage_columns(exchange.usage),
        **_cost_columns(exchange.cost),
    }
    request = {
        **shared,
        **_error_columns(exchange.error),
        "path": exchange.path,
        "is_stream": exchange.request.is_stream,
        "outcome": str(exchange.outcome),
        "http_status": http_status,
        "finish_reasons": list(answered.finish_reasons) if answered else [],
        "cache": exchange.answer.cache if exchange.answer else None,
        "attempts": len(exchange.attempts),
        "duration_seconds": exchange.duration_seconds,
        "first_chunk_seconds": exchange.first_chunk_seconds,
        "request_bytes": exchange.request.size_bytes,
        "response_bytes": response_bytes,
        "decisions": [{"by": d.by, "what": d.what, "why": d.why} for d in exchange.decisions],
    }
    return {
        "request": request,
        "attempts": [_attempt(exchange, attempt) for attempt in exchange.attempts],
        "ledger": _ledger_rows(exchange, answered, shared),
        **_bodies(exchange, bodies),
    }


def interrupted(admitted: Document, target: Target | None, cost: Cost | None, usage: Usage) -> Document:
    """The ending of an exchange whose worker died: settled with what it may have cost at most."""
    facts = {key: value for key, value in admitted.items() if key != "max_output_tokens"}
    shared = {
        **{key: value for key, value in facts.items() if key not in ("path", "is_stream", "request_bytes")},
        **_target_columns(target),
        **_usage_columns(usage),
        **_cost_columns(cost),
    }
    request = {
        **facts,
        **shared,
        "outcome": "interrupted",
        "error_type": "server_error",
        "error_code": "interrupted",
        "error_message": "The worker stopped before this request had ended.",
        "finish_reasons": [],
        "attempts": 0,
        "decisions": [],
    }
    return {"request": request, "attempts": [], "ledger": [_ledger(shared)]}


def _max_output_tokens(exchange: Exchange) -> int | None:
    return 0 if exchange.operation is Operation.EMBEDDINGS else estimate.max_output_tokens(exchange.request.document)


def _identity(exchange: Exchange) -> Document:
    attribution, principal = exchange.attribution, exchange.principal
    return {
        "id": exchange.id,
        "admitted_at": exchange.admitted_at.isoformat(),
        "operation_name": str(exchange.operation),
        "workspace": principal.workspace,
        "key_id": principal.key_id,
        "feature": attribution.feature,
        "user_id": attribution.user,
        "session_id": attribution.session,
        "prompt_version": attribution.prompt_version,
        "tags": list(attribution.tags),
        "metadata": dict(attribution.metadata),
        "trace_id": attribution.trace_id,
        "request_model": exchange.request.model,
        "origin": exchange.origin,
        "parent_id": exchange.parent_id,
    }


def _attempt(exchange: Exchange, attempt: Attempt) -> Document:
    error = attempt.error
    return {
        "request_id": exchange.id,
        "admitted_at": exchange.admitted_at.isoformat(),
        "number": attempt.number,
        "provider_name": attempt.target.provider,
        "model": attempt.target.model,
        "region": attempt.target.region,
        "started_at": attempt.started_at.isoformat(),
        "duration_seconds": attempt.duration_seconds,
        "first_chunk_seconds": attempt.first_chunk_seconds,
        "http_status": attempt.status,
        "failure": str(error.failure) if isinstance(error, UpstreamError) else None,
        "error_code": error.error_code if error else None,
        "error_message": _message(error) if error else None,
        "upstream_request_id": attempt.upstream_request_id,
        "finish_reasons": list(attempt.finish_reasons),
        **_usage_columns(attempt.usage),
        "cost_usd": _amount(attempt.cost),
        "cost_provenance": attempt.cost.provenance if attempt.cost else None,
        "credential": attempt.target.credential,
    }


def _ledger_rows(exchange: Exchange, answered: Attempt | None, shared: Document) -> list[Document]:
    """One row for the exchange, with the attempt that answered, and one for each other attempt that is charged."""
    charged = [attempt for attempt in exchange.attempts if attempt.usage is not None]
    main = answered if answered in charged or not charged else charged[-1]
    others = (
        {**_ledger({**shared, **_charge_columns(attempt)}), "entry": attempt.number, "kind": "attempt"}
        for attempt in charged
        if attempt is not main
    )
    return [_ledger({**shared, **(_charge_columns(main) if main else {})}), *others]


def _charge_columns(attempt: Attempt) -> Document:
    return {**_target_columns(attempt.target), **_usage_columns(attempt.usage), **_cost_columns(attempt.cost)}


def _ledger(shared: Document) -> Document:
    """The same facts under the ledger's own names."""
    renamed = {"id": "request_id", "admitted_at": "occurred_at", "cost_usd": "amount_usd"}
    left_out = {"origin", "parent_id", "session_id", "prompt_version", "tags", "metadata", "trace_id", "region"}
    facts = {renamed.get(name, name): value for name, value in shared.items() if name not in left_out}
    return {**facts, "entry": 0, "kind": "exchange"}


def _target_columns(target: Target | None) -> Document:
    return {
        "provider_name": target.provider if target else None,
        "response_model": target.model if target else None,
        "region": target.region if target else None,
    }


def _usage_columns(usage: Usage | None) -> Document:
    counts: dict[str, Any] = {name: getattr(usage, name) if usage else 0 for name in TOKEN_CLASSES}  # ints, one str
    counts["usage_provenance"] = usage.provenance if usage else None
    return counts


def _cost_columns(cost: Cost | None) -> Document:
    return {
        "cost_usd": _amount(cost),
        "cost_provenance": cost.provenance if cost else None,
        "price_source": cost.price_source if cost else None,
    }


def _error_columns(error: LLMProxyError | None) -> Document:
    if error is None:
        return {"error_type": None, "error_code": None, "error_message": None}
    return {"error_type": error.type, "error_code": error.error_code, "error_message": _message(error)}


def _message(error: LLMProxyError) -> str:
    return error.message[:_MAX_MESSAGE_CHARACTERS]


def _amount(cost: Cost | None) -> str | None:
    return None if cost is None or cost.amount_usd is None else f"{cost.amount_usd:f}"


def _bodies(exchange: Exchange, bodies: Bodies) -> Document:
    if bodies.request is None and bodies.response is None:
        return {}
    row: Document = {"request_id": exchange.id, "admitted_at": exchange.admitted_at.isoformat()}
    for name, capture in (("request", bodies.request), ("response", bodies.response)):
        row[name] = base64.b64encode(capture.kept).decode() if capture else None
        row[f"{name}_truncated"] = capture.is_truncated if capture else False
    return {"bodies": row}
