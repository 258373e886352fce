"""Service tiers: ways of serving that cost more or less than the usual one."""

from __future__ import annotations

from typing import Final

# How vendors call the way in which they serve whoever asks for nothing else.
_USUAL: Final = frozenset(
    {"", "auto", "default", "standard", "standard_only", "on_demand", "traffic_type_unspecified", "unspecified"}
)
_SYNONYMS: Final = {
    "on_demand_priority": "priority",
    "on_demand_flex": "flex",
    "provisioned_throughput": "provisioned",
}
# Those that a vendor may serve in without being asked to, since an account can have them for all its requests.
USUAL_TIERS: Final[tuple[str | None, ...]] = (None, "priority")
_FAST: Final = "fast"


def service_tier(name: object) -> str | None:
    """A tier in one word for all vendors, from what a request or an answer calls it; None is the usual one."""
    if not isinstance(name, str):
        return None
    tier = name.lower()
    return None if tier in _USUAL else _SYNONYMS.get(tier, tier)


def possible_tiers(asked: object, speed: object = None) -> tuple[str | None, ...]:
    """The tiers that an answer may come in to a request that asks for this one; None is the usual one.

    Args:
        speed: What it asks for where the fast mode is a setting of its own.
    """
    tier = service_tier(asked)
    if tier is not None:
        tiers: tuple[str | None, ...] = (None, tier)
    else:
        tiers = USUAL_TIERS if asked is None or asked == "auto" else (None,)
    return (*tiers, _FAST) if speed == _FAST else tiers
