"""What vendors charge, as their exports have it: read from CSV and summed up by UTC day and model. Pure."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

from llmproxy.errors import BadRequest
from llmproxy.ledger import exact_sum

_ZERO: Final = Decimal(0)
_NUMBERS: Final = ("input_tokens", "output_tokens", "amount_usd")
# An amount is taken to be rounded at its last digit, but not more coarsely than to whole cents.
_COARSEST: Final = -2
_DATED: Final = re.compile(r"-(\d{4}-\d{2}-\d{2}|20\d{6})$", re.ASCII)
_NO_WORD: Final = re.compile(r"[^a-z0-9]+", re.ASCII)
_DIGITS: Final = re.compile(r"\d{9,11}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns of a CSV file say what; several that stand for one number are added up.

    Attributes:
        currency: The column that has to say `usd`, if there is one.
        model_ends_at: What ends the model's name in its column.
    """

    date: str
    model: str
    input_tokens: tuple[str, ...] = ()
    output_tokens: tuple[str, ...] = ()
    amount_usd: tuple[str, ...] = ()
    currency: str | None = None
    model_ends_at: str | None = None

    @property
    def columns(self) -> set[str]:
        """All that a file has to have."""
        named = {self.date, self.model, *self.input_tokens, *self.output_tokens, *self.amount_usd}
        return named | ({self.currency} if self.currency else set())


_TOKENS: Final = ("input_tokens",), ("output_tokens",)
# The first whose columns a file has is taken.
LAYOUTS: Final[Mapping[str, Layout]] = {
    "OpenAI's costs": Layout(
        "start_time", "line_item", amount_usd=("amount_value",), currency="amount_currency", model_ends_at=","
    ),
    "OpenAI's usage": Layout("start_time", "model", *_TOKENS),
    "Anthropic's costs": Layout("usage_date_utc", "model", amount_usd=("cost_usd",)),
    "Anthropic's usage": Layout(
        "usage_date_utc",
        "model_version",
        input_tokens=(
            *("usage_input_tokens_no_cache", "usage_input_tokens_cache_write_5m"),
            *("usage_input_tokens_cache_write_1h", "usage_input_tokens_cache_read"),
        ),
        output_tokens=("usage_output_tokens",),
    ),
    "amounts and tokens": Layout("date", "model", *_TOKENS, ("amount_usd",)),
    "amounts": Layout("date", "model", amount_usd=("amount_usd",)),
    "tokens": Layout("date", "model", *_TOKENS),
}


@dataclass(slots=True)
class Charged:
    """What is charged for one model on one day; None where nothing is said of it.

    Attributes:
        rounding_usd: How much more or less it may be, since amounts are rounded.
        unpriced: How many entries of ours have no amount.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    amount_usd: Decimal | None = None
    rounding_usd: Decimal = _ZERO
    unpriced: int = 0

    def add(self, other: Charged) -> None:
        """Add what is charged elsewhere."""
        self.input_tokens = _either(self.input_tokens, other.input_tokens)
        self.output_tokens = _either(self.output_tokens, other.output_tokens)
        if other.amount_usd is not None:
            self.amount_usd = exact_sum([self.amount_usd or _ZERO, other.amount_usd])
        self.rounding_usd = exact_sum([self.rounding_usd, other.rounding_usd])
        self.unpriced += other.unpriced


class Place(NamedTuple):
    """What a sum is for; the model is None for costs of no model."""

    day: date
    model: str | None


Charges = Mapping[Place, Charged]


def plain_name(model: str) -> str | None:
    """A model's name without date, case and punctuation; None for no name.

    Vendors name one model in many ways: `gpt-4o-2024-08-06`, `Claude Haiku 4.5`.
    """
    name = _NO_WORD.sub("-", model.strip().lower()).strip("-")
    return _DATED.sub("", name) or None


# Reading exports


@dataclass(frozen=True, slots=True)
class InvoiceReader:
    """Reads CSV files of vendors.

    Attributes:
        layout: What says what; None to tell it by the columns.
        renamed: Names of models in the file, and what the ledger calls them.
    """

    layout: Layout | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def read(self, lines: Iterable[str]) -> Charges:
        """What the file says, summed up by day and model. Raises BadRequest that names the line."""
        rows = csv.DictReader(lines, strict=True)
        found: dict[Place, Charged] = {}
        try:
            layout = self._layout_of(rows.fieldnames or ())
            for row in rows:
                # Buckets in which nothing happened have a time and nothing else.
                if any(row.get(name) for name in layout.columns - {layout.date}):
                    found.setdefault(self._place(layout, row), Charged()).add(_charged(layout, row))
        except (csv.Error, ValueError) as error:
            raise BadRequest(f"Line {rows.line_num} of the invoice cannot be read: {error}.") from error
        return found

    def _layout_of(self, columns: Sequence[str]) -> Layout:
        if self.layout is None:
            known = next((each for each in LAYOUTS.values() if each.columns <= set(columns)), None)
            if known is None:
                raise BadRequest("The columns are of no known export; say with --columns which are which.")
            return known
        missing = sorted(self.layout.columns - set(columns))
        if missing:
            raise BadRequest(f"The invoice has no column {missing[0]!r}; it has {', '.join(columns)}.")
        return self.layout

    def _place(self, layout: Layout, row: Mapping[str, str | None]) -> Place:
        name = row[layout.model] or ""
        if layout.model_ends_at:
            name = name.split(layout.model_ends_at)[0]
        return Place(_day(row[layout.date] or ""), plain_name(self.renamed.get(name.strip(), name)))


def layout_of(columns: Mapping[str, str]) -> Layout:
    """A layout from names like `date=Day,amount_usd=Cost`; several columns of one number have a plus between them."""
    numbers = [name for name in _NUMBERS if name in columns]
    if columns.keys() - {"date", "model", *_NUMBERS} or not numbers or not {"date", "model"} <= columns.keys():
        raise BadRequest(f"--columns takes date, model, and any of {', '.join(_NUMBERS)}.")
    input_tokens, output_tokens, amount_usd = (_several(columns.get(name)) for name in _NUMBERS)
    return Layout(columns["date"], columns["model"], input_tokens, output_tokens, amount_usd)


def _several(names: str | None) -> tuple[str, ...]:
    return tuple(names.split("+")) if names else ()


def _charged(layout: Layout, row: Mapping[str, str | None]) -> Charged:
    currency = row[layout.currency] if layout.currency else "usd"
    if (currency or "usd").lower() != "usd":
        raise ValueError(f"{currency} is not US dollars")
    amounts = [_number(row[name]) for name in layout.amount_usd]
    return Charged(
        _tokens(row, layout.input_tokens),
        _tokens(row, layout.output_tokens),
        exact_sum(amounts) if amounts else None,
        exact_sum(_rounding(amount) for amount in amounts),
    )


def _tokens(row: Mapping[str, str | None], columns: Sequence[str]) -> int | None:
    return int(sum(_number(row[name]) for name in columns)) if columns else None


def _number(text: str | None) -> Decimal:
    try:
        number = Decimal((text or "0").strip().removeprefix("$").replace(",", "") or "0")
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise ValueError(f"{text!r} is not a number")
    return number


def _rounding(amount: Decimal) -> Decimal:
    exponent = amount.as_tuple().exponent
    return Decimal(5).scaleb(min(int(exponent), _COARSEST) - 1) if amount else _ZERO


def _day(text: str) -> date:
    if _DIGITS.fullmatch(text.strip()):
        return datetime.fromtimestamp(int(text), UTC).date()
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} is not a date") from error
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()


def _either(left: int | None, right: int | None) -> int | None:
    return left if right is None else (left or 0) + right
