"""What the journal holds of an exchange: one document when it is let in, one when it has ended.

The ending document has the columns of `requests`, `attempts`, `ledger_entries` and `request_bodies` as its keys,
so that shipping it needs no knowledge of exchanges, and replaying it none of how it came about.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from orjson import Fragment

from llmproxy import estimate
from llmproxy.body_cipher import BodyCipher
from llmproxy.errors import LLMProxyError, UpstreamError
from llmproxy.exchange import Attempt, Exchange, Target
from llmproxy.request import Document, Operation
from llmproxy.stream import BodyCapture
from llmproxy.usage import USAGE_CLASSES, Cost, Usage

_MAX_MESSAGE_CHARACTERS: Final = 1000
# What of an exchange's facts its rows in the ledger have.
_OF_THE_LEDGER: Final = ("workspace", "key_id", "feature", "user_id", "tags", "operation_name", "request_model")
# The fields of `Usage`, in order; of the tables only the ledger has the last two.
_USAGE_COLUMNS: Final = (*USAGE_CLASSES, "usage_provenance", "service_tier", "service_region")
# What of an admission is no column.
_OF_THE_ADMISSION: Final = ("max_output_tokens", "holds_attempts", "held")


@dataclass(frozen=True, slots=True)
class Bodies:
    """The bodies to keep of one exchange, as far as its workspace wants them, and what encrypts them."""

    request: BodyCapture | None = None
    response: BodyCapture | None = None
    cipher: BodyCipher | None = None


def facts_of(exchange: Exchange) -> Document:
    """What is known of an exchange from the moment it is let in: both of its documents begin with it."""
    attribution, principal, request = exchange.attribution, exchange.principal, exchange.request
    return {
        "id": exchange.id,
        "admitted_at": exchange.admitted_at.isoformat(),
        "operation_name": exchange.operation,
        "workspace": principal.workspace,
        "key_id": principal.key_id,
        "feature": attribution.feature,
        "user_id": attribution.user,
        "session_id": attribution.session,
        "prompt_version": attribution.prompt_version,
        "tags": attribution.tags,
        "metadata": dict(attribution.metadata),
        "trace_id": attribution.trace_id,
        "request_model": request.model,
        "origin": exchange.origin,
        "parent_id": exchange.parent_id,
        "path": exchange.path,
        "is_stream": request.is_stream,
        "request_bytes": request.size_bytes,
    }


def admission(exchange: Exchange, facts: Document, *, holds_attempts: bool = False) -> Document:
    """The document written when an exchange is let in: enough to settle it should nothing else ever be written.

    Args:
        facts: Those of the exchange.
        holds_attempts: Whether every attempt is written before it is made.
    """
    return {**facts, "max_output_tokens": _max_output_tokens(exchange), "holds_attempts": holds_attempts}


def hold(exchange: Exchange, charges: Sequence[Fragment]) -> Document:
    """The document written when an attempt is about to be made for which something was reserved.

    Args:
        charges: What of which allowance is charged should nothing else ever be written.
    """
    attempts = [charge for attempt in exchange.attempts if (charge := _held(attempt))]
    return {"attempts": attempts, "charges": charges}


def charged(target: Target | None, cost: Cost | None, usage: Usage | None) -> Document:
    """What an attempt was charged, as columns of its row."""
    return {**_target_columns(target), **_usage_columns(usage), **_cost_columns(cost)}


def completion(exchange: Exchange, facts: Document, http_status: int, response_bytes: int, bodies: Bodies) -> Document:
    """The document written when an exchange has ended, complete in itself.

    Args:
        facts: Those of the exchange, from when it was let in.
    """
    answered = next((a for a in reversed(exchange.attempts) if a.error is None), None)
    charge = {**_usage_columns(exchange.usage), **_cost_columns(exchange.cost)}
    main = {**_target_columns(answered.target if answered else exchange.target), **charge}
    request = {
        **facts,
        **main,
        **_error_columns(exchange.error),
        # A plugin may have edited the request since.
        "request_model": exchange.request.model,
        "is_stream": exchange.request.is_stream,
        "outcome": exchange.outcome,
        "http_status": http_status,
        "finish_reasons": answered.finish_reasons if answered else (),
        "cache": exchange.answer.cache if exchange.answer else None,
        "attempts": len(exchange.attempts),
        "duration_seconds": exchange.duration_seconds,
        "first_chunk_seconds": exchange.first_chunk_seconds,
        "response_bytes": response_bytes,
        "decisions": [{"by": d.by, "what": d.what, "why": d.why} for d in exchange.decisions],
    }
    return {
        "request": request,
        "attempts": [_attempt(facts, attempt, _own_charge(exchange, attempt, charge)) for attempt in exchange.attempts],
        "ledger": _ledger_rows(exchange, answered, request, main),
        **_bodies(exchange, bodies),
    }


def interrupted(admitted: Document, attempts: Sequence[Document], charges: Sequence[Document] = ()) -> Document:
    """The ending of an exchange whose worker died: settled with what it may have cost at most.

    Args:
        attempts: What each attempt is `charged`, the one whose answer the client may have had last.
        charges: What of which allowance is charged.
    """
    facts = {key: value for key, value in admitted.items() if key not in _OF_THE_ADMISSION}
    *others, main = [charged(None, None, None) | each for each in attempts or [{}]]
    amounts = [Decimal(each["cost_usd"]) for each in attempts if each["cost_usd"] is not None]
    total = f"{sum(amounts):f}" if amounts and len(amounts) == len(attempts) else None
    request = {
        **facts,
        **main,
        "cost_usd": total,
        "outcome": "interrupted",
        "error_type": "server_error",
        "error_code": "interrupted",
        "error_message": "The worker stopped before this request had ended.",
        "finish_reasons": [],
        "attempts": 0,
        "decisions": [],
    }
    ledger = [_ledger(facts, main), *(_ledger(facts, other, number) for number, other in enumerate(others, 1))]
    return {"request": request, "attempts": [], "ledger": ledger, **({"charges": charges} if charges else {})}


def _held(attempt: Attempt) -> Document | None:
    """What an attempt is charged as things stand: what it used, or while it is under way the most it may use."""
    if attempt.is_over:
        return charged(attempt.target, attempt.cost, attempt.usage) if attempt.usage else None
    if attempt.reserved is None:
        return None
    input_tokens, output_tokens, amount_usd, price_source = attempt.reserved
    target = attempt.target
    # What is not here is nothing: this is written for every attempt.
    return {
        "provider_name": target.provider,
        "response_model": target.model,
        "region": target.region,
        "uncached_input_tokens": input_tokens,
        "text_output_tokens": output_tokens,
        "usage_provenance": "assumed",
        "cost_usd": None if amount_usd is None else f"{amount_usd:f}",
        "cost_provenance": "assumed",
        "price_source": price_source,
    }


def _max_output_tokens(exchange: Exchange) -> int | None:
    return 0 if exchange.operation is Operation.EMBEDDINGS else estimate.max_output_tokens(exchange.request.document)


def _own_charge(exchange: Exchange, attempt: Attempt, charge: Document) -> Document:
    """What an attempt was charged; the only one, as most are, what the exchange was."""
    if attempt.usage is exchange.usage and attempt.cost is exchange.cost:
        return charge
    return {**_usage_columns(attempt.usage), **_cost_columns(attempt.cost)}


def _attempt(facts: Document, attempt: Attempt, charge: Document) -> Document:
    error = attempt.error
    return {
        "request_id": facts["id"],
        "admitted_at": facts["admitted_at"],
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
        "finish_reasons": attempt.finish_reasons,
        "credential": attempt.target.credential,
        **charge,
    }


def _ledger_rows(exchange: Exchange, answered: Attempt | None, request: Document, main: Document) -> list[Document]:
    """One row for the exchange, with the attempt that answered, and one for each other attempt that is charged."""
    if len(exchange.attempts) < 2:
        return [_ledger(request, main)]
    found = [attempt for attempt in exchange.attempts if attempt.usage is not None]
    own = answered if answered in found or not found else found[-1]
    rows = [_ledger(request, _charge_of(own) if own else main)]
    return rows + [_ledger(request, _charge_of(other), other.number) for other in found if other is not own]


def _charge_of(attempt: Attempt) -> Document:
    return charged(attempt.target, attempt.cost, attempt.usage)


def _ledger(facts: Document, charge: Document, attempt: int = 0) -> Document:
    """What was charged, under the ledger's own names: for the exchange, or for an attempt beside the one it used."""
    row = {
        "request_id": facts["id"],
        "occurred_at": facts["admitted_at"],
        "entry": attempt,
        "kind": "attempt" if attempt else "exchange",
        **{name: facts.get(name) for name in _OF_THE_LEDGER},
        **charge,
    }
    row["amount_usd"] = row.pop("cost_usd")
    del row["region"]
    return row


def _target_columns(target: Target | None) -> Document:
    return {
        "provider_name": target.provider if target else None,
        "response_model": target.model if target else None,
        "region": target.region if target else None,
    }


def _usage_columns(usage: Usage | None) -> Document:
    """Without what was not used: most classes are zero, and would be written, parsed and stored three times over."""
    return {name: value for name, value in zip(_USAGE_COLUMNS, usage, strict=True) if value} if usage else {}


def _cost_columns(cost: Cost | None) -> Document:
    return {
        "cost_usd": _amount(cost),
        "cost_provenance": cost.provenance if cost else None,
        "price_source": cost.price_source if cost else None,
    }


def _error_columns(error: LLMProxyError | None) -> Document:
    if error is None:
        return {}
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
        row[name] = base64.b64encode(_kept(exchange, bodies, name, capture)).decode() if capture else None
        row[f"{name}_truncated"] = capture.is_truncated if capture else False
    return {"bodies": row}


def _kept(exchange: Exchange, bodies: Bodies, name: str, capture: BodyCapture) -> bytes:
    return bodies.cipher.encrypt(exchange.id, name, capture.kept) if bodies.cipher else capture.kept
