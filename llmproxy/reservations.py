"""Reservations: what an attempt may use, what it has used, and what goes back when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from orjson import Fragment

from llmproxy.leases import Lease

_ZERO: Final = Decimal(0)


class Reservation:
    """What may be used of some allowances.

    Lists side by side instead of an object for each allowance: one is made for every attempt, with several of them.

    Attributes:
        leases: What it is taken from.
        amounts: How much of each; what was used, once that is known.
        backed: How much of that the lease stands for.
        is_settled: Whether it has been said what was used.
    """

    __slots__ = ("amounts", "backed", "is_settled", "leases")

    def __init__(self, wants: Sequence[tuple[Lease, Decimal]], returns: Mapping[Lease, Decimal]) -> None:
        """So much of each, as far as it is free backed by the lease; nothing is taken yet.

        Args:
            returns: What becomes free before it is taken.
        """
        self.leases: Final = [lease for lease, _ in wants]
        self.amounts = [amount for _, amount in wants]
        self.backed = [_backed(lease, amount, returns) for lease, amount in wants]
        self.is_settled = False

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
        for number, (lease, amount) in enumerate(zip(self.leases, amounts, strict=True)):
            self.amounts[number] = amount
            if amount > self.backed[number] and lease.free > 0 and lease.allowance.cap is not None:
                # More than is backed takes what is free.
                lacking = min(amount - self.backed[number], lease.free)
                lease.free -= lacking
                self.backed[number] += lacking
            if not lease.is_recorded:
                self._let_go(number, lease)

    @property
    def has_overrun(self) -> bool:
        """Whether more was used than there was room for."""
        # Hardly ever: nothing is looked at closely as long as nothing is short.
        short = [n for n, backed in enumerate(self.backed) if self.amounts[n] > backed]
        return any(self.leases[number].allowance.cap is not None for number in short)

    @property
    def surplus(self) -> list[tuple[Lease, Decimal]]:
        """What is backed and was not needed."""
        parts = zip(self.leases, self.amounts, self.backed, strict=True)
        return [(lease, backed - amount) for lease, amount, backed in parts if backed > amount]

    def charges(self) -> list[Fragment]:
        """What it comes to, as records have it: JSON already, because it is written for every attempt."""
        charges, written = [], ""
        known: Decimal | None = None
        for lease, amount, backed in zip(self.leases, self.amounts, self.backed, strict=True):
            if not lease.is_recorded or not amount:
                continue
            if amount is not known:
                # Most budgets count dollars, and so have the same amount of it taken.
                known, written = amount, f"{amount:f}"
            leased = written if backed is amount or backed >= amount else f"{backed:f}"
            charges.append(Fragment(f'{lease.charge}{written}","leased":"{leased}"}}'))
        return charges

    def give_surplus(self) -> None:
        """Have what was settled as not needed reserved by others: only the journal's last word may go before this."""
        if self.is_settled:
            for number, lease in enumerate(self.leases):
                self._give_surplus(number, lease)

    def let_go(self) -> None:
        """The end, which the journal has."""
        for number, lease in enumerate(self.leases):
            if lease.is_recorded:
                self._let_go(number, lease)

    def _let_go(self, number: int, lease: Lease) -> None:
        self._give_surplus(number, lease)
        lease.holds -= 1

    def _give_surplus(self, number: int, lease: Lease) -> None:
        amount, backed = self.amounts[number], self.backed[number]
        if backed > amount:
            lease.free += backed - amount
            self.backed[number] = amount


def _backed(lease: Lease, amount: Decimal, returns: Mapping[Lease, Decimal]) -> Decimal:
    if lease.allowance.cap is None:
        return _ZERO
    if amount <= lease.free:
        return amount
    return min(amount, max(lease.free + returns.get(lease, _ZERO), _ZERO))
