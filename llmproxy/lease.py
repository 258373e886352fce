"""A lease: the slice of an allowance that this worker holds; what it wants of Postgres, and several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from llmproxy.allowances import Allowance
from llmproxy.request import Document
from llmproxy.segments import encode_json

# Slices grow for a worker that asks more often than this, and shrink for one that asks more seldom than ten times that.
BUSY_SECONDS: Final = 1.0
# After a call that failed the next one is not tried before.
AWAY_SECONDS: Final = 0.5
_MOST_EXTRA: Final = 4096
_LEAST_EXTRA: Final = 16
_ZERO: Final = Decimal(0)


class Opening:
    """Whether a lease begins with what the ledger has.

    Attributes:
        is_done: It does, as far as is known.
        running: Done once it does, or that cannot be found out now; None as long as nobody tries.
        again_at: Not to be tried before.
    """

    __slots__ = ("again_at", "is_done", "running")

    def __init__(self) -> None:
        self.is_done = False
        self.running: asyncio.Future[bool] | None = None
        self.again_at = float("-inf")


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
        opening: How far it is to begin with what the ledger has.
        charge: The beginning of a charge to it, as records have it, up to the amount.
    """

    __slots__ = (
        *("allowance", "asked_at", "charge", "extra", "free", "holds", "is_capped", "is_recorded"),
        *("is_waiting_worthwhile", "opening", "refused", "refused_until", "returned_at", "room", "settled", "used_at"),
    )

    def __init__(self, allowance: Allowance, holder: str) -> None:
        self.allowance = allowance
        self.charge = charge_to(holder, [allowance])
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
        self.is_waiting_worthwhile = False
        self.opening: Final = Opening()

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
        self.charge: Final = charge_to(holder, [allowances[number] for number in numbers])
        self.leases: tuple[Lease, ...] = ()
        self.all_capped = True
        self.generation = -1


@dataclass(slots=True)
class Want:
    """What one lease has to do with a call."""

    lease: Lease
    wanted: Decimal = _ZERO
    least: Decimal = _ZERO
    given_back: Decimal = _ZERO

    def add(self, amount: Decimal) -> None:
        """Have it grow by so much more."""
        self.wanted += amount
        self.least = min(self.least, amount) if self.least else amount


def described(number: int, want: Want, now: float) -> Document:
    """The same as Postgres is told it; `number` is what its answer is known by."""
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


def remaining(leases: Iterable[Lease | None]) -> Sequence[Decimal | None]:
    """What this worker could still use of each, as far as it knows; None when it does not know, or has no cap."""
    return [None if lease is None or lease.room is None else lease.room + lease.free for lease in leases]


def charge_to(holder: str, allowances: Sequence[Allowance]) -> str:
    """The beginning of a charge, as records have it, up to the amount."""
    charged = [{"allowance": each.name, "bucket": each.bucket.isoformat()} for each in allowances]
    return encode_json({"holder": holder, "of": charged})[:-1].decode() + ',"amount":"'
