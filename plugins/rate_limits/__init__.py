"""Rate limits: how many requests and tokens, in which time and at the same time, for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from llmproxy.api import (
    AllowanceExhausted,
    Attempt,
    Exchange,
    LLMProxyError,
    RateLimited,
    Reservation,
    Services,
    StateKey,
    StorageError,
    UpstreamWithheld,
    hookimpl,
)
from llmproxy_plugins.rate_limits.headers import Standing, say
from llmproxy_plugins.rate_limits.limits import SLOTS, Limits, Plan, Rule
from llmproxy_plugins.rate_limits.reopening import Reopening
from llmproxy_plugins.rate_limits.settings import RateLimitsConfig
from llmproxy_plugins.rate_limits.slots import Slots, SlotsTaken
from llmproxy_plugins.rate_limits.windows import Window

# When one of the requests under way ends nobody knows.
SLOT_SECONDS: Final = 1.0
_BYTES_PER_TOKEN: Final = 4
_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class Hold:
    """What a request, or one of its attempts, has of its limits: so much of each that its plan counts."""

    plan: Plan
    amounts: Sequence[Decimal]
    reservation: Reservation | None = None


@dataclass(slots=True)
class Held:
    """What an exchange has of its limits.

    Attributes:
        refused: When a limit has no room, what clients are told of in place of all that they are held to.
        overrun: What attempts have used beyond what was reserved for them.
    """

    request: Hold | None = None
    attempts: dict[int, Hold] = field(default_factory=dict)
    refused: Plan | None = None
    overrun: list[tuple[Rule, Window, Decimal]] = field(default_factory=list)


HELD: Final = StateKey[Held]("rate_limits.held")


class RateLimits:
    """The plugin: takes from every limit that a request is held to, or from none; and gives back what was not used."""

    name = "rate_limits"
    Config = RateLimitsConfig
    migrations = Path(__file__).parent / "migrations"

    def __init__(self, config: RateLimitsConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.limits = Limits(config.limits)
        self.slots = Slots(services)
        self.reopening = Reopening(services)
        self.fail_open = config.fail == "open"

    @hookimpl
    def startup(self) -> None:
        """Begin to share slots, if there are any."""
        if any(unit in limit.caps for limit in self.config.limits for unit in SLOTS):
            self.slots.start()

    @hookimpl
    async def shutdown(self) -> None:
        """Give back all slots."""
        await self.slots.stop()

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        """Let a client's request in, or refuse it."""
        if exchange.origin is not None:
            # The client's own request, which this one is made for, has been let in.
            return
        plan = self.limits.plan(exchange)
        if plan.counted or plan.slots:
            held = exchange.state[HELD] = Held()
            held.request = await self._take(exchange, held, plan, plan.ones)

    @hookimpl
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Reserve what the attempt is likely to take, or refuse the request."""
        plan = self.limits.plan(exchange, attempt.target)
        if not plan.counted and not plan.slots:
            return
        held = exchange.state.get(HELD)
        if held is None:
            held = exchange.state[HELD] = Held()
        held.refused = None
        held.attempts[attempt.number] = await self._take(exchange, held, plan, self._estimate(attempt, plan))

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Settle what the attempt has used."""
        held = exchange.state.get(HELD)
        hold = held.attempts.get(attempt.number) if held else None
        if held is None or hold is None:
            return
        if hold.plan.slots:
            self.slots.release(hold.plan.slots)
        used = hold.plan.used(attempt)
        if hold.reservation is not None:
            hold.reservation.settle(list(map(min, hold.amounts, used)))
        # What is beyond the estimate has its turn in on_complete, in whichever window that is.
        for counted, amount, actual in zip(hold.plan.counted, hold.amounts, used, strict=True):
            if actual > amount:
                held.overrun.append((*counted, actual - amount))

    @hookimpl
    def on_response_head(self, exchange: Exchange) -> None:
        """Tell the client of its own limits, in place of the gateway's at the provider."""
        held = exchange.state.get(HELD)
        if held is None:
            return
        if held.refused is not None:
            plans = [held.refused]
        else:
            plans = [held.request.plan] if held.request is not None else []
            if held.attempts:
                plans.append(held.attempts[max(held.attempts)].plan)
        now = self.services.clock.now()
        say(exchange, self._tightest(plans, now), now)

    @hookimpl
    def on_complete(self, exchange: Exchange) -> None:
        """Free the slots, and take what was used beyond the estimates, as far as there is room for it."""
        held = exchange.state.get(HELD)
        if held is None:
            return
        if (own := held.request) is not None:
            if own.plan.slots:
                self.slots.release(own.plan.slots)
            # Refused by one limit, it has taken nothing of any other; what went to a provider has been used.
            is_used = held.refused is None or any(attempt.is_sent for attempt in exchange.attempts)
            if own.reservation is not None:
                own.reservation.settle(own.amounts if is_used else own.plan.zeros)
        if held.overrun:
            self.services.tasks.start("rate limit overrun", self._charge(exchange, held.overrun))

    # Small print

    async def _take(self, exchange: Exchange, held: Held, plan: Plan, amounts: Sequence[Decimal]) -> Hold:
        """All that is wanted, or nothing. Raises RateLimited, UpstreamWithheld and StorageError."""
        if plan.slots:
            await self._acquire(exchange, held, plan)
        hold = Hold(plan, amounts)
        if not plan.counted:
            return hold
        allowances = plan.allowances(self.services.clock.now())
        try:
            hold.reservation = await self.services.quotas.reserve(
                exchange, allowances, amounts, fail_open=self.fail_open
            )
        except BaseException as error:
            self.slots.release(plan.slots)
            if isinstance(error, AllowanceExhausted):
                raise await self._exhausted(exchange, held, hold, error) from None
            raise
        return hold

    async def _acquire(self, exchange: Exchange, held: Held, plan: Plan) -> None:
        try:
            await self.slots.acquire(plan.slots, fail_open=self.fail_open)
        except SlotsTaken as taken:
            held.refused = Plan([], self.limits.allowance)
            raise self._refusal(exchange, taken.rule, SLOT_SECONDS) from None

    async def _exhausted(self, exchange: Exchange, held: Held, hold: Hold, error: AllowanceExhausted) -> LLMProxyError:
        allowance = error.allowance
        number = next(n for n, (rule, _) in enumerate(hold.plan.counted) if rule.name == allowance.name)
        (rule, window), amount = hold.plan.counted[number], hold.amounts[number]
        held.refused = Plan([rule], self.limits.allowance)
        if amount > rule.cap:
            exchange.response_headers.append(("x-should-retry", "false"))
            exchange.decide(self.name, "refused", f"the {rule} has never room for {amount}")
            sentence = f"The {rule} is less than this request is likely to take, {amount}; ask for less at a time."
            return _refused(rule, RateLimited(sentence))
        return self._refusal(exchange, rule, await self.reopening.seconds(allowance, window, amount))

    def _refusal(self, exchange: Exchange, rule: Rule, seconds: float) -> LLMProxyError:
        exchange.decide(self.name, "refused", f"the {rule} has no room")
        sentence = f"The {rule} is reached; try again in {seconds:.3g} s."
        return _refused(rule, RateLimited(sentence, retry_after_seconds=seconds))

    def _estimate(self, attempt: Attempt, plan: Plan) -> Sequence[Decimal]:
        if not plan.counts_tokens:
            return plan.ones
        worst = attempt.worst_case(self.config.assumed_output_tokens)
        # The worst case counts every byte of text as a token, and knows what images take; here it is what is likely.
        likely = max(1, min(worst.input_tokens, attempt.request.size_bytes // _BYTES_PER_TOKEN))
        return plan.amounts(likely, min(worst.output_tokens, self.config.assumed_output_tokens))

    async def _charge(self, exchange: Exchange, overrun: Sequence[tuple[Rule, Window, Decimal]]) -> None:
        for rule, window, amount in overrun:
            allowance = self.limits.allowance(rule, window, self.services.clock.now())
            [room] = self.services.quotas.remaining([allowance])
            wanted = amount if room is None else min(amount, room)
            if wanted <= 0:
                continue
            try:
                reservation = await self.services.quotas.reserve(exchange, [allowance], [wanted])
                reservation.settle([wanted])
            except (AllowanceExhausted, StorageError):
                self.services.log.warning("rate_limit_overrun_not_counted", request_id=exchange.id, limit=rule.name)

    def _tightest(self, plans: Sequence[Plan], now: datetime) -> Mapping[str, Standing]:
        """How the tightest limit stands of each unit that there is in the clients' words."""
        tightest: dict[str, Standing] = {}
        for plan in plans:
            allowances = plan.allowances(now)
            amounts = self.services.quotas.remaining(allowances)
            for (rule, window), allowance, amount in zip(plan.counted, allowances, amounts, strict=True):
                unit = "requests" if rule.unit == "requests" else "tokens"
                known = tightest.get(unit)
                remaining = Decimal(rule.cap) if amount is None else amount
                # As fractions, without a division: less of its cap is left.
                if known is None or remaining * known.cap < known.remaining * rule.cap:
                    tightest[unit] = Standing(rule.most, rule.cap, remaining, window, allowance.until)
        return tightest


def _refused(rule: Rule, refusal: RateLimited) -> LLMProxyError:
    """For the client; where it is the target that has no room, for whoever looks for another target first."""
    return UpstreamWithheld(refusal) if rule.limit.is_of_targets else refusal
