"""The invariant: settled and leased together never pass the cap, whatever workers do, and nothing is lost either."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from llmproxy.allowances import Allowance, AllowanceExhausted
from llmproxy.errors import StorageError
from llmproxy.exchange import Exchange
from llmproxy.ids import new_id
from llmproxy.services import Reservation
from llmproxy.testing import FaultProxy
from llmproxy.testing.database import make_postgres
from tests.quota_workers import DAY, WATCH, HurriedClock, Worker, allowance, leased, settled, violations, watch
from tests.test_quotas import address, through

CAPS = {"wide": Decimal(40), "narrow": Decimal(30)}
AMOUNTS = st.decimals(min_value="4.01", max_value="30", places=2)


@dataclass
class Held:
    """One attempt's reservation, as the model remembers it."""

    reservation: Reservation
    allowances: list[Allowance]
    reserved: Decimal
    used: Decimal | None = None
    # Whether the journal has been told what was used: by the reservation of a later attempt.
    is_told: bool = False

    def charged(self) -> Decimal:
        return self.used if self.used is not None and self.is_told else self.reserved


@dataclass
class Open:
    """An exchange under way."""

    worker: Worker
    exchange: Exchange
    held: list[Held] = field(default_factory=list)


class SharedAllowances(RuleBasedStateMachine):
    """Some workers at their work, in any order, with everything that can go wrong between."""

    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.prefix = new_id(datetime.now().astimezone())
        self.clock = HurriedClock()
        self.bucket = DAY
        self.open: list[Open] = []
        self.charged: dict[tuple[str, datetime], Decimal] = {}
        self.caps = {f"{self.prefix}/{name}": cap for name, cap in CAPS.items()}
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.postgres = make_postgres(self.url, pool_size=2)
        await self.postgres.open()
        await self.postgres.execute("DELETE FROM violations")
        await watch(self.postgres, self.caps)
        self.proxy = await FaultProxy(*address(self.url)).__aenter__()
        self.is_away = False
        self.workers = [await self._worker() for _ in range(3)]

    async def _worker(self) -> Worker:
        return await Worker(through(self.proxy, self.url), Path(self.directory.name), self.clock).start()

    # What workers do

    @rule(number=st.integers(0, 2), amount=AMOUNTS, names=st.sets(st.sampled_from(list(CAPS))))
    def begin(self, number: int, amount: Decimal, names: set[str]) -> None:
        """A request is let in and reserves for its first attempt."""
        worker = self.workers[number]
        opened = Open(worker, worker.let_in())
        self.open.append(opened)
        self.runner.run(self._attempt(opened, amount, names))

    @precondition(lambda self: self.open)
    @rule(pick=st.randoms(use_true_random=False), amount=AMOUNTS, names=st.sets(st.sampled_from(list(CAPS))))
    def retry(self, pick: Random, amount: Decimal, names: set[str]) -> None:
        """A request reserves for another attempt, whether the one before it is over or not."""
        self.runner.run(self._attempt(pick.choice(self.open), amount, names))

    async def _attempt(self, opened: Open, amount: Decimal, names: set[str]) -> None:
        day = [allowance(f"{self.prefix}/{name}", CAPS[name], self.bucket) for name in sorted(names)]
        with suppress(AllowanceExhausted, StorageError):
            reservation = await opened.worker.reserve(opened.exchange, *((each, amount) for each in day))
            for held in opened.held:
                held.is_told = held.used is not None
            opened.held.append(Held(reservation, day, amount))

    @precondition(lambda self: self._unsettled)
    @rule(pick=st.randoms(use_true_random=False), share=st.integers(0, 100))
    def settle(self, pick: Random, share: int) -> None:
        """An attempt is over, and has used a share of what it had reserved."""
        held = pick.choice(self._unsettled)
        held.used = held.reserved * share / 100
        held.reservation.settle([held.used] * len(held.allowances))

    @property
    def _unsettled(self) -> list[Held]:
        return [held for opened in self.open for held in opened.held if held.used is None]

    @precondition(lambda self: self.open)
    @rule(pick=st.randoms(use_true_random=False))
    def end(self, pick: Random) -> None:
        """A request ends; what was not settled was used in full."""
        opened = pick.choice(self.open)
        self.open.remove(opened)
        for held in opened.held:
            held.is_told = True
        self._charge(opened)
        opened.worker.end(opened.exchange)

    def _charge(self, opened: Open) -> None:
        for held in opened.held:
            for each in held.allowances:
                key = (each.name, each.bucket)
                self.charged[key] = self.charged.get(key, Decimal(0)) + held.charged()

    # What happens to them

    @precondition(lambda self: not self.is_away)
    @rule(number=st.integers(0, 2))
    def ship(self, number: int) -> None:
        """A worker ships what has ended."""
        self.runner.run(self.workers[number].recorder.ship())

    @rule(number=st.integers(0, 2))
    def crash(self, number: int) -> None:
        """A worker is killed, and another takes its place."""
        for opened in [each for each in self.open if each.worker is self.workers[number]]:
            self.open.remove(opened)
            self._charge(opened)
        self.runner.run(self.workers[number].crash())
        self.workers[number] = self.runner.run(self._worker())

    @precondition(lambda self: not self.is_away)
    @rule(number=st.integers(0, 2))
    def replay(self, number: int) -> None:
        """A worker looks for the journals of dead ones."""
        self.runner.run(self.workers[number].recorder.replay())

    @rule()
    def lose_postgres(self) -> None:
        """Postgres goes away in the middle of whatever it does."""
        self.proxy.refuse()
        self.proxy.cut()
        self.is_away = True

    @rule()
    def find_postgres(self) -> None:
        """Postgres is back."""
        self.runner.run(self.proxy.accept())
        self.is_away = False

    @rule(seconds=st.sampled_from([1, 3, 15]))
    def wait(self, seconds: int) -> None:
        """Time passes: what lies idle goes back."""
        self.clock.advance(seconds)
        self.runner.run(self._tidy())

    async def _tidy(self) -> None:
        for worker in self.workers:
            worker.quotas._leases.tidy()
        await asyncio.sleep(0.01)

    @rule()
    def next_window(self) -> None:
        """The next day begins; requests of the last one are still under way."""
        self.bucket += timedelta(days=1)

    @invariant()
    def never_over(self) -> None:
        """At no commit was more settled and leased than the cap."""
        assert self.runner.run(violations(self.postgres)) == []

    def teardown(self) -> None:
        """In the end the truth is settled, and everything that is left can be had."""
        try:
            self.runner.run(self._wind_up())
        finally:
            self.runner.run(self._close())
            self.runner.close()
            self.directory.cleanup()

    async def _wind_up(self) -> None:
        await self.proxy.accept()
        self.clock.advance(2)
        for opened in self.open:
            for held in opened.held:
                held.is_told = True
            self._charge(opened)
            opened.worker.end(opened.exchange)
        last = await self._worker()
        for worker in self.workers:
            await worker.stop()
        await last.recorder.replay()
        for (name, bucket), amount in self.charged.items():
            assert (await settled(self.postgres, name, bucket), await leased(self.postgres, name, bucket)) == (
                amount,
                Decimal(0),
            )
            if (left := self.caps[name] - amount) > 0:
                await last.reserve(last.let_in(), (allowance(name, self.caps[name], bucket), left))
        assert await violations(self.postgres) == []
        assert [entry for worker in self.workers for entry in worker.log.entries if entry[0] == "error"] == []
        self.workers.append(last)

    async def _close(self) -> None:
        for worker in self.workers:
            await worker.tasks.cancel_all()
            await worker.database.close()
        await self.proxy.__aexit__(None, None, None)
        await self.postgres.close()


@pytest.fixture
def watched_url(database_url: str) -> str:
    """A database that notes what passes its cap."""

    async def prepare() -> None:
        postgres = make_postgres(database_url)
        await postgres.open()
        await postgres.execute(WATCH)
        await postgres.close()

    asyncio.run(prepare())
    return database_url


@pytest.mark.timeout(120)
def test_never_over_and_nothing_lost(watched_url: str) -> None:
    """In any order of events no commit passes a cap, the truth is settled to the digit, and nothing stays held."""

    class Machine(SharedAllowances):
        url = watched_url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
