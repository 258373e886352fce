"""What requests and their attempts take of their limits, and what they are told when there is no room."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple

from llmproxy.api import (
    AllowanceExhausted,
    Attempt,
    Claim,
    Exchange,
    LLMProxyError,
    RateLimited,
    Services,
    StateKey,
    StorageError,
    UpstreamWithheld,
)
from llmproxy_plugins.rate_limits.headers import Told
from llmproxy_plugins.rate_limits.limits import Limits, Plan, Rule
from llmproxy_plugins.rate_limits.reopening import Reopening
from llmproxy_plugins.rate_limits.settings import RateLimitsConfig
from llmproxy_plugins.rate_limits.windows import Window

NAME: Final = "rate_limits"
_BYTES_PER_TOKEN: Final = 4
_ZERO: Final = Decimal(0)

# When a limit has no room: what clients are told of in place of all that they are held to.
REFUSED: Final = StateKey[Sequence[tuple[Rule, Window]] | None]("rate_limits.refused")


class Counter(NamedTuple):
    """What all that is counted has in common."""

    config: RateLimitsConfig
    limits: Limits
    services: Services
    reopening: Reopening


class Counting(Claim):
    """What one plan has requests, or their attempts, take: what is likely, and given back as far as it is not used."""

    def __init__(self, plan: Plan, at: datetime, counter: Counter) -> None:
        self.plan: Final = plan
        self.allowances, self.since, self.until = counter.limits.allowances(plan, at)
        self.fail_open = counter.config.fail == "open"
        self.told: Final = tuple(
            Told.of(*counted, each) for counted, each in zip(plan.counted, self.allowances, strict=True)
        )
        self._counter = counter

    def amounts(self, exchange: Exchange, attempt: Attempt | None) -> Sequence[Decimal]:
        """One request, or what tokens an attempt is likely to take."""
        plan = self.plan
        if attempt is None:
            return plan.ones
        if exchange.state.get(REFUSED) is not None:
            # It was another target's limit that had no room.
            exchange.state[REFUSED] = None
        if not plan.counts_tokens:
            return plan.ones
        most = self._counter.config.assumed_output_tokens
        worst = attempt.worst_case(most)
        # The worst case counts every byte of text as a token, and knows what images take; here it is what is likely.
        likely = max(1, min(worst.input_tokens, attempt.request.size_bytes // _BYTES_PER_TOKEN))
        return plan.amounts(likely, min(worst.output_tokens, most))

    def used(self, exchange: Exchange, attempt: Attempt | None, reserved: Sequence[Decimal]) -> Sequence[Decimal]:
        """What was used, as far as it was reserved; for what is beyond that room is looked for afterwards."""
        plan = self.plan
        if attempt is None:
            # Refused by one limit, it has taken nothing of any other; what went to a provider has been used.
            is_used = exchange.state.get(REFUSED) is None or any(each.is_sent for each in exchange.attempts)
            return reserved if is_used else plan.zeros
        if not plan.counts_tokens:
            return reserved if attempt.is_sent else plan.zeros
        used = plan.used(attempt)
        parts = zip(plan.counted, reserved, used, strict=True)
        overrun = [(*counted, actual - amount) for counted, amount, actual in parts if actual > amount]
        if overrun:
            self._counter.services.tasks.start("rate limit overrun", self._charge(exchange, overrun))
        return list(map(min, reserved, used))

    async def refusal(
        self, exchange: Exchange, attempt: Attempt | None, exhausted: AllowanceExhausted
    ) -> LLMProxyError:
        """Which limit has no room, and when it will; never, if it is too small for the request."""
        allowance = exhausted.allowance
        number = next(n for n, each in enumerate(self.allowances) if each.name == allowance.name)
        (rule, window), amount = self.plan.counted[number], self.amounts(exchange, attempt)[number]
        exchange.state[REFUSED] = [(rule, window)]
        if amount > rule.cap:
            exchange.response_headers.append(("x-should-retry", "false"))
            exchange.decide(NAME, "refused", f"the {rule} has never room for {amount}")
            sentence = f"The {rule} is less than this request is likely to take, {amount}; ask for less at a time."
            return _refused(rule, RateLimited(sentence))
        return refusal(exchange, rule, await self._counter.reopening.seconds(allowance, window, amount))

    async def _charge(self, exchange: Exchange, overrun: Sequence[tuple[Rule, Window, Decimal]]) -> None:
        """Take what was used beyond what was likely, in whichever window that is, as far as there is room for it."""
        services = self._counter.services
        for rule, window, amount in overrun:
            allowance = self._counter.limits.allowance(rule, window, services.clock.now())
            [room] = services.quotas.remaining([allowance])
            wanted = amount if room is None else min(amount, room)
            if wanted <= 0:
                continue
            try:
                reservation = await services.quotas.reserve(exchange, [allowance], [wanted])
                reservation.settle([wanted])
            except (AllowanceExhausted, StorageError):
                services.log.warning("rate_limit_overrun_not_counted", request_id=exchange.id, limit=rule.name)


def refusal(exchange: Exchange, rule: Rule, seconds: float) -> LLMProxyError:
    """What a request is refused with that comes too early."""
    exchange.decide(NAME, "refused", f"the {rule} has no room")
    sentence = f"The {rule} is reached; try again in {seconds:.3g} s."
    return _refused(rule, RateLimited(sentence, retry_after_seconds=seconds))


def _refused(rule: Rule, refused: RateLimited) -> LLMProxyError:
    """For the client; where it is the target that has no room, for whoever looks for another target first."""
    return UpstreamWithheld(refused) if rule.limit.is_of_targets else refused
