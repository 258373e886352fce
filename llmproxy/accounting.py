"""What an exchange used and cost: each attempt on its own, then their sum. Pure, and safe to do twice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

from llmproxy.allowances import WorstCase
from llmproxy.ceilings import input_ceiling_tokens, output_ceiling_tokens, search_ceiling
from llmproxy.errors import UpstreamRefused, UpstreamSuperseded, UpstreamTimeout
from llmproxy.estimate import CountTokens, Estimator
from llmproxy.exchange import Attempt, Exchange, StreamProgress, Target
from llmproxy.offers import Offers
from llmproxy.prices import Prices, is_empty
from llmproxy.pricing import PriceBook
from llmproxy.providers import Endpoints
from llmproxy.request import Document, Operation, Request
from llmproxy.service_tiers import USUAL_TIERS, possible_tiers, service_tier
from llmproxy.services import Clock
from llmproxy.usage import Cost, Usage

_CHARGED_OTHERWISE: Final = frozenset({"tools", "web_search_options", "service_tier", "speed"})


class Accounting:
    """Usage and cost, from what providers said and what they charge.

    Args:
        count_tokens: The tokenizer for what no provider told; without one it is estimated from sizes.
    """

    def __init__(
        self, endpoints: Endpoints, prices: PriceBook, clock: Clock, count_tokens: CountTokens | None = None
    ) -> None:
        self._endpoints = endpoints
        self._offers = Offers(prices)
        self._clock = clock
        self._estimator = Estimator(count_tokens)

    def settle(self, exchange: Exchange) -> None:
        """Fill in usage and cost of every attempt, and of the exchange as a whole."""
        usage, costs = None, []
        for attempt in exchange.attempts:
            # What is over was settled when it ended: priced again, it could differ from what its budgets were charged.
            if not attempt.is_over:
                self.settle_attempt(exchange, attempt)
            if attempt.usage is not None:
                usage = attempt.usage
                if attempt.cost is not None:
                    costs.append(attempt.cost)
        exchange.usage = usage
        exchange.cost = total(costs)

    def cost(self, target: Target, usage: Usage, at: datetime | None = None) -> Cost:
        """What this usage costs at a target, now or at another time; unpriced when no price is known."""
        prices = self.prices(target, at or self._clock.now(), usage.service_tier, usage.region)
        return PriceBook.cost(usage, prices)

    def prices(
        self, target: Target, at: datetime, service_tier: str | None = None, region: str | None = None
    ) -> Prices | None:
        """What a target costs at a time, served in a tier and a region that the answer names; None when not known."""
        provider = self._endpoints.get((target.provider, target.credential))
        return self._offers.prices(provider, target, at, service_tier, region)

    def ceiling(self, target: Target, at: datetime) -> Ceiling:
        """The way to the most that requests can use and cost at a target, in whichever tier and region it serves."""
        return Ceiling(self._offers, self._endpoints, target, at)

    def settle_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Fill in usage and cost of one attempt."""
        if attempt.cost is not None and attempt.progress is None:
            # A whole answer's usage does not change any more, and pricing it is dear.
            return
        if attempt.progress is not None:
            attempt.finish_reasons = attempt.progress.finish_reasons
            attempt.usage = self._streamed_usage(attempt, attempt.progress)
        if attempt.usage is not None and is_empty(attempt.usage):
            # No request is without a token: this one's were not told.
            attempt.usage = None
        if attempt.usage is None and was_served(attempt):
            attempt.usage = self._guessed_usage(exchange, attempt)
        if attempt.usage is not None:
            # By the price at its beginning, which was reserved: settling again later comes to the same.
            attempt.cost = self.cost(attempt.target, attempt.usage, attempt.started_at)

    def _streamed_usage(self, attempt: Attempt, progress: StreamProgress) -> Usage | None:
        """What a stream told of its usage; of one that was cut, at least what was seen."""
        if progress.usage is None:
            return None
        told = self._endpoints[attempt.target.provider, attempt.target.credential].usage(progress.usage)
        if told is None or progress.is_complete:
            return told
        unseen_tokens = self._estimator.streamed_tokens(progress) - told.output_tokens
        if unseen_tokens <= 0:
            return told
        return told._replace(text_output_tokens=told.text_output_tokens + unseen_tokens, provenance="estimated")

    def _guessed_usage(self, exchange: Exchange, attempt: Attempt) -> Usage:
        usage = self._estimated_usage(exchange, attempt)
        asked = None if "service_tier" in attempt.dropped else attempt.request.document.get("service_tier")
        return usage._replace(service_tier=service_tier(asked))

    def _estimated_usage(self, exchange: Exchange, attempt: Attempt) -> Usage:
        request, estimator = attempt.request, self._estimator
        if attempt.progress is not None:
            return estimator.estimated(request, estimator.streamed_tokens(attempt.progress))
        if exchange.answer is not None and attempt.error is None and attempt is exchange.attempts[-1]:
            is_vectors = request.operation is Operation.EMBEDDINGS
            return estimator.estimated(request, 0 if is_vectors else estimator.answer_tokens(exchange.answer.body))
        if request.is_stream:
            return estimator.estimated(request, 0)
        return estimator.unseen(request, attempt.duration_seconds or 0.0)


class Ceiling:
    """The most that one attempt can use and cost, asked by whoever reserves something: nothing is reckoned twice."""

    __slots__ = (
        *("_asked", "_at", "_document", "_endpoints", "_facts", "_input_tokens", "_offers", "_possible", "_target"),
        *("_units", "_worst_case"),
    )

    def __init__(self, offers: Offers, endpoints: Endpoints, target: Target, at: datetime) -> None:
        self._offers = offers
        self._endpoints = endpoints
        self._target = target
        self._at = at
        self._document: Document | None = None
        self._worst_case: WorstCase | None = None
        self._asked = 0

    def __call__(self, request: Request, default_output_tokens: int) -> WorstCase:
        """The worst case of a request as it stands.

        Args:
            default_output_tokens: What an answer may have when neither the request nor the model sets a limit.
        """
        known = self._worst_case
        if request.document is not self._document:
            # An edit makes a new document.
            self._look_at(request)
            known = None
        elif known is not None and default_output_tokens == self._asked:
            return known
        output_tokens = output_ceiling_tokens(request, self._facts.max_output_tokens, default_output_tokens)
        if known is None or output_tokens != known.output_tokens:
            known = self._worst(output_tokens)
        self._worst_case, self._asked = known, default_output_tokens
        return known

    def _look_at(self, request: Request) -> None:
        """All that does not depend on how much may be written."""
        document = self._document = request.document
        provider = self._endpoints[self._target.provider, self._target.credential]
        self._facts = self._offers.facts(provider, self._target.model)
        self._input_tokens = input_ceiling_tokens(request, self._facts.context_window_tokens)
        searches, tiers = 0, USUAL_TIERS
        # Most requests ask for none of this, for which it need not be looked at one by one.
        if not _CHARGED_OTHERWISE.isdisjoint(document):
            searches = search_ceiling(document)
            tiers = possible_tiers(document.get("service_tier"), document.get("speed"))
        self._units = {"web_searches": searches} if searches else None
        self._possible = self._offers.possible(provider, self._target, self._at, tiers)

    def _worst(self, output_tokens: int) -> WorstCase:
        input_tokens, possible, most_usd = self._input_tokens, self._possible, None
        for prices in possible.prices if possible.is_known else ():
            amount_usd = prices.ceiling_usd(input_tokens, output_tokens, self._units)
            if amount_usd is None:
                return WorstCase(input_tokens, output_tokens, None)
            most_usd = amount_usd if most_usd is None or amount_usd > most_usd else most_usd
        source = None if most_usd is None else possible.prices[0].source
        return WorstCase(input_tokens, output_tokens, most_usd, source)


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


def total(costs: Sequence[Cost]) -> Cost | None:
    """The sum of some costs: as certain as the least certain of them, and unpriced when any of them is."""
    if len(costs) < 2:
        return costs[0] if costs else None
    amounts = [cost.amount_usd for cost in costs]
    amount = None if None in amounts else sum((a for a in amounts if a is not None), Decimal(0))
    provenance = max((cost.provenance for cost in costs), key=("measured", "estimated", "assumed").index)
    return Cost(amount, provenance, costs[-1].price_source)
