"""What the admin API reads and writes: bodies held to a model, query parameters held to a list, rows as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmproxy.errors import BadRequest
from llmproxy.request import Document
from llmproxy.services import Row

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 1000
_AGE: Final = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# What a column is called where it is called otherwise.
_RENAMED: Final = {"user_id": "user"}

Word = Annotated[str, Field(min_length=1, max_length=200)]
Model = TypeVar("Model", bound=BaseModel)


class Body(BaseModel):
    """A request's body: unknown fields are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read_body(model: type[Model], body: bytes) -> Model:
    """The body as a model; an empty one is an empty object. Raises BadRequest that names the first wrong field."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise _mistake(error) from error


def _mistake(error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(step) for step in first["loc"]) or None
    if param is None and not first["type"].startswith("value_error"):
        return BadRequest("The body must be a JSON object.")
    if first["type"] == "extra_forbidden":
        return BadRequest(f"'{param}' is not a field that this request takes; leave it out.", param=param)
    if first["type"] == "missing":
        return BadRequest(f"'{param}' is missing.", param=param)
    reason = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return BadRequest(f"{f'{param!r} is wrong: ' if param else ''}{reason.rstrip('.')}.", param=param)


class Parameters:
    """A request's query. Raises BadRequest for a parameter that is not among `allowed`."""

    def __init__(self, query: Mapping[str, str], allowed: Sequence[str], now: datetime) -> None:
        for name in query:
            if name not in allowed:
                message = f"'{name[:100]}' is not a parameter here; there are {', '.join(allowed)}."
                raise BadRequest(message, param=name[:100])
        self._query = query
        self._now = now

    def text(self, name: str) -> str | None:
        """A parameter, None when it is absent or empty."""
        return self._query.get(name) or None

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """One of `choices`. Raises BadRequest."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise BadRequest(f"'{name}' must be one of {', '.join(choices)}.", param=name)
        return value

    def moment(self, name: str) -> datetime | None:
        """A time. Raises BadRequest."""
        value = self.text(name)
        return moment(value, self._now, name) if value else None

    def limit(self, default: int = DEFAULT_LIMIT) -> int:
        """How many rows are asked for. Raises BadRequest."""
        value = self.text("limit")
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,4}", value) or not 1 <= int(value) <= MAX_LIMIT:
            raise BadRequest(f"'limit' must be a whole number from 1 to {MAX_LIMIT}.", param="limit")
        return int(value)


def moment(text: str, now: datetime, param: str) -> datetime:
    """A time as ISO 8601 (UTC where it does not say), or how long before `now`, like `24h`. Raises BadRequest."""
    try:
        if age := _AGE.fullmatch(text):
            return now - timedelta(**{_UNITS[age[2]]: int(age[1])})
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        message = f"'{param}' must be a time like 2026-01-31T12:00:00Z, or an age like 24h or 7d."
        raise BadRequest(message, param=param) from error
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def shown(row: Row) -> Document:
    """A row as JSON has it: amounts as exact text."""
    return {
        _RENAMED.get(name, name): f"{value:f}" if isinstance(value, Decimal) else value for name, value in row.items()
    }


def page(rows: Sequence[Row], limit: int) -> Document:
    """A list of at most `limit` rows, of which one more was read to know whether there are more."""
    return {"object": "list", "data": [shown(row) for row in rows[:limit]], "has_more": len(rows) > limit}
