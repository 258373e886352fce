"""What the gateway says of an exchange in the head of its response."""

from __future__ import annotations

from llmproxy.dialects.openai_errors import error_headers
from llmproxy.errors import LLMProxyError, UpstreamTimeout
from llmproxy.exchange import Attempt, Exchange
from llmproxy.request import Headers


def answer_head(exchange: Exchange, now_monotonic: float) -> Headers:
    """Who answered, after how many attempts that were sent, and what the gateway itself took."""
    answer, attempts = exchange.answer, [attempt for attempt in exchange.attempts if attempt.is_sent]
    overhead_seconds = now_monotonic - exchange.started_monotonic - sum(map(_upstream_seconds, attempts))
    head = [
        ("x-llmproxy-request-id", exchange.id),
        ("x-llmproxy-attempts", str(len(attempts))),
        ("x-llmproxy-overhead-ms", f"{max(0.0, overhead_seconds) * 1000:.2f}"),
        *exchange.response_headers,
    ]
    if attempts and (answer is None or attempts[-1].error is None):
        target = attempts[-1].target
        head += [("x-llmproxy-provider", target.provider), ("x-llmproxy-model", target.name)]
    if attempts and attempts[-1].dropped:
        head.append(("x-llmproxy-dropped", ", ".join(attempts[-1].dropped)))
    if answer is not None and answer.cache is not None:
        head.append(("x-llmproxy-cache", answer.cache))
    return head


def cost_header(exchange: Exchange) -> Headers:
    """What a whole answer cost: 0 when no provider was asked, and nothing when that is not known."""
    cost = exchange.cost
    if cost is None and not any(attempt.is_sent for attempt in exchange.attempts):
        return [("x-llmproxy-cost-usd", "0")]
    return [("x-llmproxy-cost-usd", f"{cost.amount_usd:f}")] if cost and cost.amount_usd is not None else []


def refusal_head(exchange: Exchange, error: LLMProxyError, now_monotonic: float) -> Headers:
    """The head of an error: what the provider said of its limits, and whether asking again can help."""
    attempts = exchange.attempts
    relayed = next((attempt.headers for attempt in attempts if attempt.error is error), ())
    head = [*error_headers(error), *answer_head(exchange, now_monotonic)]
    head += [(name, value) for name, value in relayed if not name.startswith("retry-after")]
    if len(attempts) > 1 or _is_out_of_patience(exchange, error):
        # SDKs retry by themselves, which would multiply our attempts, or the time the client said it would wait.
        head.append(("x-should-retry", "false"))
    return head


def _is_out_of_patience(exchange: Exchange, error: LLMProxyError) -> bool:
    return isinstance(error, UpstreamTimeout) and error.phase == "total" and "x-llmproxy-timeout" in exchange.headers


def _upstream_seconds(attempt: Attempt) -> float:
    return attempt.duration_seconds or attempt.first_chunk_seconds or 0.0
