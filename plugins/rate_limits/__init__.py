"""Rate limits: how many requests and tokens, in which time and at the same time, for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

from llmproxy.api import (
    AllowanceExhausted,
    Answer,
    Attempt,
    Exchange,
    RateLimited,
    Reservation,
    Services,
    StateKey,
    StorageError,
    Usage,
    hookimpl,
)
from llmproxy_plugins.rate_limits.headers import Standing, say, without_ours
from llmproxy_plugins.rate_limits.limits import SLOTS, TOKENS, Limits, Rule
from llmproxy_plugins.rate_limits.reopening import Reopening
from llmproxy_plugins.rate_limits.settings import RateLimitsConfig, Unit
from llmproxy_plugins.rate_limits.slots import Slots, SlotsTaken
from llmproxy_plugins.rate_limits.windows import Window

# When one of the requests under way ends nobody knows.
SLOT_SECONDS: Final = 1.0
_BYTES_PER_TOKEN: Final = 4
_ONE: Final = Decimal(1)
_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class Hold:
    """What a request, or one of its attempts, has of its limits."""

    slots: Sequence[Rule] = ()
    counted: Sequence[tuple[Rule, Window]] = ()
    amounts: Sequence[Decimal] = ()
    reservation: Reservation | None = None

    def settle(self, used: Sequence[Decimal]) -> None:
        """Say what was used of what is counted."""
        if self.reservation is not None:
            self.reservation.settle(used)


@dataclass(slots=True)
class Held:
    """What an exchange has of its limits.

    Attributes:
        overrun: What attempts have used beyond what was reserved for them.
    """

    request: Hold = field(default_factory=Hold)
    attempts: dict[int, Hold] = field(default_factory=dict)
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
        if rules := self.limits.of_request(exchange):
            held = exchange.state[HELD] = Held()
            held.request = await self._take(exchange, rules, {})
            self._say(exchange, held)

    @hookimpl
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Reserve what the attempt is likely to take, or refuse the request."""
        rules = self.limits.of_attempt(exchange, attempt.target)
        if not rules:
            return
        held = exchange.state.get(HELD)
        if held is None:
            held = exchange.state[HELD] = Held()
        try:
            held.attempts[attempt.number] = await self._take(exchange, rules, self._estimate(attempt, rules))
        except RateLimited:
            # Refused by one limit, it has taken nothing of any other; what went to a provider has been used.
            if not any(each.is_sent for each in exchange.attempts):
                held.request.settle([_ZERO] * len(held.request.amounts))
            raise

    @hookimpl
    def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """Tell the client of its own limits, in place of the gateway's at the provider."""
        held = exchange.state.get(HELD)
        if held is None:
            return None
        self._say(exchange, held)
        answer.headers = without_ours(exchange, answer.headers)
        return answer

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Settle what the attempt has used."""
        held = exchange.state.get(HELD)
        if held is None:
            return
        attempt.headers = without_ours(exchange, attempt.headers)
        hold = held.attempts.get(attempt.number)
        if hold is None:
            return
        self.slots.release(hold.slots)
        used = [_used(rule.unit, attempt) for rule, _ in hold.counted]
        # What is beyond the estimate has its turn in on_complete, in whichever window that is.
        hold.settle([min(amount, actual) for amount, actual in zip(hold.amounts, used, strict=True)])
        for (rule, window), amount, actual in zip(hold.counted, hold.amounts, used, strict=True):
            if actual > amount:
                held.overrun.append((rule, window, actual - amount))
        if attempt.progress is None:
            self._say(exchange, held)

    @hookimpl
    async def on_complete(self, exchange: Exchange) -> None:
        """Free the slots, and take what was used beyond the estimates, as far as there is room for it."""
        held = exchange.state.get(HELD)
        if held is None:
            return
        self.slots.release(held.request.slots)
        held.request.settle(held.request.amounts)
        for rule, window, amount in held.overrun:
            await self._charge(exchange, rule, window, amount)

    # Small print

    async def _take(self, exchange: Exchange, rules: Sequence[Rule], amounts: Mapping[Unit, Decimal]) -> Hold:
        """All that is wanted, or nothing. Raises RateLimited and StorageError."""
        hold = Hold(
            slots=[rule for rule in rules if rule.window is None],
            counted=[(rule, rule.window) for rule in rules if rule.window is not None],
        )
        hold.amounts = [amounts.get(rule.unit, _ONE) for rule, _ in hold.counted]
        now = self.services.clock.now()
        allowances = [self.limits.allowance(rule, window, now) for rule, window in hold.counted]
        try:
            await self.slots.acquire(hold.slots, fail_open=self.fail_open)
        except SlotsTaken as taken:
            raise self._refusal(exchange, taken.rule, SLOT_SECONDS) from None
        try:
            wants = list(zip(allowances, hold.amounts, strict=True))
            if wants:
                hold.reservation = await self.services.quotas.reserve(exchange, wants, fail_open=self.fail_open)
        except BaseException as error:
            self.slots.release(hold.slots)
            if isinstance(error, AllowanceExhausted):
                raise await self._exhausted(exchange, hold, error) from None
            raise
        return hold

    async def _exhausted(self, exchange: Exchange, hold: Hold, error: AllowanceExhausted) -> RateLimited:
        allowance = error.allowance
        number = next(n for n, (rule, _) in enumerate(hold.counted) if rule.name == allowance.name)
        (rule, window), amount = hold.counted[number], hold.amounts[number]
        self._say_of(exchange, [(rule, window)])
        if amount > rule.cap:
            exchange.response_headers = [*exchange.response_headers, ("x-should-retry", "false")]
            exchange.decide(self.name, "refused", f"{rule.name} has never room for {amount}")
            return RateLimited(f"{rule} is less than this request is likely to take, {amount}; ask for less at a time.")
        return self._refusal(exchange, rule, await self.reopening.seconds(allowance, window, amount))

    def _refusal(self, exchange: Exchange, rule: Rule, seconds: float) -> RateLimited:
        exchange.decide(self.name, "refused", f"{rule.name} has no room")
        return RateLimited(f"{rule} is reached; try again in {seconds:.3g} s.", retry_after_seconds=seconds)

    def _estimate(self, attempt: Attempt, rules: Sequence[Rule]) -> Mapping[Unit, Decimal]:
        if not any(rule.unit in TOKENS for rule in rules):
            return {}
        worst = attempt.worst_case(self.config.assumed_output_tokens)
        # The worst case counts every byte of text as a token, and knows what images take; here it is what is likely.
        likely = max(1, min(worst.input_tokens, attempt.request.size_bytes // _BYTES_PER_TOKEN))
        output = min(worst.output_tokens, self.config.assumed_output_tokens)
        return {"input_tokens": Decimal(likely), "output_tokens": Decimal(output), "tokens": Decimal(likely + output)}

    async def _charge(self, exchange: Exchange, rule: Rule, window: Window, amount: Decimal) -> None:
        allowance = self.limits.allowance(rule, window, self.services.clock.now())
        room = self.services.quotas.remaining(allowance)
        wanted = amount if room is None else min(amount, room)
        if wanted <= 0:
            return
        try:
            reservation = await self.services.quotas.reserve(exchange, [(allowance, wanted)])
            reservation.settle([wanted])
        except (AllowanceExhausted, StorageError):
            exchange.decide(self.name, "not counted", f"{amount} tokens beyond what was reserved of {rule.name}")

    def _say(self, exchange: Exchange, held: Held) -> None:
        last = held.attempts.get(max(held.attempts)) if held.attempts else None
        self._say_of(exchange, [*held.request.counted, *(last.counted if last else ())])

    def _say_of(self, exchange: Exchange, counted: Sequence[tuple[Rule, Window]]) -> None:
        now = self.services.clock.now()
        standings = []
        for rule, window in counted:
            remaining = self.services.quotas.remaining(self.limits.allowance(rule, window, now))
            left = Decimal(rule.cap) if remaining is None else remaining
            unit = "requests" if rule.unit == "requests" else "tokens"
            standings.append(Standing(unit, rule.most, rule.cap, left, window.reset_seconds(now)))
        say(exchange, standings)


def _used(unit: Unit, attempt: Attempt) -> Decimal:
    """What an attempt has used; a request counts once it has reached the provider."""
    if unit == "requests":
        return _ONE if attempt.is_sent else _ZERO
    usage = attempt.usage or Usage()
    tokens = {"tokens": usage.total_tokens, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    return Decimal(tokens[unit])
