"""The ledger as it is read back and corrected: in whole requests, page by page, and only ever by adding to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact
from itertools import groupby
from typing import Any, Final, NamedTuple
from uuid import UUID

from llmproxy.exchange import Target
from llmproxy.services import Connection, Row
from llmproxy.usage import USAGE_CLASSES, Cost, Usage

PAGE_ROWS: Final = 5_000
ADJUSTMENT: Final = "adjustment"

# Sums of any number of amounts, none of which may lose a digit.
_EXACT: Final = Context(prec=1_000, traps=[Inexact])
_ZERO: Final = Decimal(0)
_BEGINNING: Final = (UUID(int=0), datetime(1, 1, 1, tzinfo=UTC))

# What some usage of a target costs at a time.
Pricer = Callable[[Target, Usage, datetime], Cost]


class Adjustment(NamedTuple):
    """A row to add to the ledger: what the entry `of_entry`, and others at the same model, should have cost more."""

    request_id: UUID
    occurred_at: datetime
    of_entry: int
    entry: int
    amount_usd: Decimal
    cost_provenance: str
    price_source: str | None


class Repriced(NamedTuple):
    """What a request's entries at one model cost by the ledger and by the prices of now.

    Attributes:
        model: `provider/model`.
        entries: How many there are.
        recorded_usd: With all earlier adjustments; None when no price was known.
        repriced_usd: None when no price is known now: the ledger then stays as it is.
        adjustment: What brings the ledger to it; None when nothing differs.
    """

    model: str
    entries: int
    recorded_usd: Decimal | None
    repriced_usd: Decimal | None
    adjustment: Adjustment | None


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """The sum, to the last digit."""
    total = _ZERO
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


def difference(left: Decimal, right: Decimal) -> Decimal:
    """`left - right`, to the last digit."""
    return _EXACT.subtract(left, right)


# Reading


def day_bounds(day: date, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """The part of a UTC day that is in a span."""
    start = datetime.combine(day, time(), UTC)
    end = start + timedelta(days=1)
    return max(start, since or start), min(end, until or end)


async def pages(
    connection: Connection, query: str, first: datetime, before: datetime, rows: int = PAGE_ROWS
) -> AsyncIterator[Sequence[Row]]:
    """The entries of a part of one day, in pages that no request is cut by. Raises StorageError.

    Args:
        query: `ledger_page` with its columns filled in, among them `request_id` and `occurred_at`.
    """
    place = _BEGINNING
    while found := await connection.fetch(query, first, before, *place, rows):
        is_last = len(found) < rows
        page = found if is_last else _whole_requests(found)
        yield page
        if is_last:
            return
        place = _place(page[-1])


def requests(page: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The entries of a page, request by request."""
    for _, entries in groupby(page, key=_place):
        yield tuple(entries)


def _whole_requests(rows: Sequence[Row]) -> Sequence[Row]:
    """Without the last request, of which the next page may have more; no request has a whole page of entries."""
    last = _place(rows[-1])
    return [row for row in rows if _place(row) != last] or rows


def _place(row: Row) -> tuple[UUID, datetime]:
    return row["request_id"], row["occurred_at"]


# Repricing


def reprice(entries: Sequence[Row], price: Pricer, is_wanted: Callable[[str], bool]) -> Iterator[Repriced]:
    """What a request's entries should have cost, model by model.

    Entries at the same model are taken together, for an adjustment says only which model it is about. What was assumed
    to have been used was charged as it had been reserved, and stays as it is.

    Args:
        entries: All of one request, adjustments included.
        is_wanted: Whether `provider/model` is to be repriced.
    """
    next_entry = max(entry["entry"] for entry in entries) + 1
    charged = [entry for entry in entries if entry["usage_provenance"] and entry["provider_name"]]
    for model, alike in _by_model(charged).items():
        own = [entry for entry in alike if entry["kind"] != ADJUSTMENT]
        if own and is_wanted(model):
            repriced = _reprice_model(model, own, alike, price, next_entry)
            next_entry += repriced.adjustment is not None
            yield repriced


def usage_of(entry: Row) -> Usage:
    """What an entry is of."""
    counts: dict[str, Any] = {name: entry[name] or 0 for name in USAGE_CLASSES}  # ints, beside fields of other types
    served = {"service_tier": entry["service_tier"], "region": entry["service_region"]}
    return Usage(**counts, **served, provenance=entry["usage_provenance"])


def _by_model(entries: Iterable[Row]) -> Mapping[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for entry in entries:
        found.setdefault(f"{entry['provider_name']}/{entry['response_model']}", []).append(entry)
    return found


def _reprice_model(model: str, own: Sequence[Row], alike: Sequence[Row], price: Pricer, next_entry: int) -> Repriced:
    costs = [_cost(entry, price) for entry in own]
    recorded = [entry["amount_usd"] for entry in alike if entry["amount_usd"] is not None]
    recorded_usd = exact_sum(recorded) if recorded else None
    amounts = [cost.amount_usd for cost in costs if cost.amount_usd is not None]
    if len(amounts) < len(costs):
        return Repriced(model, len(own), recorded_usd, None, None)
    repriced_usd = exact_sum(amounts)
    has_price = len(alike) > len(own) or all(entry["amount_usd"] is not None for entry in own)
    amount = difference(repriced_usd, recorded_usd or _ZERO)
    if has_price and not amount:
        return Repriced(model, len(own), recorded_usd, repriced_usd, None)
    base, cost = own[0], costs[0]
    adjustment = Adjustment(*_place(base), base["entry"], next_entry, amount, cost.provenance, cost.price_source)
    return Repriced(model, len(own), recorded_usd, repriced_usd, adjustment)


def _cost(entry: Row, price: Pricer) -> Cost:
    if entry["usage_provenance"] == "assumed" and entry["amount_usd"] is not None:
        return Cost(entry["amount_usd"], "assumed", entry["price_source"])
    target = Target(entry["provider_name"], entry["response_model"])
    return price(target, usage_of(entry), entry["started_at"])
