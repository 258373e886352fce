"""Leases: the slices of allowances that this worker holds, and the one conversation with Postgres that gets them.

One call at a time carries what every request lacks by then, so that a burst costs one round trip. A call whose answer
was lost is made again under its number, and Postgres carries it out once.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from llmproxy.allowances import Allowance
from llmproxy.db import REJECTED
from llmproxy.errors import StorageError
from llmproxy.lease import AWAY_SECONDS, Lease, Together, Want, described
from llmproxy.openings import Openings
from llmproxy.request import Document
from llmproxy.segments import encode_json
from llmproxy.services import Clock, Database, Log, Tasks

# A request waits for a slice this long; Postgres may be given longer for anything that nobody waits for.
CALL_SECONDS: Final = 2.0
# How long a refusal is believed: what others have given back by then goes unnoticed for as long.
REFUSED_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 10.0
# What has not been used for so long goes back.
IDLE_SECONDS: Final = 10.0
# A worker that has not been heard of for so long is written off: its machine does not come back.
EXPIRY_SECONDS: Final = 86_400.0
# Nobody gives back more often than this, so that two workers do not play catch with the last cent.
RETURN_SECONDS: Final = 0.2
_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class _Round:
    """One call, and those who wait for it."""

    wants: dict[Lease, Want] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: StorageError | None = None
    is_heartbeat: bool = False
    is_sent: bool = False

    def want(self, lease: Lease) -> Want:
        return self.wants.setdefault(lease, Want(lease))


class Leases:
    """The leases of one worker.

    Args:
        queries: Core's own.

    Attributes:
        stale_at: When Postgres may have written this worker off, if it does not answer before.
        generation: Grows whenever leases that were looked up must be looked up again.
    """

    def __init__(self, database: Database, queries: Mapping[str, str], clock: Clock, log: Log, tasks: Tasks) -> None:
        self._database = database
        self._query = queries["lease_quotas"]
        self._openings = Openings(database, queries["open_allowance"], clock, log, tasks, on_end=self._ask_to_begin)
        self._clock = clock
        self._log = log
        self._tasks = tasks
        self._holder = ""
        self._leases: dict[tuple[str, object], Lease] = {}
        # Of each allowance, the lease of the bucket that began last.
        self._latest: dict[str, Lease] = {}
        self._next = _Round()
        self._calling = False
        self._calls = 0
        self._begins_anew = self._is_closed = False
        # The last call, as long as no answer to it has come: number, wants, and their JSON.
        self._unanswered: tuple[int, Sequence[Want], str] | None = None
        self._away_until = float("-inf")
        self.stale_at = 0.0
        self.generation = 0

    def start(self, holder: str) -> None:
        """Take leases as `holder`, a name that no other worker has or had."""
        self._holder = holder
        self.stale_at = self._clock.monotonic() + EXPIRY_SECONDS / 2

    def close(self) -> None:
        """Ask for nothing any more."""
        self._is_closed = True
        self._openings.close()

    @property
    def has_called(self) -> bool:
        """Whether Postgres may have anything under this holder's name."""
        return bool(self._calls or self._unanswered)

    def of(self, allowance: Allowance) -> Lease:
        """The lease of an allowance; new ones are empty."""
        key = (allowance.name, allowance.bucket)
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = Lease(allowance, self._holder)
            self._follow(lease)
            self._ask_to_begin(lease)
        elif lease.allowance is not allowance:
            self._adapt(lease, allowance)
        return lease

    def together(self, allowances: Sequence[Allowance]) -> Together:
        """Some allowances, to be looked up together. Raises ValueError when one stands there twice."""
        return Together(allowances, self._holder)

    def look_up(self, together: Together) -> None:
        """Find the leases of the allowances."""
        together.leases = tuple(map(self.of, together.allowances))
        together.all_capped = all(lease.is_capped for lease in together.leases)
        together.generation = self.generation

    def known(self, allowances: Sequence[Allowance]) -> Sequence[Lease | None]:
        """The lease of each; None where nothing is known of it."""
        return [self._leases.get((allowance.name, allowance.bucket)) for allowance in allowances]

    async def ask(self, lacks: Sequence[tuple[Lease, Decimal]]) -> None:
        """Have each lease grow by so much, if there is room; all that ask at the same time share a call.

        An allowance that had to be opened is asked for in vain the first time.

        Raises StorageError when Postgres does not answer, or is not done with counting.
        """
        now = self._clock.monotonic()
        if now < self._away_until:
            raise _away()
        waiting = self._next
        for lease, amount in lacks:
            # Who waits uses it: it must still be there when a slice comes.
            lease.used_at = now
            waiting.want(lease).add(amount)
        self._call_soon()
        await waiting.done.wait()
        if waiting.error is not None:
            raise _away() from waiting.error
        if unopened := [lease for lease, _ in lacks if not lease.opening.is_done]:
            await self._openings.wait(unopened)

    def give_back(self, lease: Lease, amount: Decimal) -> None:
        """Let others have so much of what is free."""
        lease.free -= amount
        lease.returned_at = self._clock.monotonic()
        self._next.want(lease).given_back += amount
        self._call_soon()

    def give_way(self, name: str) -> None:
        """Somebody else lacks what may lie idle here."""
        now = self._clock.monotonic()
        for lease in self._leases.values():
            if lease.allowance.name != name or lease.free <= 0 or now < lease.refused_until:
                continue
            if now - lease.returned_at >= RETURN_SECONDS:
                self.give_back(lease, lease.free)

    def tidy(self) -> None:
        """Give back what lies idle, forget what is over, and let Postgres know that this worker lives."""
        now, at = self._clock.monotonic(), self._clock.now()
        for key, lease in list(self._leases.items()):
            self._ask_to_begin(lease)
            expires_at = lease.allowance.expires_at
            is_over = expires_at is not None and expires_at <= at
            if lease.free > 0 and (is_over or now - lease.used_at > IDLE_SECONDS):
                self.give_back(lease, lease.free)
            if lease.opening.running is not None:
                continue
            is_held = lease.holds > 0 and not (is_over and lease.allowance.share is None)
            if not is_held and not lease.free and (is_over or now - lease.used_at > 2 * IDLE_SECONDS):
                del self._leases[key]
                self.generation += 1
                if self._latest.get(lease.allowance.name) is lease:
                    del self._latest[lease.allowance.name]
        if self.has_called:
            self._next.is_heartbeat = True
            self._call_soon()

    def _follow(self, lease: Lease) -> None:
        """Have a new bucket's lease begin at the pace of the one before, and others have what that one did not need."""
        before = self._latest.get(lease.allowance.name)
        if before is not None and before.allowance.bucket > lease.allowance.bucket:
            return
        self._latest[lease.allowance.name] = lease
        if before is None:
            return
        lease.extra, lease.asked_at = before.extra, before.asked_at
        if before.free > 0:
            self.give_back(before, before.free)

    def _ask_to_begin(self, lease: Lease) -> None:
        """What only counts asks for nothing, and would never be told to begin with what the ledger has."""
        if not lease.is_capped and not lease.opening.is_done:
            self._next.want(lease)
            self._call_soon()

    def _adapt(self, lease: Lease, allowance: Allowance) -> None:
        """A cap that was lowered leaves nothing free that was taken under the higher one."""
        before, lease.allowance = lease.allowance.cap, allowance
        if allowance.cap == before:
            return
        # Who looked the lease up by the other allowance does it again, and has that one's cap hold.
        self.generation += 1
        lease.is_capped = allowance.cap is not None
        if not lease.is_capped:
            lease.room = None
        lease.refused = None
        if lease.free > 0 and (before is None or (allowance.cap is not None and allowance.cap < before)):
            self.give_back(lease, lease.free)

    # The conversation

    def _call_soon(self) -> None:
        if not self._calling and not self._is_closed:
            self._calling = True
            self._tasks.start("quota leases", self._call_until_nothing_is_wanted())

    async def _call_until_nothing_is_wanted(self) -> None:
        try:
            while self._next.wants or self._next.is_heartbeat:
                current, self._next = self._next, _Round()
                try:
                    await self._carry_out(current)
                except StorageError as error:
                    self._postpone(current, error)
                finally:
                    current.done.set()
        finally:
            self._calling = False

    def _postpone(self, failed: _Round, error: StorageError) -> None:
        """What was certainly not carried out has not given anything back either."""
        failed.error = error
        self._away_until = self._clock.monotonic() + AWAY_SECONDS
        if error.error_code == REJECTED:
            self._log.error("quota_call_refused", error=repr(error.__cause__))
            self._unanswered = None
        if not failed.is_sent or self._unanswered is None:
            for want in failed.wants.values():
                want.lease.free += want.given_back

    async def _carry_out(self, current: _Round) -> None:
        """Make a call, after the one before it whose answer was lost. Raises StorageError."""
        if self._unanswered is not None:
            await self._answered(*self._unanswered)
        now = self._clock.monotonic()
        wants = list(current.wants.values())
        call = (
            self._calls + 1,
            wants,
            encode_json([described(n, want, now) for n, want in enumerate(wants)]).decode(),
        )
        self._unanswered, current.is_sent = call, True
        await self._answered(*call)

    async def _answered(self, number: int, wants: Sequence[Want], wanted: str) -> None:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                row = await self._database.fetch_row(
                    self._query, self._holder, platform.node(), number, self._begins_anew, wanted
                )
        except TimeoutError as error:
            raise StorageError("The database did not answer in time; try again.") from error
        answers = row["answers"] if row else None
        self._unanswered, self._calls = None, number
        self.stale_at = self._clock.monotonic() + EXPIRY_SECONDS / 2
        if answers is None:
            return self._written_off()
        self._begins_anew = False
        for answer in answers:
            self._apply(wants[answer["number"]], answer)
        return None

    def _apply(self, want: Want, answer: Document) -> None:
        lease = want.lease
        if not answer.get("is_opened", True):
            return self._openings.begin(lease)
        granted = Decimal(answer["granted"])
        lease.free += granted
        lease.opening.is_done = True
        lease.settled = Decimal(answer["settled"])
        if (cap := lease.allowance.cap) is not None:
            used = lease.settled + Decimal(answer["leased"]) + granted
            lease.room = max(cap - used, _ZERO)
        if want.wanted and not granted:
            lease.refused, lease.refused_until = want.least, self._clock.monotonic() + REFUSED_SECONDS
            lease.is_waiting_worthwhile = Decimal(answer["elsewhere"]) > 0
        elif granted:
            lease.refused = None
        return None

    def _written_off(self) -> None:
        """Postgres has given what this worker held to others: it may only use what it asks for from now on."""
        self._begins_anew = True
        for lease in self._leases.values():
            lease.free = min(lease.free, _ZERO)
        self._log.warning("quota_leases_lost", holder=self._holder)


def _away() -> StorageError:
    return StorageError(
        "The database cannot be reached, and what this worker may use without it is used up; try again later.",
        retry_after_seconds=AWAY_SECONDS,
    )
