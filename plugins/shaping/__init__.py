"""Shaping: what a vendor allows an account is shared fairly, instead of first come, first served."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Final

from llmproxy.api import (
    Answer,
    Attempt,
    Exchange,
    Failure,
    RateLimited,
    Services,
    StateKey,
    UpstreamError,
    UpstreamWithheld,
    hookimpl,
)
from llmproxy_plugins.shaping.capacity import Capacity
from llmproxy_plugins.shaping.gate import Gate
from llmproxy_plugins.shaping.membership import Membership
from llmproxy_plugins.shaping.scheduler import Scheduler, Ticket
from llmproxy_plugins.shaping.settings import ShapingConfig

# A vendor that refuses without saying for how long.
PAUSE_SECONDS: Final = 1.0
_BYTES_PER_TOKEN: Final = 4
_REMAINING: Final = {
    "requests": ("x-ratelimit-remaining-requests", "anthropic-ratelimit-requests-remaining"),
    "tokens": ("x-ratelimit-remaining-tokens", "anthropic-ratelimit-tokens-remaining"),
}
ENTERED: Final = StateKey[dict[int, tuple[Gate, Ticket]]]("shaping.entered")


class Shaping:
    """The plugin: every attempt at a shaped account waits for its turn, and makes room when it is over."""

    name = "shaping"
    Config = ShapingConfig
    migrations = Path(__file__).parent / "migrations"

    def __init__(self, config: ShapingConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.gates: dict[tuple[int, str | None], Gate] = {}
        self.workers, self.rank = 1, 0
        self.membership = Membership(services, self.divide)

    @hookimpl
    async def startup(self) -> None:
        """Find out how many workers there are to share with."""
        await self.membership.start()

    @hookimpl
    async def shutdown(self) -> None:
        """Leave one's share to the others."""
        for gate in self.gates.values():
            gate.close()
        await self.membership.stop()

    def divide(self, workers: int, rank: int) -> None:
        """Use the part of every account that is this worker's, the `rank`th of so many."""
        self.workers, self.rank = workers, rank
        for gate in self.gates.values():
            gate.scheduler.capacity.divide(workers, rank)
            gate.move_on()

    @hookimpl(trylast=True)
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Wait for one's turn."""
        gate = self._gate(attempt)
        if gate is None:
            return
        ticket = self._ticket(exchange, attempt, gate)
        ahead = gate.scheduler.waiting
        entered = exchange.state.get(ENTERED) or {}
        exchange.state[ENTERED] = {**entered, attempt.number: (gate, ticket)}
        try:
            has_waited = await gate.enter(ticket)
        except RateLimited as refusal:
            exchange.decide(self.name, "refused", f"{refusal.message} {ahead} were waiting")
            # Every account is some targets' own: another target may have room.
            raise UpstreamWithheld(refusal) from None
        if has_waited:
            waited_seconds = (ticket.started_at or ticket.arrived_at) - ticket.arrived_at
            where = f"number {ticket.position} of its own, {ahead} waited in all"
            exchange.decide(self.name, f"waited {waited_seconds:.3f} s for {gate.name}", where)

    @hookimpl
    def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> None:
        """See what the vendor says is left."""
        gate, _ = (exchange.state.get(ENTERED) or {}).get(attempt.number, (None, None))
        if gate is not None:
            headers = dict(attempt.headers)
            left = {unit: _number(headers, names) for unit, names in _REMAINING.items()}
            gate.scheduler.capacity.learn(left["requests"], left["tokens"], self.services.clock.monotonic())

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Make room, and hold back when the vendor has had enough."""
        gate, ticket = (exchange.state.get(ENTERED) or {}).get(attempt.number, (None, None))
        if gate is None or ticket is None:
            return
        error = attempt.error
        if isinstance(error, UpstreamError) and error.failure is Failure.RATE_LIMIT and attempt.is_sent:
            pause_seconds = error.retry_after_seconds or PAUSE_SECONDS
            gate.scheduler.capacity.pause(self.services.clock.monotonic() + pause_seconds)
        gate.leave(ticket, attempt.usage.total_tokens if attempt.usage else 0)

    def _gate(self, attempt: Attempt) -> Gate | None:
        number = self.config.account_of(attempt.target)
        if number is None:
            return None
        key = (number, attempt.target.credential)
        if (gate := self.gates.get(key)) is None:
            account = self.config.accounts[number]
            pace = (account.requests_per_minute, account.tokens_per_minute, account.concurrent)
            capacity = Capacity(*pace, account.burst_seconds)
            capacity.divide(self.workers, self.rank)
            scheduler = Scheduler(capacity, account.max_queue)
            gate = Gate(account.match, scheduler, self.services.clock, self.services.tasks)
            self.gates[key] = gate
        return gate

    def _ticket(self, exchange: Exchange, attempt: Attempt, gate: Gate) -> Ticket:
        account = self.config.accounts[self.config.account_of(attempt.target) or 0]
        now = self.services.clock.monotonic()
        workspace, feature = exchange.principal.workspace, exchange.attribution.feature or ""
        weight, feature_weight, priority = self.config.standing_of(workspace, feature)
        return Ticket(
            workspace=workspace,
            feature=feature,
            tokens=self._tokens(attempt) if account.tokens_per_minute is not None else 0,
            arrived_at=now,
            deadline=min(now + account.max_wait_seconds, exchange.deadline_monotonic, inf),
            weight=weight,
            feature_weight=feature_weight,
            priority=priority,
        )

    def _tokens(self, attempt: Attempt) -> float:
        """What the attempt is likely to take."""
        worst = attempt.worst_case(self.config.assumed_output_tokens)
        likely = min(worst.input_tokens, attempt.request.size_bytes // _BYTES_PER_TOKEN)
        return likely + min(worst.output_tokens, self.config.assumed_output_tokens)


def _number(headers: dict[str, str], names: tuple[str, ...]) -> float | None:
    found = next((headers[name] for name in names if name in headers), "")
    return float(found) if found.isascii() and found.isdecimal() else None
