"""Regions: what lies within the place that a workspace's requests must not leave."""

from __future__ import annotations

import pytest

from llmproxy.regions import lies_within


@pytest.mark.parametrize(
    "region", ["eu", "EU", "eu-west-1", "eu-central-1", "europe-west4", "westeurope", "swedencentral"]
)
def test_vendors_words_for_european_places_lie_in_eu(region: str) -> None:
    """However AWS, Google and Azure call them."""
    assert lies_within(region, "eu")


@pytest.mark.parametrize(
    "region",
    [None, "", "us", "us-east-1", "global", "eu-west-2", "europe-west6", "uksouth", "switzerlandnorth", "europium"],
)
def test_what_is_not_known_to_lie_inside_lies_outside(region: str | None) -> None:
    """Also London and Zurich, whose names look like their neighbours', and a target that names no region."""
    assert not lies_within(region, "eu")


def test_a_narrow_constraint_takes_only_itself() -> None:
    """A wider or another region does not satisfy it."""
    assert lies_within("eu-west-1", "eu-west-1")
    assert not lies_within("eu", "eu-west-1")
    assert not lies_within("eu-west-3", "eu-west-1")
