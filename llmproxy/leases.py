"""Leases: the slices of allowances that this worker holds, and the one conversation with Postgres that gets them.

One call at a time carries what every request lacks by then, so that a burst costs one round trip. A call whose answer
was lost is made again under its number, and Postgres carries it out once. What the ledger holds of an allowance that is
new is counted apart, for that may take long, and nobody else is to wait for it.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from llmproxy.allowances import Allowance
from llmproxy.db import REJECTED
from llmproxy.errors import StorageError
from llmproxy.exchange import Document
from llmproxy.segments import encode_json
from llmproxy.services import Clock, Database, Log, Tasks

# A request waits for a slice this long; Postgres may be given longer for anything that nobody waits for.
CALL_SECONDS: Final = 2.0
# How long a request waits until what the ledger holds of a new allowance is counted.
OPENED_SECONDS: Final = 2.0
# What takes too long to count, or cannot be counted, is not tried again before.
OPENED_AGAIN_SECONDS: Final = 10.0
# After a call that failed the next one is not tried before.
AWAY_SECONDS: Final = 0.5
# How long a refusal is believed: what others have given back by then goes unnoticed for as long.
REFUSED_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 10.0
# What has not been used for so long goes back.
IDLE_SECONDS: Final = 10.0
# A worker that has not been heard of for so long is written off: its machine does not come back.
EXPIRY_SECONDS: Final = 86_400.0
# Nobody gives back more often than this, so that two workers do not play catch with the last cent.
RETURN_SECONDS: Final = 0.2
# Slices grow for a worker that asks more often than this, and shrink for one that asks more seldom than ten times that.
BUSY_SECONDS: Final = 1.0
_MOST_EXTRA: Final = 4096
_LEAST_EXTRA: Final = 16
_ZERO: Final = Decimal(0)


class Lease:
    """What this worker holds of an allowance.

    Attributes:
        allowance: As it was last asked for; its cap may change.
        free: What may be used; nobody else can have it meanwhile.
        is_capped: Whether there is an end to it; what only counts is never asked for.
        holds: How many reservations go back into it.
        is_recorded: Whether what is used of it is settled with the ledger, and so stands in records.
        settled: What all workers together had settled when Postgres last answered.
        room: What nobody had settled or held by then; None when that is not known, or there is no end to it.
        is_opened: Whether it begins with what the ledger has, as far as is known.
        opening: Done once that is so, or cannot be found out now; None as long as nobody tries.
        charge: The beginning of a charge to it, as records have it, up to the amount.
    """

    __slots__ = (
        *("allowance", "asked_at", "charge", "extra", "free", "holds", "is_capped", "is_opened", "is_recorded"),
        *("is_waiting_worthwhile", "opened_again_at", "opening", "refused", "refused_until", "returned_at", "room"),
        *("settled", "used_at"),
    )

    def __init__(self, allowance: Allowance, holder: str) -> None:
        self.allowance = allowance
        self.charge = _charge(holder, [allowance])
        self.is_capped = allowance.cap is not None
        self.is_recorded = allowance.share is not None
        self.free = self.settled = _ZERO
        self.room: Decimal | None = None
        self.holds = 0
        self.used_at = 0.0
        self.asked_at = self.returned_at = float("-inf")
        self.extra = _LEAST_EXTRA
        self.refused: Decimal | None = None
        self.refused_until = float("-inf")
        self.is_waiting_worthwhile = self.is_opened = False
        self.opening: asyncio.Future[bool] | None = None
        self.opened_again_at = float("-inf")

    def is_refused(self, amount: Decimal, now: float) -> bool:
        """Whether asking for so much more is known to be in vain."""
        return self.refused is not None and now < self.refused_until and amount >= self.refused

    def wants_extra(self, now: float) -> int:
        """How many times what is needed should be taken beside it, going by how often this lease asks."""
        passed_seconds = now - self.asked_at
        if passed_seconds < BUSY_SECONDS:
            self.extra = min(self.extra * 2, _MOST_EXTRA)
        elif passed_seconds > BUSY_SECONDS * 10:
            self.extra = max(self.extra // 2, _LEAST_EXTRA)
        self.asked_at = now
        return self.extra


@dataclass(slots=True)
class _Want:
    """What one lease has to do with a call."""

    lease: Lease
    wanted: Decimal = _ZERO
    least: Decimal = _ZERO
    given_back: Decimal = _ZERO

    def add(self, amount: Decimal) -> None:
        self.wanted += amount
        self.least = min(self.least, amount) if self.least else amount


@dataclass(slots=True)
class _Round:
    """One call, and those who wait for it."""

    wants: dict[Lease, _Want] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: StorageError | None = None
    is_heartbeat: bool = False
    is_sent: bool = False

    def want(self, lease: Lease) -> _Want:
        return self.wants.setdefault(lease, _Want(lease))


class Together:
    """Allowances that are wanted together, again and again, and their leases as they were last looked up.

    Attributes:
        recorded: Which of them are recorded, if those stand side by side; None if they do not, or there are none.
        is_recorded: Whether one of them is.
        all_capped: Whether each of them is.
        charge: The beginning of one charge to all that are recorded, up to the amount.
        generation: Of `Leases`, when the leases were looked up.
    """

    __slots__ = ("all_capped", "allowances", "charge", "generation", "is_recorded", "leases", "recorded")

    def __init__(self, allowances: Sequence[Allowance], holder: str) -> None:
        self.allowances: Final = tuple(allowances)
        if len({(each.name, each.bucket) for each in allowances}) < len(allowances):
            raise ValueError("An allowance can be reserved once at a time.")
        numbers = [number for number, each in enumerate(allowances) if each.share is not None]
        self.is_recorded: Final = bool(numbers)
        is_run = bool(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1
        self.recorded: Final = slice(numbers[0], numbers[-1] + 1) if is_run else None
        self.charge: Final = _charge(holder, [allowances[number] for number in numbers])
        self.leases: tuple[Lease, ...] = ()
        self.all_capped = True
        self.generation = -1


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
        self._opening_query = queries["open_allowance"]
        # One at a time, so that there are connections left for everything else.
        self._one_is_opened = asyncio.Lock()
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
        self._unanswered: tuple[int, Sequence[_Want], str] | None = None
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
        if unopened := [lease for lease, _ in lacks if not lease.is_opened]:
            await self._wait_until_opened(unopened)

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
            if lease.opening is not None:
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
        if not lease.is_capped and not lease.is_opened:
            self._next.want(lease)
            self._call_soon()

    async def _wait_until_opened(self, leases: Sequence[Lease]) -> None:
        """Return when they may be asked for again. Raises StorageError when they cannot be opened now."""
        openings = [lease.opening for lease in leases if lease.opening is not None]
        if openings:
            await asyncio.wait(openings, timeout=OPENED_SECONDS)
        now = self._clock.monotonic()
        are_waiting = any(lease.opening is None and now < lease.opened_again_at for lease in leases)
        if are_waiting or not all(opening.done() and opening.result() for opening in openings):
            raise StorageError(
                "What the ledger holds of a budget is still being counted, as it is once for each; try again later.",
                retry_after_seconds=OPENED_SECONDS,
            )

    def _open_soon(self, lease: Lease) -> None:
        lease.is_opened, lease.room = False, None
        if lease.opening is None and not self._is_closed and self._clock.monotonic() >= lease.opened_again_at:
            lease.opening = asyncio.get_running_loop().create_future()
            self._tasks.start("quota opening", self._open_apart(lease, lease.opening))

    async def _open_apart(self, lease: Lease, opening: asyncio.Future[bool]) -> None:
        is_opened, began = False, self._clock.monotonic()
        try:
            async with self._one_is_opened:
                began = self._clock.monotonic()
                described = encode_json(_described(0, _Want(lease), self._clock.monotonic())).decode()
                await self._database.execute(self._opening_query, described)
            is_opened = True
        except StorageError as error:
            now = self._clock.monotonic()
            is_lasting = error.error_code == REJECTED or now - began > OPENED_SECONDS
            lease.opened_again_at = now + (OPENED_AGAIN_SECONDS if is_lasting else AWAY_SECONDS)
            self._log.warning("quota_not_opened", allowance=lease.allowance.name, error=error.message)
        finally:
            lease.opening = None
            opening.set_result(is_opened)
        self._ask_to_begin(lease)

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
            encode_json([_described(n, want, now) for n, want in enumerate(wants)]).decode(),
        )
        self._unanswered, current.is_sent = call, True
        await self._answered(*call)

    async def _answered(self, number: int, wants: Sequence[_Want], described: str) -> None:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                row = await self._database.fetch_row(
                    self._query, self._holder, platform.node(), number, self._begins_anew, described
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

    def _apply(self, want: _Want, answer: Document) -> None:
        lease = want.lease
        if not answer.get("is_opened", True):
            return self._open_soon(lease)
        granted = Decimal(answer["granted"])
        lease.free += granted
        lease.is_opened = True
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


def remaining(leases: Iterable[Lease | None]) -> Sequence[Decimal | None]:
    """What this worker could still use of each, as far as it knows; None when it does not know, or has no cap."""
    return [None if lease is None or lease.room is None else lease.room + lease.free for lease in leases]


def _described(number: int, want: _Want, now: float) -> Document:
    allowance = want.lease.allowance
    extra = want.least * want.lease.wants_extra(now) if want.wanted else _ZERO
    return {
        "number": number,
        "allowance": allowance.name,
        "bucket": allowance.bucket.isoformat(),
        "since": allowance.since.isoformat(),
        "until": allowance.until.isoformat() if allowance.until else "infinity",
        "step": None if allowance.step is None else f"{allowance.step.total_seconds():f} seconds",
        "expires_at": allowance.expires_at.isoformat() if allowance.expires_at else None,
        "cap": f"{allowance.cap:f}" if allowance.cap is not None else "Infinity",
        "least": f"{want.least:f}",
        "wanted": f"{want.wanted:f}",
        "extra": f"{extra:f}",
        "given_back": f"{want.given_back:f}",
        "share": allowance.share,
        "opens": False,
    }


def _charge(holder: str, allowances: Sequence[Allowance]) -> str:
    charged = [{"allowance": each.name, "bucket": each.bucket.isoformat()} for each in allowances]
    return encode_json({"holder": holder, "of": charged})[:-1].decode() + ',"amount":"'


def _away() -> StorageError:
    return StorageError(
        "The database cannot be reached, and what this worker may use without it is used up; try again later.",
        retry_after_seconds=AWAY_SECONDS,
    )
