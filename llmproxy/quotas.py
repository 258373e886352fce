"""Quotas: allowances that all workers and replicas share, reserved before anything is used and settled after it.

Nothing that a worker has not leased can be reserved, and what it leases counts as used from that moment on, so that
settled and leased together never pass a cap. What was reserved stands in the journal before it is used, what was used
stands there before the difference may be reserved again, and it is settled in the transaction that writes the ledger.
A worker that dies keeps what it holds until somebody has replayed its journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple, TypeVar

from orjson import Fragment

from llmproxy import records
from llmproxy.allowances import Allowance, AllowanceExhausted, AllowanceUsage, HeldLease, WorstCase
from llmproxy.claims import Claim
from llmproxy.errors import StorageError
from llmproxy.exchange import Attempt, Exchange, StateKey
from llmproxy.journal import Journal
from llmproxy.lease import Lease, Together, remaining
from llmproxy.leases import EXPIRY_SECONDS, HEARTBEAT_SECONDS, Leases
from llmproxy.request import Document
from llmproxy.reservations import Reservation, backing
from llmproxy.segments import encode_json
from llmproxy.services import Clock, Connection, Database, Log, Tasks

CHANNEL: Final = "llmproxy_quotas"
PURGE_SECONDS: Final = 3600.0
# How long a request waits for what other workers hold and have been asked for.
_PAUSES_SECONDS: Final = (0.05, 0.15)
# Others may take what came with a call before the one that asked gets to it.
_MOST_ASKED: Final = 8
_ZERO: Final = Decimal(0)

C = TypeVar("C", bound=Claim)


class Part(NamedTuple):
    """A plugin's claim, and which of the allowances that are reserved together are its own."""

    plugin: str
    claim: Claim
    numbers: slice


# By which claims an exchange, or one of its attempts, has taken what.
Taken = tuple[Attempt | None, Sequence[Part], Reservation]
TAKEN: Final = StateKey[list[Taken]]("taken")
_HELD: Final = StateKey[list[Reservation]]("held")


class Quotas:
    """The allowances of one worker.

    Args:
        queries: Core's own.

    Attributes:
        claims_version: Grows whenever claims that were found must be found again.
    """

    def __init__(self, database: Database, queries: Mapping[str, str], clock: Clock, log: Log, tasks: Tasks) -> None:
        self._database = database
        self._queries = queries
        self._clock = clock
        self._log = log
        self._tasks = tasks
        self._leases = Leases(database, queries, clock, log, tasks)
        self._is_running = False
        self._holding = 0
        self.claims_version = 0

    def start(self, journal: Journal) -> None:
        """Begin, with the journal of this worker."""
        self._journal = journal
        self._leases.start(journal.owner)

    async def close(self) -> None:
        """Let others have what this worker holds, once all it has used is settled."""
        self._leases.close()
        if not self._leases.has_called:
            return
        try:
            if self._journal.pending:
                raise StorageError("Not everything that was used is settled.")
            await self.replayed(self._journal.owner)
        except StorageError as error:
            # Whoever finds the journal releases what is held in its name.
            self._journal.keep()
            self._log.warning("quota_leases_kept", error=error.message)

    # What plugins ask for

    def hold_attempts(self) -> Callable[[], None]:
        """Have it count, until what is returned is called, that every attempt is reserved before it is made.

        What is let in meanwhile, and dies without a reservation, is known not to have been sent, and charged nothing.
        """
        self._holding += 1

        def stop() -> None:
            self._holding -= 1

        return stop

    def together(self, allowances: Sequence[Allowance]) -> Together:
        """Some allowances, to `take` from again and again. Raises ValueError when one stands there twice."""
        return self._leases.together(allowances)

    async def reserve(
        self,
        exchange: Exchange,
        allowances: Sequence[Allowance],
        amounts: Sequence[Decimal],
        *,
        fail_open: bool = False,
    ) -> Reservation:
        """Reserve so much of each, or nothing; from what this worker has leased without asking anybody.

        Args:
            fail_open: Go on without a lease when the database cannot be reached.

        Raises AllowanceExhausted, and StorageError when the database is needed and cannot be reached.
        """
        return await self.take(exchange, self.together(allowances), amounts, fail_open=[fail_open] * len(amounts))

    def taken(self, exchange: Exchange, kind: type[C]) -> Sequence[tuple[Attempt | None, C, Sequence[Decimal | None]]]:
        """What an exchange and its attempts have taken by claims of a kind, the latest first.

        With each attempt (None: the request itself) and claim comes what this worker could still use of the claim's
        allowances, as far as it knows; None when it does not know.
        """
        found = []
        for attempt, parts, reservation in reversed(exchange.state.get(TAKEN) or ()):
            for _, claim, numbers in parts:
                if isinstance(claim, kind):
                    found.append((attempt, claim, remaining(reservation.leases[numbers])))
        return found

    def renew_claims(self) -> None:
        """Have plugins be asked for all claims anew."""
        self.claims_version += 1

    def remaining(self, allowances: Sequence[Allowance]) -> Sequence[Decimal | None]:
        """What this worker could still use of each, as far as it knows; None when it does not know, or has no cap."""
        return remaining(self._leases.known(allowances))

    async def settled(self, names: Sequence[str]) -> Mapping[tuple[str, datetime], Decimal]:
        """What is settled of some allowances, by name and bucket. Raises StorageError."""
        rows = await self._database.fetch(self._queries["settled_quotas"], list(names))
        return {(row["allowance"], row["bucket"]): row["settled"] for row in rows}

    async def usage(self, prefix: str) -> Sequence[AllowanceUsage]:
        """Every allowance whose name begins so, bucket by bucket. Raises StorageError."""
        held: dict[tuple[str, object], list[HeldLease]] = {}
        for row in await self._database.fetch(self._queries["quota_holders"], prefix):
            lease = HeldLease(row["holder"], row["machine"], row["seen_at"], row["leased"])
            held.setdefault((row["allowance"], row["bucket"]), []).append(lease)
        rows = await self._database.fetch(self._queries["quota_usage"], prefix)
        return [
            AllowanceUsage(
                row["allowance"],
                row["bucket"],
                row["settled"],
                row["leased"],
                tuple(held.get((row["allowance"], row["bucket"]), ())),
            )
            for row in rows
        ]

    async def release(self, holder: str) -> None:
        """Write a worker off that will not come back: let others have what it holds. Raises StorageError."""
        await self._database.execute(self._queries["release_leases"], holder)
        self._log.warning("quota_leases_released", holder=holder)

    # What core asks for

    async def take(
        self,
        exchange: Exchange,
        together: Together,
        amounts: Sequence[Decimal],
        *,
        attempt: Attempt | None = None,
        worst_case: WorstCase | None = None,
        fail_open: Sequence[bool] = (),
    ) -> Reservation:
        """Reserve so much of each, or nothing; with an attempt, so that it is charged should the worker die.

        Args:
            attempt: What it is for. It stands in the journal before the attempt is made.
            worst_case: What the ledger charges for the attempt in that case.
            fail_open: Of each, whether to go on without a lease when the database cannot be reached.

        Raises AllowanceExhausted, and StorageError when the database is needed and cannot be reached, or the journal
        cannot be written.
        """
        taken = self.take_at_once(exchange, together, amounts, attempt=attempt, worst_case=worst_case)
        if taken is not None:
            return taken
        await self._obtain(together, amounts, exchange if attempt else None, fail_open)
        # No await from here on: what is there now is still there when it is taken.
        backed = backing(together, amounts, _returns(exchange) if attempt else {})
        reservation = Reservation(together, amounts, backed, self._clock.monotonic())
        if attempt is not None:
            self._hold(exchange, reservation, attempt, worst_case)
        return reservation

    def take_at_once(
        self,
        exchange: Exchange,
        together: Together,
        amounts: Sequence[Decimal],
        *,
        attempt: Attempt | None = None,
        worst_case: WorstCase | None = None,
    ) -> Reservation | None:
        """The same where this worker has leased enough, as it hardly ever has not; None when others must be asked.

        Raises StorageError when the journal cannot be written.
        """
        if not self._is_running:
            self._run()
        if attempt is None and together.is_recorded:
            raise ValueError("An allowance of the ledger's can be reserved for an attempt only.")
        leases = self._leases
        if together.generation != leases.generation:
            leases.look_up(together)
        now = self._clock.monotonic()
        if now > leases.stale_at:
            return None
        for lease, amount in zip(together.leases, amounts, strict=True):
            if amount > lease.free and lease.is_capped:
                return None
        backed = list(amounts) if together.all_capped else backing(together, amounts, {})
        reservation = Reservation(together, amounts, backed, now)
        if attempt is not None:
            self._hold(exchange, reservation, attempt, worst_case)
        return reservation

    @property
    def holds_attempts(self) -> bool:
        """Whether every attempt is reserved before it is made."""
        return self._holding > 0

    def charges(self, exchange: Exchange) -> Document:
        """What the exchange is charged, as a part of its record; nothing when it has reserved nothing."""
        held = exchange.state.get(_HELD)
        if not held:
            return {}
        return {"charges": held[0].charges() if len(held) == 1 else _charges(held)}

    def let_go(self, exchange: Exchange) -> None:
        """Have what the exchange did not need, once the journal knows what it did need."""
        for reservation in exchange.state.get(_HELD) or ():
            reservation.let_go()

    async def replayed(self, holder: str) -> None:
        """Let others have what a worker holds that has ended, all it had used being settled. Raises StorageError."""
        await self._database.execute(self._queries["release_leases"], holder)

    # Reserving

    async def _obtain(
        self, together: Together, amounts: Sequence[Decimal], exchange: Exchange | None, fail_open: Sequence[bool]
    ) -> None:
        """Return when every lease has what is wanted. Raises AllowanceExhausted or StorageError.

        Args:
            exchange: Whose earlier attempts may have something to return.
        """
        pairs = list(zip(together.leases, amounts, strict=True))
        try:
            await self._ask_for(pairs, exchange)
        except StorageError:
            lacking = {lease for lease, _ in self._lacks(pairs, exchange)}
            are_open = {lease for lease, is_open in zip(together.leases, fail_open, strict=False) if is_open}
            if not lacking <= are_open:
                raise

    async def _ask_for(self, pairs: Sequence[tuple[Lease, Decimal]], exchange: Exchange | None) -> None:
        pauses = iter(_PAUSES_SECONDS)
        asked = 0
        while lacks := self._lacks(pairs, exchange):
            if (asked := asked + 1) > _MOST_ASKED:
                raise _exhausted(*lacks[0])
            if (refused := self._refused(lacks)) is not None:
                raise _exhausted(*refused)
            await self._leases.ask(lacks)
            if (refused := self._refused(self._lacks(pairs, exchange))) is None:
                continue
            lease = refused[0]
            pause_seconds = next(pauses, None) if lease.is_waiting_worthwhile else None
            if pause_seconds is None:
                raise _exhausted(*refused)
            # Others have been told, and are about to give back what they do not need.
            await self._clock.sleep(pause_seconds)
            lease.refused = None

    def _lacks(self, pairs: Sequence[tuple[Lease, Decimal]], exchange: Exchange | None) -> list[tuple[Lease, Decimal]]:
        # Anew each time: another attempt, beside this one, may have taken what an earlier one had left.
        returns = _returns(exchange) if exchange else {}
        if self._clock.monotonic() > self._leases.stale_at:
            return [(lease, amount) for lease, amount in pairs if lease.is_capped]
        lacks = ((lease, amount - lease.free - returns.get(lease, _ZERO)) for lease, amount in pairs if lease.is_capped)
        return [(lease, lacking) for lease, lacking in lacks if lacking > 0]

    def _refused(self, lacks: Sequence[tuple[Lease, Decimal]]) -> tuple[Lease, Decimal] | None:
        """Those of them that are known to be in vain, the first."""
        now = self._clock.monotonic()
        return next(((lease, amount) for lease, amount in lacks if lease.is_refused(amount, now)), None)

    def _hold(
        self, exchange: Exchange, reservation: Reservation, attempt: Attempt, worst_case: WorstCase | None
    ) -> None:
        """Have the journal know of it; as if nothing had been reserved, when that cannot be written."""
        attempt.reserved = worst_case
        earlier = exchange.state.get(_HELD)
        held = [*earlier, reservation] if earlier else [reservation]
        try:
            charges = _charges(held) if earlier else reservation.charges()
            # What earlier attempts did not need is given to others right after this.
            self._journal.hold(exchange.id, records.hold(exchange, charges), at_once=bool(earlier))
        except BaseException:
            reservation.undo()
            raise
        for each in earlier or ():
            each.give_surplus()
        exchange.state[_HELD] = held

    # Keeping house

    def _run(self) -> None:
        """Begin to keep house, with the first reservation: who has no quotas pays nothing for them."""
        self._is_running = True
        self._database.listen(CHANNEL, self._leases.give_way, lambda: None)
        self._tasks.start("quota upkeep", self._keep_house())

    async def _keep_house(self) -> None:
        purged_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(HEARTBEAT_SECONDS)
            self._leases.tidy()
            if self._clock.monotonic() - purged_at > PURGE_SECONDS:
                purged_at = self._clock.monotonic()
                await self._purge()

    async def _purge(self) -> None:
        try:
            await self._database.execute(self._queries["purge_quotas"])
            forgotten = timedelta(seconds=EXPIRY_SECONDS)
            for row in await self._database.fetch(self._queries["forgotten_holders"], forgotten):
                await self.release(row["holder"])
        except StorageError as error:
            self._log.warning("quotas_not_purged", error=error.message)


class QuotaSettlement:
    """Turns what was leased into what is settled, in the transaction that writes the ledger."""

    def __init__(self, queries: Mapping[str, str]) -> None:
        self._query = queries["settle_quotas"]

    async def write(self, connection: Connection, recorded: Sequence[Document]) -> None:
        """Settle what these records were charged. Raises StorageError."""
        charges = [charge for record in recorded for charge in record.get("charges", ())]
        if charges:
            await connection.execute(self._query, encode_json(charges).decode())


def _charges(held: Sequence[Reservation]) -> Sequence[Fragment]:
    return [charge for each in held for charge in each.charges()]


def _returns(exchange: Exchange) -> dict[Lease, Decimal]:
    """What earlier attempts of the exchange turned out not to need, and the journal does not know of yet."""
    found: dict[Lease, Decimal] = {}
    for reservation in exchange.state.get(_HELD) or ():
        if reservation.is_settled:
            for lease, surplus in reservation.surplus:
                found[lease] = found.get(lease, _ZERO) + surplus
    return found


def _exhausted(lease: Lease, lacking: Decimal) -> AllowanceExhausted:
    allowance = lease.allowance
    is_reserved = allowance.cap is not None and lease.settled + lease.free + lacking <= allowance.cap
    return AllowanceExhausted(allowance, is_reserved=is_reserved)
