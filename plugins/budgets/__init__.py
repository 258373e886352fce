"""Budgets: what may be spent, by whom and in which time, and never a cent more."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

from llmproxy.api import (
    AllowanceExhausted,
    Answer,
    Attempt,
    BudgetExceeded,
    Exchange,
    LLMProxyError,
    Refused,
    Reservation,
    Router,
    Services,
    StateKey,
    UpstreamWithheld,
    hookimpl,
)
from llmproxy_plugins.budgets.alerts import Watch
from llmproxy_plugins.budgets.cutting import CutStream
from llmproxy_plugins.budgets.limits import Applied, Limits, Plan
from llmproxy_plugins.budgets.operators import Operators
from llmproxy_plugins.budgets.settings import BudgetsConfig, zone

REMAINING: Final = "x-llmproxy-budget-remaining-usd"
EXCEEDED: Final = "x-llmproxy-budget-exceeded"
# Requests under way end, and leave what they did not need: soon there may be room again.
RESERVED_SECONDS: Final = 1.0
_ZERO: Final = Decimal(0)


class Held(NamedTuple):
    """What one attempt has reserved."""

    plan: Plan
    amount_usd: Decimal
    reservation: Reservation


HELD: Final = StateKey[dict[int, Held]]("budgets.held")


class Budgets:
    """The plugin: reserves the worst case before every attempt, and settles what it was after it."""

    name = "budgets"
    Config = BudgetsConfig
    migrations = Path(__file__).parent / "migrations"

    def __init__(self, config: BudgetsConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.limits = Limits(config.limits, zone(config.time_zone))
        self.watch = Watch(services, config.webhook)
        self.operators = Operators(self.limits, services)

    @hookimpl
    async def startup(self) -> None:
        """Begin to look for thresholds that are passed, and for caps that operators raise."""
        self.watching = self.services.tasks.start("budget alerts", self.watch.run())
        self.stop_holding = self.services.quotas.hold_attempts()
        await self.operators.startup()

    @hookimpl
    def shutdown(self) -> None:
        """Stop looking."""
        self.watching.cancel()
        self.operators.shutdown()
        self.stop_holding()

    @hookimpl
    def register_routes(self, router: Router) -> None:
        """What operators may ask and do."""
        self.operators.register(router)

    @hookimpl
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Reserve the most that the attempt may use, of every budget that it is held to; refuse where there is none."""
        worst = attempt.worst_case(self.config.assumed_output_tokens)
        plan = self.limits.plan(exchange, attempt)
        if worst.amount_usd is None and self.config.unpriced == "refuse" and "usd" in plan.units:
            raise _unpriced(attempt)
        for each in plan.watched:
            self.watch.meet(each)
        if plan.throttled and attempt.number == 1:
            await self._throttle(exchange, plan)
        try:
            reservation = await self.services.quotas.reserve(
                exchange,
                plan.allowances,
                plan.amounts(worst.amount_usd, worst),
                attempt=attempt,
                worst_case=worst,
                fail_open=self.config.fail == "open",
            )
        except AllowanceExhausted as exhausted:
            raise self._refused(exchange, plan, exhausted) from exhausted
        held = exchange.state.get(HELD)
        if held is None:
            held = exchange.state[HELD] = {}
        held[attempt.number] = Held(plan, worst.amount_usd or _ZERO, reservation)

    @hookimpl
    def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """Have a stream end where its reservation does."""
        if not self.config.cut_streams or answer.stream is None or _held(exchange, attempt) is None:
            return None
        if attempt.progress is None or attempt.reserved is None:
            return None
        answer.stream = CutStream(answer.stream, attempt.progress, attempt.reserved.output_tokens)
        return answer

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Settle what the attempt has used: nothing, if it never reached the provider."""
        held = _held(exchange, attempt)
        if held is None:
            return
        held.reservation.settle(held.plan.used(attempt))
        if held.reservation.has_overrun:
            exchange.decide(self.name, "charged more than was reserved", "the answer was larger than could be foreseen")
            self.services.log.warning("budget_overrun", request_id=exchange.id, model=attempt.target.name)

    @hookimpl
    def on_response_head(self, exchange: Exchange) -> None:
        """Say what is left."""
        for attempt in reversed(exchange.attempts):
            if (held := _held(exchange, attempt)) is not None:
                self._say_what_is_left(exchange, attempt, held)
                break

    # Small print

    async def _throttle(self, exchange: Exchange, plan: Plan) -> None:
        share, start = max(self.watch.used_share(each) for each in plan.throttled), self.config.throttle_from
        if share <= start:
            return
        steepness = min((share - start) / (1 - start), Decimal(1))
        seconds = float(steepness) * self.config.throttle_seconds
        seconds = min(seconds, exchange.deadline_monotonic - self.services.clock.monotonic())
        exchange.decide(self.name, f"delayed by {seconds:.1f} s", f"{share:.0%} of a budget is used")
        await self.services.clock.sleep(seconds)

    def _refused(self, exchange: Exchange, plan: Plan, exhausted: AllowanceExhausted) -> LLMProxyError:
        found = next(each for each in plan.applied if each.allowance.name == exhausted.allowance.name)
        refusal = self._refusal(exchange, found, exhausted)
        return UpstreamWithheld(refusal) if found.budget.limit.is_of_targets else refusal

    def _refusal(self, exchange: Exchange, found: Applied, exhausted: AllowanceExhausted) -> BudgetExceeded:
        limit, subject, until = found.budget.limit, found.budget.subject, exhausted.allowance.until
        window = (
            f"{'last' if limit.rolling else 'current'} {limit.window}" if limit.window != "lifetime" else "lifetime"
        )
        budget = f"The budget of {subject} for the {window}, {found.cap:f} {limit.unit},"
        exchange.decide(self.name, "refused", f"the budget of {subject} for the {window} has no room")
        if exhausted.is_reserved:
            return BudgetExceeded(
                f"{budget} is reserved by requests under way; try again when some of them have ended.",
                retry_after_seconds=RESERVED_SECONDS,
            )
        if until is None:
            return BudgetExceeded(f"{budget} has no room for this request; ask the operator to raise it.")
        return BudgetExceeded(
            f"{budget} has no room for this request; the next one begins at {until.isoformat()}.",
            retry_after_seconds=max((until - self.services.clock.now()).total_seconds(), RESERVED_SECONDS),
        )

    def _say_what_is_left(self, exchange: Exchange, attempt: Attempt, held: Held) -> None:
        left = [amount for amount in self.services.quotas.remaining(held.plan.hard_usd) if amount is not None]
        if left:
            least = min(left)
            if attempt.is_over:
                # What was not needed is about to go back.
                spent = (attempt.cost.amount_usd if attempt.cost else None) or _ZERO
                least += max(held.amount_usd - spent, _ZERO)
            exchange.response_headers.append((REMAINING, f"{max(least, _ZERO).normalize():f}"))
        if over := [each.budget.subject for each in held.plan.soft if self.watch.used_share(each) >= 1]:
            exchange.response_headers.append((EXCEEDED, "; ".join(over)))


def _unpriced(attempt: Attempt) -> Refused:
    return Refused(
        f"No price is known of '{attempt.target.name}', so it cannot be used under a budget in dollars; "
        "ask the operator to set one under `prices`.",
        code="model_unpriced",
        param="model",
    )


def _held(exchange: Exchange, attempt: Attempt) -> Held | None:
    held = exchange.state.get(HELD)
    return held.get(attempt.number) if held else None
