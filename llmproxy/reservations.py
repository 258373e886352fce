"""Reservations: what an attempt may use, what it has used, and what goes back when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from llmproxy.exchange import Document
from llmproxy.leases import Lease

_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class Item:
    """One allowance's part of a reservation: how much, and how much of that the lease stands for."""

    lease: Lease
    amount: Decimal
    backed: Decimal
    is_recorded: bool

    def charge(self, holder: str) -> Document:
        """What it comes to, as records have it."""
        name, bucket = self.lease.written
        amount = f"{self.amount:f}"
        leased = amount if self.backed >= self.amount else f"{self.backed:f}"
        return {"holder": holder, "allowance": name, "bucket": bucket, "amount": amount, "leased": leased}

    @property
    def surplus(self) -> Decimal:
        """What is backed and was not needed."""
        return self.backed - self.amount if self.backed > self.amount else _ZERO

    def settle(self, amount: Decimal) -> None:
        """Say what was used; more than is backed takes what is free."""
        self.amount = amount
        if amount > self.backed and self.lease.free > 0 and self.lease.allowance.cap is not None:
            lacking = min(amount - self.backed, self.lease.free)
            self.lease.free -= lacking
            self.backed += lacking

    def give_surplus(self) -> None:
        """Have what was not needed reserved by others."""
        if self.backed > self.amount:
            self.lease.free += self.backed - self.amount
            self.backed = self.amount

    def let_go(self) -> None:
        """The end of it."""
        self.give_surplus()
        self.lease.holds -= 1


class Reservation:
    """What may be used of some allowances.

    Attributes:
        is_settled: Whether it has been said what was used.
    """

    __slots__ = ("is_settled", "items")

    def __init__(self, items: Sequence[Item]) -> None:
        self.items: Final = items
        self.is_settled = False

    def settle(self, amounts: Sequence[Decimal]) -> None:
        """Say what was used, in the order in which it was reserved; only the first time counts.

        What is never settled was used in full.
        """
        if self.is_settled:
            return
        self.is_settled = True
        for item, amount in zip(self.items, amounts, strict=True):
            item.settle(amount)
            if not item.is_recorded:
                item.let_go()

    @property
    def has_overrun(self) -> bool:
        """Whether more was used than there was room for."""
        return any(item.amount > item.backed for item in self.items if item.lease.allowance.cap is not None)

    def give_surplus(self) -> None:
        """Have what was settled as not needed reserved by others: only the journal's last word may go before this."""
        if self.is_settled:
            for item in self.items:
                item.give_surplus()

    def let_go(self) -> None:
        """The end, which the journal has."""
        for item in self.items:
            if item.is_recorded:
                item.let_go()


def item_for(lease: Lease, amount: Decimal, free: Decimal) -> Item:
    """An item of so much, as far as it is free backed by the lease."""
    backed = _ZERO if lease.allowance.cap is None else max(min(amount, free), _ZERO)
    return Item(lease, amount, backed, is_recorded=lease.allowance.share is not None)
