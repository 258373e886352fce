"""Reservations: what an attempt may use, what it has used, and what goes back when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from orjson import Fragment

from llmproxy.lease import Lease, Together

_ZERO: Final = Decimal(0)


class Reservation:
    """What may be used of some allowances.

    Lists side by side instead of an object for each allowance: one is made for every attempt, with several of them.
    What is recorded goes back when the journal has the record, anything else when it is settled.

    Attributes:
        leases: What it is taken from.
        amounts: How much of each allowance; what was used, once that is known.
        is_settled: Whether it has been said what was used.
        overruns: The places of those of which more was used than there was room for.
    """

    __slots__ = ("_backed", "_together", "amounts", "is_settled", "leases", "overruns")

    def __init__(self, together: Together, amounts: Sequence[Decimal], backed: list[Decimal], now: float) -> None:
        """Have nobody else use so much of each.

        Args:
            backed: How much of that the leases stand for.
        """
        self._together = together
        self.leases: Final = together.leases
        self._backed = backed
        self.amounts = amounts
        self.is_settled = False
        self.overruns: tuple[int, ...] = ()
        for lease, part in zip(self.leases, backed, strict=True):
            lease.free -= part
            lease.holds += 1
            lease.used_at = now

    @property
    def has_overrun(self) -> bool:
        """Whether more was used than there was room for."""
        return bool(self.overruns)

    def undo(self) -> None:
        """Have it never been made."""
        for lease, backed in zip(self.leases, self._backed, strict=True):
            lease.free += backed
            lease.holds -= 1

    def settle(self, amounts: Sequence[Decimal]) -> None:
        """Say what was used, in the order in which it was reserved; only the first time counts.

        What is never settled was used in full.
        """
        if self.is_settled:
            return
        self.is_settled = True
        self.amounts = amounts
        for number, (lease, amount, backed) in enumerate(zip(self.leases, amounts, self._backed, strict=True)):
            if amount > backed and lease.is_capped:
                self._cover(number, amount - backed)
            if not lease.is_recorded:
                if amount < backed:
                    lease.free += backed - amount
                    self._backed[number] = amount
                lease.holds -= 1

    @property
    def surplus(self) -> list[tuple[Lease, Decimal]]:
        """What is backed and was not needed."""
        parts = zip(self.leases, self.amounts, self._backed, strict=True)
        return [(lease, backed - amount) for lease, amount, backed in parts if backed > amount]

    def charges(self) -> Sequence[Fragment]:
        """What it comes to, as records have it: JSON already, because it is written for every attempt."""
        recorded = self._together.recorded
        if recorded is not None:
            amounts, backed = self.amounts[recorded], self._backed[recorded]
            amount, held = amounts[0], backed[0]
            if amount and amounts.count(amount) == len(amounts) == backed.count(held):
                # As it is of budgets in dollars.
                return [_charge(self._together.charge, amount, held)]
        parts = zip(self.leases, self.amounts, self._backed, strict=True)
        return [_charge(lease.charge, amount, held) for lease, amount, held in parts if lease.is_recorded and amount]

    def give_surplus(self) -> None:
        """Have what was settled as not needed reserved by others: only the journal's last word may go before this."""
        for number, (lease, amount, backed) in enumerate(zip(self.leases, self.amounts, self._backed, strict=True)):
            if backed > amount and lease.is_recorded:
                lease.free += backed - amount
                self._backed[number] = amount

    def let_go(self) -> None:
        """The end, which the journal has."""
        for lease, amount, backed in zip(self.leases, self.amounts, self._backed, strict=True):
            if lease.is_recorded:
                if backed > amount:
                    lease.free += backed - amount
                lease.holds -= 1

    def _cover(self, number: int, lacking: Decimal) -> None:
        """More than is backed takes what is free."""
        lease = self.leases[number]
        found = min(lacking, max(lease.free, _ZERO))
        lease.free -= found
        self._backed[number] += found
        if found < lacking:
            self.overruns = (*self.overruns, number)


def backing(together: Together, amounts: Sequence[Decimal], returns: Mapping[Lease, Decimal]) -> list[Decimal]:
    """How much of the amounts the leases stand for.

    Args:
        returns: What becomes free before it is taken.
    """
    return [_backed(lease, amount, returns) for lease, amount in zip(together.leases, amounts, strict=True)]


def _charge(head: str, amount: Decimal, backed: Decimal) -> Fragment:
    used = f"{amount:f}"
    return Fragment(f'{head}{used}","leased":"{used if backed >= amount else f"{backed:f}"}"}}')


def _backed(lease: Lease, amount: Decimal, returns: Mapping[Lease, Decimal]) -> Decimal:
    if not lease.is_capped:
        return _ZERO
    if amount <= lease.free:
        return amount
    return min(amount, max(lease.free + returns.get(lease, _ZERO), _ZERO))
