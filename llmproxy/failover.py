"""The one loop that makes attempts until there is an answer: every route, every format and every retry goes through it.

What is tried next, and whether anything is, plugins say (`choose_provider`, `hedge`, `on_error`); how often at most,
until when, and that no attempt is forgotten, is decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from math import inf
from typing import Final

from llmproxy.accounting import Accounting
from llmproxy.attempt import Attempts
from llmproxy.errors import LLMProxyError, UpstreamError, UpstreamSuperseded
from llmproxy.exchange import Answer, Attempt, Exchange, Hedge, Target
from llmproxy.holdings import Holdings
from llmproxy.hooks import Hooks
from llmproxy.race import Race
from llmproxy.request import Request
from llmproxy.services import Clock
from llmproxy.timers import timed_out, within

# Whatever plugins wish for, one exchange never makes more attempts than this.
MAX_ATTEMPTS: Final = 20


class Failover:
    """Makes attempts at an exchange's targets.

    Args:
        holdings: None when no plugin claims anything.
    """

    def __init__(
        self, *, hooks: Hooks, holdings: Holdings | None, attempts: Attempts, accounting: Accounting, clock: Clock
    ) -> None:
        self._hooks = hooks
        self._holdings = holdings
        self._attempts = attempts
        self._accounting = accounting
        self._clock = clock

    async def answer(self, exchange: Exchange, request: Request) -> Answer:
        """The answer of the first attempt that brings one; that attempt then stands last in `exchange.attempts`.

        Raises the error of the last attempt, or whatever a plugin raised in its place.

        Args:
            request: What to ask for: the client's request, or the rest of it.
        """
        while True:
            first = self._begin(exchange, request, await self._choose(exchange))
            try:
                return await self._answer_or_hedged(exchange, request, first)
            except UpstreamError as error:
                failed = next(attempt for attempt in reversed(exchange.attempts) if attempt.error is error)
                answer = await self._after(exchange, failed, error)
            if answer is not None:
                return answer

    def end(self, exchange: Exchange, attempt: Attempt) -> None:
        """Nothing more comes of an attempt: settle it and say so. Doing it again changes nothing."""
        if attempt.is_over:
            return
        attempt.is_over = True
        attempt.duration_seconds = self._clock.monotonic() - attempt.started_monotonic
        self._accounting.settle_attempt(exchange, attempt)
        if self._holdings:
            self._holdings.settle(exchange, attempt)
        if self._hooks.post_attempt:
            self._hooks.post_attempt(exchange, attempt)

    # One attempt, or two that race

    def _begin(self, exchange: Exchange, request: Request, target: Target) -> Attempt:
        attempt = self._attempts.begin(exchange, request, target)
        attempt.ceiling = self._accounting.ceiling(target, attempt.started_at)
        exchange.attempts.append(attempt)
        return attempt

    def _answer_or_hedged(self, exchange: Exchange, request: Request, first: Attempt) -> Awaitable[Answer]:
        hedge = self._hooks.hedge(exchange, first) if self._hooks.hedge else None
        if hedge is None or len(exchange.attempts) >= MAX_ATTEMPTS:
            return self._attempt(exchange, first)
        return self._hedged(exchange, request, first, hedge)

    async def _hedged(self, exchange: Exchange, request: Request, first: Attempt, hedge: Hedge) -> Answer:
        race = Race()
        try:
            return await self._race(race, exchange, request, first, hedge)
        finally:
            await race.stop()
            # Whoever reads the attempts finds the one that answered, or the last that failed, at the end.
            exchange.attempts.sort(key=lambda attempt: attempt is race.winner)

    async def _race(self, race: Race, exchange: Exchange, request: Request, first: Attempt, hedge: Hedge) -> Answer:
        race.enter(first, self._attempt(exchange, first))
        is_decided = await race.is_decided_within(self._clock.sleep(hedge.after_seconds))
        if not is_decided and hedge.may_begin():
            exchange.decide("core", f"hedged with {hedge.target.name}", f"no answer after {hedge.after_seconds:.2f} s")
            second = self._begin(exchange, request, hedge.target)
            race.enter(second, self._attempt(exchange, second))
        return await race.result()

    async def _attempt(self, exchange: Exchange, attempt: Attempt) -> Answer:
        try:
            return await self._within_deadline(exchange, attempt)
        except asyncio.CancelledError:
            if attempt.error is None and attempt.is_sent:
                attempt.error = UpstreamSuperseded("The request was given up before this attempt had answered.")
            self.end(exchange, attempt)
            raise
        except LLMProxyError as error:
            attempt.error = error
            self.end(exchange, attempt)
            raise

    def _within_deadline(self, exchange: Exchange, attempt: Attempt) -> Awaitable[Answer]:
        if exchange.deadline_monotonic == inf:
            return self._answer(exchange, attempt)
        left_seconds = max(exchange.deadline_monotonic - attempt.started_monotonic, 0)
        return within(left_seconds, self._answer(exchange, attempt), partial(timed_out, "total"))

    async def _answer(self, exchange: Exchange, attempt: Attempt) -> Answer:
        if self._hooks.pre_attempt:
            await self._hooks.pre_attempt(exchange, attempt)
        # What it may cost is known once nobody edits its request any more.
        if self._holdings:
            await self._holdings.take(exchange, attempt)
        answer = await self._attempts.answer(exchange, attempt)
        if self._hooks.on_answer is None:
            return answer
        try:
            return await self._hooks.on_answer(exchange, attempt, answer)
        except BaseException:
            if answer.stream is not None:
                answer.stream.close()
            raise

    # Between attempts

    async def _choose(self, exchange: Exchange) -> Target:
        if self._hooks.choose_provider and (target := await self._hooks.choose_provider(exchange)):
            return target
        if not exchange.attempts:
            return exchange.targets[0]
        tried = [attempt.target for attempt in exchange.attempts]
        return min(exchange.targets, key=tried.count)

    async def _after(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Answer | None:
        """What to serve instead, or None to try again; raises `error` when it is final."""
        verdict = await self._hooks.on_error(exchange, attempt, error) if self._hooks.on_error else None
        if isinstance(verdict, Answer):
            return verdict
        if verdict is None or len(exchange.attempts) >= MAX_ATTEMPTS:
            raise error
        if self._clock.monotonic() + verdict.after_seconds >= exchange.deadline_monotonic:
            exchange.decide("core", "gave up", "the deadline leaves no time for another attempt")
            raise error
        await self._clock.sleep(verdict.after_seconds)
        return None
