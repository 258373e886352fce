"""Regions: a vendor's own word for a place, and the wider one that it belongs to.

Sources: the region names of AWS, Google Cloud and Azure. What is not known to lie inside lies outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

_WIDER: Final[Mapping[str, tuple[str, ...]]] = {
    "eu": (
        *("eu", "eu-*", "europe", "europe-*", "westeurope", "northeurope", "francecentral", "francesouth"),
        *("germanynorth", "germanywestcentral", "italynorth", "polandcentral", "spaincentral", "swedencentral"),
    ),
    "us": (
        *("us", "us-*", "eastus", "eastus2", "westus", "westus2", "westus3", "centralus", "northcentralus"),
        *("southcentralus", "westcentralus"),
    ),
}
# Named like their neighbours, and not of the Union: London and Zurich.
_OUTSIDE: Final[Mapping[str, frozenset[str]]] = {
    "eu": frozenset({"eu-west-2", "eu-central-2", "europe-west2", "europe-west6"})
}


def lies_within(region: str | None, constraint: str) -> bool:
    """Whether a target's region satisfies a constraint; one whose region is not known satisfies none."""
    if region is None:
        return False
    region, constraint = region.lower(), constraint.lower()
    if region == constraint:
        return True
    if region in _OUTSIDE.get(constraint, ()):
        return False
    return any(fnmatchcase(region, pattern) for pattern in _WIDER.get(constraint, ()))
