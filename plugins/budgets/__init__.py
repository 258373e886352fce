"""Budgets: what may be spent, by whom and in which time, and never a cent more."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Final

from llmproxy.api import Answer, Attempt, Exchange, Router, Services, Target, hookimpl
from llmproxy_plugins.budgets.alerts import Watch
from llmproxy_plugins.budgets.cutting import CutStream
from llmproxy_plugins.budgets.limits import Limits
from llmproxy_plugins.budgets.operators import Operators
from llmproxy_plugins.budgets.settings import BudgetsConfig, zone
from llmproxy_plugins.budgets.spending import NAME, Spending

REMAINING: Final = "x-llmproxy-budget-remaining-usd"
EXCEEDED: Final = "x-llmproxy-budget-exceeded"
_ZERO: Final = Decimal(0)


class Budgets:
    """The plugin: has the worst case of every attempt reserved before it, and what it was settled after it."""

    name = NAME
    Config = BudgetsConfig
    migrations = Path(__file__).parent / "migrations"

    def __init__(self, config: BudgetsConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.limits = Limits(config.limits, zone(config.time_zone))
        self.claim_scopes = self.limits.scopes
        self.watch = Watch(services, config.webhook)
        self.operators = Operators(self.limits, services)
        throttles = any(limit.mode == "throttle" for limit in config.limits)
        self.unused_hooks = {*(() if throttles else ("pre_attempt",)), *(() if config.cut_streams else ("on_answer",))}

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
    def claims(self, exchange: Exchange, target: Target | None) -> Spending | None:
        """Have attempts spend no more than their budgets have; a request that needs none spends nothing."""
        if target is None:
            return None
        return Spending(self.limits.plan(exchange, target), self.config, self.services, self.watch)

    @hookimpl
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Have a request wait the longer, the less is left of what throttles it."""
        if attempt.number == 1 and (throttled := self.limits.plan(exchange, attempt.target).throttled):
            await self._throttle(exchange, max(self.watch.used_share(each) for each in throttled))

    @hookimpl
    def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """Have a stream end where its reservation does."""
        if answer.stream is None or attempt.progress is None or attempt.reserved is None:
            return None
        answer.stream = CutStream(answer.stream, attempt.progress, attempt.reserved.output_tokens)
        return answer

    @hookimpl
    def on_response_head(self, exchange: Exchange) -> None:
        """Say what is left."""
        if not (taken := self.services.quotas.taken(exchange, Spending)):
            return
        attempt, spending, remaining = taken[0]
        least: Decimal | None = None
        for amount, is_hard_usd in zip(remaining, spending.plan.are_hard_usd, strict=True):
            if is_hard_usd and amount is not None and (least is None or amount < least):
                least = amount
        if least is not None:
            if attempt is not None and attempt.is_over and attempt.reserved is not None:
                # What was not needed is about to go back.
                spent = (attempt.cost.amount_usd if attempt.cost else None) or _ZERO
                least += max((attempt.reserved.amount_usd or _ZERO) - spent, _ZERO)
            exchange.response_headers.append((REMAINING, f"{max(least, _ZERO).normalize():f}"))
        if spending.plan.soft:
            over = [each.budget.subject for each in spending.plan.soft if self.watch.used_share(each) >= 1]
            exchange.response_headers += [(EXCEEDED, "; ".join(over))] if over else []

    # Small print

    async def _throttle(self, exchange: Exchange, share: Decimal) -> None:
        start = self.config.throttle_from
        if share <= start:
            return
        steepness = min((share - start) / (1 - start), Decimal(1))
        seconds = float(steepness) * self.config.throttle_seconds
        seconds = min(seconds, exchange.deadline_monotonic - self.services.clock.monotonic())
        exchange.decide(self.name, f"delayed by {seconds:.1f} s", f"{share:.0%} of a budget is used")
        await self.services.clock.sleep(seconds)
