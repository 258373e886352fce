"""Reservations: what an attempt may use, what it has used, and what goes back when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """

    __slots__ = ("amounts", "backed", "is_settled", "leases")

    def __init__(
        self, together: Together, amounts: Sequence[Decimal], returns: Mapping[Lease, Decimal] | None = None
    ) -> None:
        """So much of each, as far as it is free backed by the lease; nothing is taken yet.

        Args:
            returns: What becomes free before it is taken; None where there is room for all as it is.
        """
        self.leases: Final = together.leases
        self.amounts = amounts
        self.is_settled = False
        if returns is None and together.are_capped:
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
            if amount > backed and lease.free > 0 and lease.is_capped:
                # More than is backed takes what is free.
                lacking = min(amount - backed, lease.free)
                lease.free -= lacking
                self.backed[number] += lacking
            if not lease.is_recorded:
                self._let_go(number, lease)

    @property
    def has_overrun(self) -> bool:
        """Whether more was used than there was room for."""
        # Hardly ever: nothing is looked at closely as long as nothing is short.
        short = [n for n, backed in enumerate(self.backed) if self.amounts[n] > backed]
        return any(self.leases[number].is_capped for number in short)

    @property
    def surplus(self) -> list[tuple[Lease, Decimal]]:
        """What is backed and was not needed."""
        parts = zip(self.leases, self.amounts, self.backed, strict=True)
        return [(lease, backed - amount) for lease, amount, backed in parts if backed > amount]

    def charges(self, holder: str) -> Iterator[Fragment]:
        """What it comes to, as records have it: JSON already, because it is written for every attempt.

        Neighbours of which the same is used, as it is of all budgets in dollars, are one charge.
        """
        of: list[str] = []
        known: tuple[Decimal, Decimal] | None = None
        for lease, amount, backed in zip(self.leases, self.amounts, self.backed, strict=True):
            if not lease.is_recorded or not amount:
                continue
            charged = (amount, min(amount, backed))
            if known is not None and charged != known:
                yield _charge(holder, of, *known)
                of = []
            known = charged
            of.append(lease.charge)
        if known is not None:
            yield _charge(holder, of, *known)

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


def has_room(together: Together, amounts: Sequence[Decimal]) -> bool:
    """Whether all of it is free."""
    for lease, amount in zip(together.leases, amounts, strict=True):
        if amount > lease.free and lease.is_capped:
            return False
    return True


def _charge(holder: str, of: Sequence[str], amount: Decimal, leased: Decimal) -> Fragment:
    return Fragment(f'{{"holder":"{holder}","of":[{",".join(of)}],"amount":"{amount:f}","leased":"{leased:f}"}}')


def _backed(lease: Lease, amount: Decimal, returns: Mapping[Lease, Decimal]) -> Decimal:
    if not lease.is_capped:
        return _ZERO
    if amount <= lease.free:
        return amount
    return min(amount, max(lease.free + returns.get(lease, _ZERO), _ZERO))
