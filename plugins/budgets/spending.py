"""What attempts take of their budgets: reserved at the most that they may cost, settled at what they did cost."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from llmproxy.api import (
    AllowanceExhausted,
    Attempt,
    BudgetExceeded,
    Claim,
    Exchange,
    LLMProxyError,
    Refused,
    Services,
    UpstreamWithheld,
    Usage,
    WorstCase,
)
from llmproxy_plugins.budgets.alerts import Watch
from llmproxy_plugins.budgets.limits import Applied, Plan
from llmproxy_plugins.budgets.settings import BudgetsConfig, Unit

NAME: Final = "budgets"
# Requests under way end, and leave what they did not need: soon there may be room again.
RESERVED_SECONDS: Final = 1.0
_ONE: Final = Decimal(1)
_ZERO: Final = Decimal(0)


class Spending(Claim):
    """What one plan has attempts reserve."""

    def __init__(self, plan: Plan, config: BudgetsConfig, services: Services, watch: Watch) -> None:
        self.plan: Final = plan
        self.allowances = plan.allowances
        self.since, self.until = plan.since, plan.until
        self.fail_open = config.fail == "open"
        self._config = config
        self._services = services
        self._watch = watch
        self._needs_price = config.unpriced == "refuse" and "usd" in plan.units
        self._are_usd = set(plan.units) == {"usd"}

    def amounts(self, exchange: Exchange, attempt: Attempt | None) -> Sequence[Decimal]:
        """The most that an attempt may use. Raises Refused where that is not known."""
        if attempt is None:
            return (_ZERO,) * len(self.allowances)
        worst = attempt.reserved = attempt.worst_case(self._config.assumed_output_tokens)
        if worst.amount_usd is None and self._needs_price:
            raise _unpriced(attempt)
        for each in self.plan.watched:
            self._watch.meet(each)
        if self._are_usd:
            return (worst.amount_usd or _ZERO,) * len(self.allowances)
        return self._taken(worst.amount_usd, worst)

    def used(self, exchange: Exchange, attempt: Attempt | None, reserved: Sequence[Decimal]) -> Sequence[Decimal]:
        """What its row in the ledger says, and nothing without one."""
        if attempt is None or attempt.usage is None:
            return (_ZERO,) * len(reserved)
        amount_usd = attempt.cost.amount_usd if attempt.cost else None
        if self._are_usd:
            return (amount_usd or _ZERO,) * len(self.allowances)
        return self._taken(amount_usd, attempt.usage)

    def overran(self, exchange: Exchange, attempt: Attempt) -> None:
        """Say so, in the record and the log."""
        exchange.decide(NAME, "charged more than was reserved", "the answer was larger than could be foreseen")
        self._services.log.warning("budget_overrun", request_id=exchange.id, model=attempt.target.name)

    async def refusal(
        self, exchange: Exchange, attempt: Attempt | None, exhausted: AllowanceExhausted
    ) -> LLMProxyError:
        """Which budget has no room, and when it will; of a target's own, so that another target may be tried."""
        found = next(each for each in self.plan.applied if each.allowance.name == exhausted.allowance.name)
        refusal = self._refusal(exchange, found, exhausted)
        return UpstreamWithheld(refusal) if found.budget.limit.is_of_targets else refusal

    def _taken(self, amount_usd: Decimal | None, tokens: Usage | WorstCase) -> Sequence[Decimal]:
        tokens_taken = Decimal(tokens.total_tokens)
        taken: dict[Unit, Decimal] = {"usd": amount_usd or _ZERO, "tokens": tokens_taken, "requests": _ONE}
        return [taken[unit] for unit in self.plan.units]

    def _refusal(self, exchange: Exchange, found: Applied, exhausted: AllowanceExhausted) -> BudgetExceeded:
        limit, subject, until = found.budget.limit, found.budget.subject, exhausted.allowance.until
        window = (
            f"{'last' if limit.rolling else 'current'} {limit.window}" if limit.window != "lifetime" else "lifetime"
        )
        budget = f"The budget of {subject} for the {window}, {found.cap:f} {limit.unit},"
        exchange.decide(NAME, "refused", f"the budget of {subject} for the {window} has no room")
        if exhausted.is_reserved:
            return BudgetExceeded(
                f"{budget} is reserved by requests under way; try again when some of them have ended.",
                retry_after_seconds=RESERVED_SECONDS,
            )
        if until is None:
            return BudgetExceeded(f"{budget} has no room for this request; ask the operator to raise it.")
        return BudgetExceeded(
            f"{budget} has no room for this request; the next one begins at {until.isoformat()}.",
            retry_after_seconds=max((until - self._services.clock.now()).total_seconds(), RESERVED_SECONDS),
        )


def _unpriced(attempt: Attempt) -> Refused:
    return Refused(
        f"No price is known of '{attempt.target.name}', so it cannot be used under a budget in dollars; "
        "ask the operator to set one under `prices`.",
        code="model_unpriced",
        param="model",
    )
