"""What vendors add to their usual price for computing in a region: the rows of `premiums.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

NONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Premium:
    """One row."""

    vendor: str
    models: tuple[str, ...]
    regions: tuple[str, ...]
    exempt: tuple[str, ...]
    factor: Decimal

    def holds(self, vendor: str, model: str, region: str) -> bool:
        """Whether a model of a vendor costs more in a region."""
        return (
            vendor == self.vendor
            and region not in self.exempt
            and any(fnmatchcase(model, pattern) for pattern in self.models)
            and any(fnmatchcase(region, pattern) for pattern in self.regions)
        )


class Premiums:
    """The table."""

    def __init__(self, rows: Sequence[Premium]) -> None:
        self._rows = tuple(rows)

    def factor(self, vendor: str, model: str, region: str | None) -> Decimal:
        """What the rates for tokens are multiplied with; 1 where there is no premium."""
        if region is None:
            return NONE
        return next((row.factor for row in self._rows if row.holds(vendor, model, region)), NONE)


def load_premiums() -> Premiums:
    """The table that comes with the gateway."""
    text = resources.files("llmproxy").joinpath("premiums.toml").read_text("utf-8")
    return Premiums([_row(row) for row in tomllib.loads(text)["premium"]])


# A row's values are strings and lists of them.
def _row(row: Mapping[str, Any]) -> Premium:
    return Premium(
        vendor=row["vendor"],
        models=tuple(row["match"]),
        regions=tuple(row["regions"]),
        exempt=tuple(row.get("except", ())),
        factor=Decimal(row["factor"]),
    )
