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
from typing import Final

from orjson import Fragment

from llmproxy import records
from llmproxy.allowances import Allowance, AllowanceExhausted, AllowanceUsage, HeldLease, WorstCase
from llmproxy.errors import StorageError
from llmproxy.exchange import Attempt, Document, Exchange, StateKey
from llmproxy.journal import Journal
from llmproxy.leases import EXPIRY_SECONDS, HEARTBEAT_SECONDS, Lease, Leases, Together
from llmproxy.reservations import Reservation
from llmproxy.segments import encode_json
from llmproxy.services import Clock, Connection, Database, Log, Tasks

CHANNEL: Final = "llmproxy_quotas"
PURGE_SECONDS: Final = 3600.0
# How long a request waits for what other workers hold and have been asked for.
_PAUSES_SECONDS: Final = (0.05, 0.15)
# Others may take what came with a call before the one that asked gets to it.
_MOST_ASKED: Final = 8
_ZERO: Final = Decimal(0)

_HELD: Final = StateKey[list[Reservation]]("quotas")


class Quotas:
    """The allowances of one worker.

    Args:
        queries: Core's own.
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

    async def reserve(
        self,
        exchange: Exchange,
        allowances: Sequence[Allowance],
        amounts: Sequence[Decimal],
        *,
        attempt: Attempt | None = None,
        worst_case: WorstCase | None = None,
        fail_open: bool = False,
    ) -> Reservation:
        """Reserve so much of each, or nothing; from what this worker has leased without asking anybody.

        With an attempt, it stands in the journal before the attempt is made, and is charged should the worker die.

        Args:
            allowances: As a tuple that is used again and again they are looked up once.
            worst_case: What the ledger charges for the attempt in that case.
            fail_open: Go on without a lease when the database cannot be reached.

        Raises AllowanceExhausted, and StorageError when the database is needed and cannot be reached, or the journal
        cannot be written.
        """
        if not self._is_running:
            self._run()
        together = self._leases.together(allowances)
        if attempt is None and together.any_recorded:
            raise ValueError("An allowance of the ledger's can be reserved for an attempt only.")
        now, returns = self._clock.monotonic(), None
        has_room = now <= self._leases.stale_at
        for lease, amount in zip(together.leases, amounts, strict=True):
            has_room = has_room and (amount <= lease.free or not lease.is_capped)
        # Hardly ever is there anything to wait for.
        if not has_room:
            try:
                await self._obtain(together, amounts, exchange if attempt else None)
            except StorageError:
                if not fail_open:
                    raise
            now, returns = self._clock.monotonic(), _returns(exchange) if attempt else {}
        # No await from here on: what is there now is still there when it is taken.
        reservation = Reservation(together, amounts, returns)
        if attempt is not None:
            attempt.reserved = worst_case
            self._hold(exchange, reservation)
        reservation.take(now)
        return reservation

    def remaining(self, allowances: Sequence[Allowance]) -> Sequence[Decimal | None]:
        """What this worker could still use of each, as far as it knows; None when it does not know, or has no cap."""
        return self._leases.remaining(allowances)

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

    @property
    def holds_attempts(self) -> bool:
        """Whether every attempt is reserved before it is made."""
        return self._holding > 0

    def charges(self, exchange: Exchange) -> Document:
        """What the exchange is charged, as a part of its record; nothing when it has reserved nothing."""
        held = exchange.state.get(_HELD)
        return {"charges": _charges(held)} if held else {}

    def let_go(self, exchange: Exchange) -> None:
        """Have what the exchange did not need, once the journal knows what it did need."""
        for reservation in exchange.state.get(_HELD) or ():
            reservation.let_go()

    async def replayed(self, holder: str) -> None:
        """Let others have what a worker holds that has ended, all it had used being settled. Raises StorageError."""
        await self._database.execute(self._queries["release_leases"], holder)

    # Reserving

    async def _obtain(self, together: Together, amounts: Sequence[Decimal], exchange: Exchange | None) -> None:
        """Return when every lease has what is wanted. Raises AllowanceExhausted or StorageError.

        Args:
            exchange: Whose earlier attempts may have something to return.
        """
        pairs = list(zip(together.leases, amounts, strict=True))
        returns = _returns(exchange) if exchange else {}
        pauses = iter(_PAUSES_SECONDS)
        asked = 0
        while lacks := self._lacks(pairs, returns):
            if (asked := asked + 1) > _MOST_ASKED:
                raise _exhausted(*lacks[0])
            if (refused := self._refused(lacks)) is not None:
                raise _exhausted(*refused)
            await self._leases.ask(lacks)
            if (refused := self._refused(self._lacks(pairs, returns))) is None:
                continue
            lease = refused[0]
            pause_seconds = next(pauses, None) if lease.is_waiting_worthwhile else None
            if pause_seconds is None:
                raise _exhausted(*refused)
            # Others have been told, and are about to give back what they do not need.
            await self._clock.sleep(pause_seconds)
            lease.refused = None

    def _lacks(
        self, pairs: Sequence[tuple[Lease, Decimal]], returns: Mapping[Lease, Decimal]
    ) -> list[tuple[Lease, Decimal]]:
        if self._clock.monotonic() > self._leases.stale_at:
            return [(lease, amount) for lease, amount in pairs if lease.is_capped]
        lacks = ((lease, amount - lease.free - returns.get(lease, _ZERO)) for lease, amount in pairs if lease.is_capped)
        return [(lease, lacking) for lease, lacking in lacks if lacking > 0]

    def _refused(self, lacks: Sequence[tuple[Lease, Decimal]]) -> tuple[Lease, Decimal] | None:
        """Those of them that are known to be in vain, the first."""
        now = self._clock.monotonic()
        return next(((lease, amount) for lease, amount in lacks if lease.is_refused(amount, now)), None)

    def _hold(self, exchange: Exchange, reservation: Reservation) -> None:
        """Reserve for an attempt: in the journal first, so that nothing has changed when that cannot be written."""
        held = [*(exchange.state.get(_HELD) or ()), reservation]
        self._journal.hold(exchange.id, records.hold(exchange, _charges(held)))
        for each in held[:-1]:
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
    return held[0].charges() if len(held) == 1 else [charge for each in held for charge in each.charges()]


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
