"""Where requests wait for their turn at an account."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Final

from llmproxy.api import Clock, RateLimited, Tasks
from llmproxy_plugins.shaping.scheduler import Scheduler, Ticket

LEAST_RETRY_SECONDS: Final = 1.0


class Gate:
    """The queue at one account, with those who wait in it.

    Args:
        name: What clients are told they wait for.
    """

    def __init__(self, name: str, scheduler: Scheduler, clock: Clock, tasks: Tasks) -> None:
        self.name: Final = name
        self.scheduler: Final = scheduler
        self._clock = clock
        self._tasks = tasks
        self._waiters: dict[Ticket, asyncio.Future[bool]] = {}
        self._wakes_at = inf
        self._alarm: asyncio.Task[None] | None = None

    async def enter(self, ticket: Ticket) -> bool:
        """Return when it is the request's turn, and say whether it had to wait.

        Raises RateLimited when it will not be its turn in time.
        """
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        try:
            pushed_out = self.scheduler.enqueue(ticket)
            if pushed_out is not None:
                self._tell(pushed_out, may_go_on=False)
            self.move_on()
            if has_to_wait := not waiter.done():
                self._refuse_what_would_wait_too_long(ticket)
            if not await waiter:
                raise self._refusal(ticket, "is full" if ticket is pushed_out else "has no room in time")
        except BaseException:
            # Whoever was let go on and is cancelled before hearing of it has taken nothing.
            self.leave(ticket, 0)
            raise
        finally:
            del self._waiters[ticket]
        return has_to_wait

    def leave(self, ticket: Ticket, tokens: float) -> None:
        """It is over, after so many tokens; or it does not wait any longer."""
        self.scheduler.withdraw(ticket)
        self.scheduler.finish(ticket, tokens, self._clock.monotonic())
        self.move_on()

    def move_on(self) -> None:
        """Let everybody go on whose turn it is, and see who has waited too long."""
        now = self._clock.monotonic()
        for ticket in self.scheduler.expire(now):
            self._tell(ticket, may_go_on=False)
        for ticket in self.scheduler.start(now):
            self._tell(ticket, may_go_on=True)
        self._set_alarm(self.scheduler.next_at(now))

    def close(self) -> None:
        """Nobody waits any more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _tell(self, ticket: Ticket, *, may_go_on: bool) -> None:
        waiter = self._waiters[ticket]
        if not waiter.done():
            waiter.set_result(may_go_on)

    def _refuse_what_would_wait_too_long(self, ticket: Ticket) -> None:
        expected_seconds = self.scheduler.expected_wait_seconds(ticket)
        if ticket.arrived_at + expected_seconds > ticket.deadline:
            raise self._refusal(ticket, f"is {expected_seconds:.0f} s long")

    def _refusal(self, ticket: Ticket, why: str) -> RateLimited:
        expected = ticket.cost_seconds * ticket.position
        return RateLimited(
            f"The queue for {self.name} {why}; try again later.",
            code="queue_full",
            retry_after_seconds=max(expected, LEAST_RETRY_SECONDS),
        )

    def _set_alarm(self, at: float) -> None:
        if at >= self._wakes_at:
            # The one that is set comes sooner, and sets the next.
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._wakes_at = at
        self._alarm = self._tasks.start("shaping", self._wake(at))

    async def _wake(self, at: float) -> None:
        await self._clock.sleep(max(at - self._clock.monotonic(), 0))
        self._wakes_at, self._alarm = inf, None
        self.move_on()
