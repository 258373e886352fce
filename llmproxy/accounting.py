"""What an exchange used and cost: each attempt on its own, then their sum. Pure, and safe to do twice."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from llmproxy import estimate
from llmproxy.errors import UpstreamRefused, UpstreamSuperseded, UpstreamTimeout
from llmproxy.exchange import Attempt, Cost, Exchange, Operation, StreamProgress, Target, Usage
from llmproxy.pricing import PriceBook
from llmproxy.providers import Endpoints
from llmproxy.services import Clock


class Accounting:
    """Usage and cost, from what providers said and what they charge."""

    def __init__(self, endpoints: Endpoints, prices: PriceBook, clock: Clock) -> None:
        self._endpoints = endpoints
        self._prices = prices
        self._clock = clock

    def settle(self, exchange: Exchange) -> None:
        """Fill in usage and cost of every attempt, and of the exchange as a whole."""
        for attempt in exchange.attempts:
            self.settle_attempt(exchange, attempt)
        used = [attempt for attempt in exchange.attempts if attempt.usage is not None]
        exchange.usage = used[-1].usage if used else None
        exchange.cost = total([attempt.cost for attempt in used if attempt.cost is not None])

    def cost(self, target: Target, usage: Usage) -> Cost:
        """What this usage costs at a target; unpriced when no price is known."""
        provider = self._endpoints.get((target.provider, target.credential))
        price_provider = provider.price_provider if provider else None
        price_model = provider.price_model(target.model) if provider else None
        prices = self._prices.prices(target, price_provider, self._clock.now(), price_model=price_model)
        return self._prices.cost(usage, prices)

    def settle_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Fill in usage and cost of one attempt."""
        if attempt.cost is not None and attempt.progress is None:
            # A whole answer's usage does not change any more, and pricing it is dear.
            return
        if attempt.progress is not None:
            attempt.finish_reasons = attempt.progress.finish_reasons
            attempt.usage = self._streamed_usage(attempt, attempt.progress)
        if attempt.usage is None and was_served(attempt):
            attempt.usage = estimate.estimated(exchange.request.size_bytes, _output_tokens(exchange, attempt))
        if attempt.usage is not None:
            attempt.cost = self.cost(attempt.target, attempt.usage)

    def _streamed_usage(self, attempt: Attempt, progress: StreamProgress) -> Usage | None:
        """What a stream told of its usage; of one that was cut, at least what was seen."""
        if progress.usage is None:
            return None
        told = self._endpoints[attempt.target.provider, attempt.target.credential].usage(progress.usage)
        if told is None or progress.is_complete or told.output_tokens >= progress.estimated_tokens:
            return told
        unseen_tokens = progress.estimated_tokens - told.output_tokens
        return replace(told, text_output_tokens=told.text_output_tokens + unseen_tokens, provenance="estimated")


def was_served(attempt: Attempt) -> bool:
    """Whether the provider will charge for an attempt that told no usage: it had the request, and did not refuse it."""
    if not attempt.is_sent:
        return False
    if attempt.progress is not None and attempt.progress.has_content:
        return True
    if isinstance(attempt.error, UpstreamSuperseded):
        return True
    if isinstance(attempt.error, UpstreamTimeout):
        return attempt.error.phase != "connect"
    if isinstance(attempt.error, UpstreamRefused):
        return False
    return attempt.error is None or (attempt.status is not None and 200 <= attempt.status < 300)


def total(costs: list[Cost]) -> Cost | None:
    """The sum of some costs: as certain as the least certain of them, and unpriced when any of them is."""
    if not costs:
        return None
    amounts = [cost.amount_usd for cost in costs]
    amount = None if None in amounts else sum((a for a in amounts if a is not None), Decimal(0))
    provenance = max((cost.provenance for cost in costs), key=("measured", "estimated", "assumed").index)
    return Cost(amount, provenance, costs[-1].price_source)


def _output_tokens(exchange: Exchange, attempt: Attempt) -> int:
    if attempt.request.operation is Operation.EMBEDDINGS:
        return 0
    if attempt.progress is not None:
        return attempt.progress.estimated_tokens
    answered = exchange.answer is not None and attempt.error is None and attempt is exchange.attempts[-1]
    return estimate.tokens_in(len(exchange.answer.body)) if answered and exchange.answer else 0
