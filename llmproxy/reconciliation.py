"""What vendors charge beside what the ledger has, by UTC day and model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from llmproxy.invoices import Charged, Charges, Place, plain_name
from llmproxy.ledger import difference
from llmproxy.request import Document
from llmproxy.services import Row

_ZERO: Final = Decimal(0)


class Line(NamedTuple):
    """Both sides of one place; None for a side that has nothing there."""

    place: Place
    invoice: Charged | None
    ledger: Charged | None

    def is_off(self, tolerance: Decimal) -> bool:
        """Whether both differ by more than a part of what the invoice says; by tokens where it has no amounts."""
        invoice, ledger = self.invoice or Charged(), self.ledger or Charged()
        if invoice.amount_usd is not None or (invoice.input_tokens, invoice.output_tokens) == (None, None):
            wanted = invoice.amount_usd or _ZERO
            return abs(difference(ledger.amount_usd or _ZERO, wanted)) > abs(wanted) * tolerance + invoice.rounding_usd
        pairs = (
            (invoice.input_tokens, ledger.input_tokens),
            (invoice.output_tokens, ledger.output_tokens),
        )
        return any(abs((ours or 0) - (theirs or 0)) > (theirs or 0) * tolerance for theirs, ours in pairs)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """An invoice beside the ledger."""

    lines: Sequence[Line]
    tolerance: Decimal

    @property
    def off(self) -> Sequence[Line]:
        """The lines that differ by more than is tolerated."""
        return [line for line in self.lines if line.is_off(self.tolerance)]

    def document(self) -> Document:
        """Both sides as JSON has them."""
        return {
            "ok": not self.off,
            "tolerance": f"{self.tolerance:f}",
            "data": [self._shown(line) for line in self.lines],
            "total": _sides(_sum(line.invoice for line in self.lines), _sum(line.ledger for line in self.lines)),
        }

    def _shown(self, line: Line) -> Document:
        place = {"date": line.place.day.isoformat(), "model": line.place.model}
        return {**place, **_sides(line.invoice, line.ledger), "is_off": line.is_off(self.tolerance)}


def reconcile(invoice: Charges, ledger: Charges, tolerance: Decimal) -> Reconciliation:
    """The two side by side, by day and model."""
    places = sorted({*invoice, *ledger}, key=lambda place: (place.day, place.model or ""))
    return Reconciliation([Line(place, invoice.get(place), ledger.get(place)) for place in places], tolerance)


def ledger_charges(rows: Iterable[Row]) -> Charges:
    """What the ledger says, from rows of `provider_spend`."""
    found: dict[Place, Charged] = {}
    for row in rows:
        own = Charged(row["input_tokens"], row["output_tokens"], row["amount_usd"], unpriced=row["unpriced"])
        found.setdefault(Place(row["day"], plain_name(row["model"] or "")), Charged()).add(own)
    return found


def _sum(sides: Iterable[Charged | None]) -> Charged:
    total = Charged()
    for side in sides:
        if side is not None:
            total.add(side)
    return total


def _sides(invoice: Charged | None, ledger: Charged | None) -> Document:
    theirs, ours = invoice or Charged(), ledger or Charged()
    gap = difference(ours.amount_usd or _ZERO, theirs.amount_usd or _ZERO)
    return {
        "invoice_usd": None if theirs.amount_usd is None else f"{theirs.amount_usd:f}",
        "ledger_usd": None if ours.amount_usd is None else f"{ours.amount_usd:f}",
        "difference_usd": None if theirs.amount_usd is None and invoice else f"{gap:f}",
        "invoice_input_tokens": theirs.input_tokens,
        "ledger_input_tokens": ours.input_tokens,
        "invoice_output_tokens": theirs.output_tokens,
        "ledger_output_tokens": ours.output_tokens,
        "ledger_unpriced": ours.unpriced,
    }
