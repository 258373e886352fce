"""`llmproxy prices`: what a model costs and why, and which models have no price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llmproxy.cli.commands import command_line
from llmproxy.errors import ModelNotFound

CONFIG = {
    "providers": {
        "openai": {"api_key": "k"},
        "eu": {"kind": "openai", "base_url": "https://eu.api.openai.com/v1", "api_key": "k"},
        "local": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "models": ["llama"]},
    },
    "models": {"smart": {"targets": ["openai/gpt-5.4"], "fallbacks": ["eu/gpt-5.4"]}},
}
OWN = {
    "match": "local/*",
    "from": "2026-01-01",
    "input_usd_per_mtok": 0.1,
    "output_usd_per_mtok": 0.4,
    "image_usd": 0.04,
}


def run(directory: Path, *arguments: str, prices: tuple[dict[str, Any], ...] = ()) -> Result:
    """What `llmproxy prices …` does with this configuration."""
    path = directory / "config.yaml"
    path.write_text(json.dumps({**CONFIG, "prices": prices}))
    return CliRunner().invoke(command_line, ["prices", *arguments, "--config", str(path), "--json"])


def test_show_tells_every_tier_and_step_of_each_target(tmp_path: Path) -> None:
    """Rates by class, the long context's, searches, and the region's premium, each with where it comes from."""
    shown = json.loads(run(tmp_path, "show", "smart").stdout)
    by_name = {(each["model"], each["service_tier"]): each for each in shown}
    usual, flex = by_name["openai/gpt-5.4", "default"], by_name["openai/gpt-5.4", "flex"]
    assert usual["usd_per_mtok"]["uncached_input_tokens"] == "2.5"
    assert usual["long_context"][0]["above_input_tokens"] == 272_000
    assert usual["long_context"][0]["usd_per_mtok"]["text_output_tokens"] == "22.5"
    assert usual["usd_per_unit"]["web_searches"] == {"usd": "10", "per": 1000}
    assert (flex["usd_per_mtok"]["text_output_tokens"], flex["since"]) == ("7.5", "2026-10-12")
    european = by_name["eu/gpt-5.4", "default"]
    assert european["usd_per_mtok"]["uncached_input_tokens"] == "2.75"
    assert european["price_source"].endswith("eu.api.openai.com x1.1")


def test_show_tells_own_prices_as_such(tmp_path: Path) -> None:
    """One's own price is the same in every tier, so it is shown once, with its first day."""
    (shown,) = json.loads(run(tmp_path, "show", "local/llama", prices=(OWN,)).stdout)
    assert (shown["price_source"], shown["since"]) == ("config", "2026-01-01")
    assert shown["usd_per_unit"] == {"images": {"usd": "0.04", "per": 1}}


def test_show_has_a_table_for_people(tmp_path: Path) -> None:
    """A column for each way of being served, and a row for each class that has a rate of its own."""
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({**CONFIG, "prices": [OWN]}))
    printed = CliRunner().invoke(command_line, ["prices", "show", "openai/gpt-5.4", "--config", str(path)]).stdout
    heading, *rows = printed.splitlines()[1:]
    assert heading.split("  ")[0] == "USD PER MTOK"
    assert "PRIORITY" in heading
    assert [row.split()[0] for row in rows][:2] == ["uncached_input_tokens", "cache_read_input_tokens"]
    assert "reasoning_output_tokens" not in printed


def test_show_of_an_unknown_name_says_where_names_are_listed(tmp_path: Path) -> None:
    """A misspelt model is an error, and no table with nothing in it."""
    result = run(tmp_path, "show", "nowhere/m")
    assert isinstance(result.exception, ModelNotFound)


@pytest.mark.parametrize(("prices", "status", "missing"), [((), 1, ["local/llama"]), ((OWN,), 0, [])])
def test_check_ends_with_status_1_when_a_model_has_no_price(
    tmp_path: Path, prices: tuple[dict[str, Any], ...], status: int, missing: list[str]
) -> None:
    """Every model that the file names is looked at; one without a price is named."""
    result = run(tmp_path, "check", prices=prices)
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (status, not missing)
    assert [each["model"] for each in found["models"] if each["price_source"] is None] == missing
    assert {each["model"] for each in found["models"]} == {"openai/gpt-5.4", "eu/gpt-5.4", "local/llama"}
