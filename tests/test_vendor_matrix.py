"""The page on providers: its tables are what the translations do, and its configurations are accepted."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from llmproxy.cli.offline import offline_services
from llmproxy.cli.settings import Settings
from llmproxy.config import LoggingConfig
from llmproxy.gateway import read_configuration
from llmproxy.logs import make_log
from llmproxy.model_facts import ModelFacts
from tests.test_docs import blocks, rows
from tests.vendor_matrix import COLUMNS, FEATURES, IGNORED, PAGE, Column, outcome, render

KINDS = dict.fromkeys(column.kind for column in COLUMNS)


def test_the_page_is_up_to_date() -> None:
    """Whoever changes what a vendor gets runs `make docs`."""
    assert render(PAGE.read_text()) == PAGE.read_text()


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.kind}/{column.model}")
def test_nothing_is_left_out_without_a_word(column: Column) -> None:
    """Whatever a client asks for reaches the vendor, or is named as dropped, or is refused."""
    outcomes = {feature.name: outcome(column, feature) for feature in FEATURES}
    assert [name for name, each in outcomes.items() if each == IGNORED] == []
    assert "works" in outcomes.values() or "passed on" in outcomes.values()


@pytest.mark.parametrize("kind", KINDS)
def test_each_vendor_has_a_section(kind: str) -> None:
    """Every kind with an API of its own has its keys told."""
    assert f"<!-- made: keys of {kind} -->" in PAGE.read_text()


def test_every_member_of_the_list_is_told() -> None:
    """What `/v1/models` says of a model stands on the page, and nothing that it never says."""
    members = {"targets", "region", "input_usd_per_mtok", "output_usd_per_mtok", "price_source"}
    members |= {each.name for each in fields(ModelFacts)}
    names = [cell for cell, _ in rows(PAGE, "Member | Meaning")]
    assert {name.strip("` ") for cell in names for name in cell.split(",")} == members


@pytest.mark.parametrize("number", range(len(blocks(PAGE, "yaml"))))
def test_configurations_on_the_page_are_accepted(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every snippet is a whole configuration that would be served."""
    snippet = blocks(PAGE, "yaml")[number]
    for name in re.findall(r"\$\{(\w+)\}", snippet):
        monkeypatch.setenv(name, "key-of-the-snippet")
    path = tmp_path / "config.yaml"
    path.write_text(snippet)
    configuration = read_configuration(path, offline_services(Settings(), make_log(LoggingConfig())))
    assert configuration.providers
