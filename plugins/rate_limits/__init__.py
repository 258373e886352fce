"""Rate limits: how many requests and tokens, in which time and at the same time, for whom."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from llmproxy.api import Attempt, Exchange, Services, StateKey, Target, hookimpl
from llmproxy_plugins.rate_limits.counting import NAME, REFUSED, Counter, Counting, refusal
from llmproxy_plugins.rate_limits.headers import Told, say
from llmproxy_plugins.rate_limits.limits import SLOTS, Limits, Rule
from llmproxy_plugins.rate_limits.reopening import Reopening
from llmproxy_plugins.rate_limits.settings import RateLimitsConfig
from llmproxy_plugins.rate_limits.slots import Slots, SlotsTaken

# When one of the requests under way ends nobody knows.
SLOT_SECONDS: Final = 1.0

# The slots of each attempt by its number, and those of the request itself as number 0.
_HELD: Final = StateKey[dict[int, Sequence[Rule]]]("rate_limits.slots")


class RateLimits:
    """The plugin: takes from every limit that a request is held to, or from none; and gives back what was not used."""

    name = NAME
    Config = RateLimitsConfig
    migrations = Path(__file__).parent / "migrations"

    def __init__(self, config: RateLimitsConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.limits = Limits(config.limits)
        self.claim_scopes = self.limits.scopes
        self.slots = Slots(services)
        self.counter = Counter(config, self.limits, services, Reopening(services))
        self.has_slots = any(unit in limit.caps for limit in config.limits for unit in SLOTS)
        # What is counted is claimed; they are for slots.
        self.unused_hooks = () if self.has_slots else ("pre_request", "pre_attempt", "post_attempt", "on_complete")

    @hookimpl
    def startup(self) -> None:
        """Begin to share slots, if there are any."""
        if self.has_slots:
            self.slots.start()

    @hookimpl
    async def shutdown(self) -> None:
        """Give back all slots."""
        await self.slots.stop()

    @hookimpl
    def claims(self, exchange: Exchange, target: Target | None, at: datetime) -> Counting | None:
        """Have requests, and attempts, take what is counted of their limits."""
        plan = self.limits.plan(exchange, target)
        return Counting(plan, at, self.counter) if plan.counted else None

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        """Let a client's request in, or refuse it; what is asked in its course has been let in with it."""
        if exchange.origin is None:
            await self._acquire(exchange, None, 0)

    @hookimpl
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Let an attempt begin, or refuse the request."""
        await self._acquire(exchange, attempt.target, attempt.number)

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Free an attempt's slots."""
        self._release(exchange, attempt.number)

    @hookimpl
    def on_complete(self, exchange: Exchange) -> None:
        """Free the request's own slots."""
        self._release(exchange, 0)

    @hookimpl
    def on_response_head(self, exchange: Exchange) -> None:
        """Tell the client of its own limits, in place of the gateway's at the provider."""
        clock = self.services.clock
        if (refused := exchange.state.get(REFUSED)) is not None:
            now = clock.now()
            allowances = [self.limits.allowance(*each, now) for each in refused]
            told = [Told.of(*each, allowance) for each, allowance in zip(refused, allowances, strict=True)]
            say(exchange, [(told, self.services.quotas.remaining(allowances))], clock)
        elif taken := self.services.quotas.taken(exchange, Counting):
            # The request's own and its latest attempt's, which comes first.
            latest = taken[0][0]
            standings = [(limits.told, left) for attempt, limits, left in taken if attempt is None or attempt is latest]
            say(exchange, reversed(standings), clock)

    # Small print

    async def _acquire(self, exchange: Exchange, target: Target | None, number: int) -> None:
        """All slots that are wanted, or none. Raises RateLimited, UpstreamWithheld and StorageError."""
        slots = self.limits.plan(exchange, target).slots
        if not slots:
            return
        try:
            await self.slots.acquire(slots, fail_open=self.config.fail == "open")
        except SlotsTaken as taken:
            exchange.state[REFUSED] = []
            raise refusal(exchange, taken.rule, SLOT_SECONDS) from None
        held = exchange.state.get(_HELD)
        if held is None:
            held = exchange.state[_HELD] = {}
        held[number] = slots

    def _release(self, exchange: Exchange, number: int) -> None:
        held = exchange.state.get(_HELD)
        if held and number in held:
            self.slots.release(held.pop(number))
