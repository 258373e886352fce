"""Reservations: what an attempt may use, what it has used, and what goes back when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from orjson import Fragment

from llmproxy.leases import Lease, Together

_ZERO: Final = Decimal(0)


class Reservation:
    """What may be used of some allowances.

    Lists side by side instead of an object for each allowance: one is made for every attempt, with several of them.

    Attributes:
        leases: What it is taken from.
        amounts: How much of each; what was used, once that is known.
        backed: How much of that the lease stands for.
        is_settled: Whether it has been said what was used.
        has_overrun: Whether more was used than there was room for.
    """

    __slots__ = ("_together", "amounts", "backed", "has_overrun", "is_settled", "leases")

    def __init__(
        self, together: Together, amounts: Sequence[Decimal], returns: Mapping[Lease, Decimal] | None = None
    ) -> None:
        """So much of each, as far as it is free backed by the lease; nothing is taken yet.

        Args:
            returns: What becomes free before it is taken; None where there is room for all as it is.
        """
        self._together = together
        self.leases: Final = together.leases
        self.amounts = amounts
        self.is_settled = self.has_overrun = False
        if returns is None and together.all_capped:
            self.backed = list(amounts)
        else:
            pairs = zip(self.leases, amounts, strict=True)
            self.backed = [_backed(lease, amount, returns or {}) for lease, amount in pairs]

    def take(self, now: float) -> None:
        """Have nobody else use it."""
        for lease, backed in zip(self.leases, self.backed, strict=True):
            lease.free -= backed
            lease.holds += 1
            lease.used_at = now

    def settle(self, amounts: Sequence[Decimal]) -> None:
        """Say what was used, in the order in which it was reserved; only the first time counts.

        What is never settled was used in full.
        """
        if self.is_settled:
            return
        self.is_settled = True
        self.amounts = amounts
        for number, (lease, amount, backed) in enumerate(zip(self.leases, amounts, self.backed, strict=True)):
            if amount > backed and lease.is_capped:
                self._cover(number, lease, amount - backed)
        self._let_go(are_recorded=False)

    def _cover(self, number: int, lease: Lease, lacking: Decimal) -> None:
        """More than is backed takes what is free."""
        found = min(lacking, max(lease.free, _ZERO))
        lease.free -= found
        self.backed[number] += found
        self.has_overrun = self.has_overrun or found < lacking

    @property
    def surplus(self) -> list[tuple[Lease, Decimal]]:
        """What is backed and was not needed."""
        parts = zip(self.leases, self.amounts, self.backed, strict=True)
        return [(lease, backed - amount) for lease, amount, backed in parts if backed > amount]

    def charges(self) -> Sequence[Fragment]:
        """What it comes to, as records have it: JSON already, because it is written for every attempt."""
        together, amounts, backed = self._together, self.amounts, self.backed
        if not together.any_recorded:
            return ()
        amount, held = amounts[0], backed[0]
        if amount and amounts.count(amount) == len(amounts) == backed.count(held):
            # As it is of budgets in dollars.
            return [_charge(together.charge, amount, held)]
        parts = zip(together.leases, amounts, backed, strict=True)
        return [_charge(lease.charge, amount, held) for lease, amount, held in parts if lease.is_recorded and amount]

    def give_surplus(self) -> None:
        """Have what was settled as not needed reserved by others: only the journal's last word may go before this."""
        self._give_surplus(are_recorded=True)

    def let_go(self) -> None:
        """The end, which the journal has."""
        self._let_go(are_recorded=True)

    def _let_go(self, *, are_recorded: bool) -> None:
        self._give_surplus(are_recorded=are_recorded)
        for lease in self.leases:
            if lease.is_recorded is are_recorded:
                lease.holds -= 1

    def _give_surplus(self, *, are_recorded: bool) -> None:
        for number, (lease, amount, backed) in enumerate(zip(self.leases, self.amounts, self.backed, strict=True)):
            if backed > amount and lease.is_recorded is are_recorded:
                lease.free += backed - amount
                self.backed[number] = amount


def _charge(head: str, amount: Decimal, backed: Decimal) -> Fragment:
    used = f"{amount:f}"
    return Fragment(f'{head}{used}","leased":"{used if backed >= amount else f"{backed:f}"}"}}')


def _backed(lease: Lease, amount: Decimal, returns: Mapping[Lease, Decimal]) -> Decimal:
    if not lease.is_capped:
        return _ZERO
    if amount <= lease.free:
        return amount
    return min(amount, max(lease.free + returns.get(lease, _ZERO), _ZERO))
