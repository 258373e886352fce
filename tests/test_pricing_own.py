"""Prices of the operator's own: which section counts, from when, in which tier, and what it says of each class."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmproxy.config import Config, PriceConfig
from llmproxy.config_document import ConfigDocument
from llmproxy.exchange import Target
from llmproxy.prices import Prices
from llmproxy.pricing import PriceBook
from llmproxy.usage import USAGE_CLASSES, Usage

NOW = datetime(2026, 11, 22, 12, 30, 15, tzinfo=UTC)
MILLION = 1_000_000


def section(match: str = "*", **keys: Any) -> PriceConfig:
    """A section as the file would have it."""
    return PriceConfig.model_validate({"match": match, **keys})


def price_of(book: PriceBook, vendor: str, model: str, at: datetime = NOW, service_tier: str | None = None) -> Prices:
    """The price of a model, which must be known."""
    prices = book.prices(Target(vendor, model), vendor, at, service_tier)
    assert prices is not None
    return prices


def test_own_prices_win_and_the_first_match_decides() -> None:
    """A price section that fits `provider/model` replaces the data's; of several, the first counts."""
    book = PriceBook(
        (
            PriceConfig(match="openai/gpt-4o", input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(2)),
            PriceConfig(match="openai/*", input_usd_per_mtok=Decimal(7)),
        )
    )
    prices = price_of(book, "openai", "gpt-4o")
    assert prices.source == "config"
    assert prices.amount_usd(Usage(uncached_input_tokens=MILLION, text_output_tokens=MILLION)) == Decimal(3)
    assert price_of(book, "openai", "anything").rates[0] == Decimal("0.000007")


def test_own_prices_fall_back_to_the_parent_class() -> None:
    """Classes that a section leaves out cost as their parents: cached as input, reasoning as output."""
    section = PriceConfig(
        match="*",
        input_usd_per_mtok=Decimal(1),
        cache_write_5m_usd_per_mtok=Decimal(3),
        output_usd_per_mtok=Decimal(10),
        audio_output_usd_per_mtok=Decimal(50),
    )
    expected = (1, 1, 3, 3, 1, 1, 1, 10, 10, 50, 10)
    assert price_of(PriceBook((section,)), "x", "y").rates == tuple(Decimal(rate) / MILLION for rate in expected)


def test_a_section_holds_from_its_first_day_until_its_last_is_over() -> None:
    """`from` is the first day in UTC, `until` the first day that it holds no more, and the data fills the gap."""
    book = PriceBook(
        (
            section("openai/gpt-4o", until="2026-01-01", input_usd_per_mtok=1),
            section("openai/gpt-4o", **{"from": "2026-03-01"}, input_usd_per_mtok=3),
        )
    )
    found = {
        at: (price_of(book, "openai", "gpt-4o", at).input_usd_per_mtok, price_of(book, "openai", "gpt-4o", at).since)
        for at in (
            datetime(2025, 12, 31, 23, 59, tzinfo=UTC),
            datetime(2026, 1, 1, tzinfo=UTC),
            datetime(2026, 3, 1, tzinfo=UTC),
        )
    }
    assert list(found.values()) == [(1, None), (Decimal("2.5"), None), (3, date(2026, 3, 1))]


def test_a_section_may_be_for_one_tier() -> None:
    """With a `service_tier` it is for requests that were served so, and for no others."""
    book = PriceBook((section(service_tier="priority", input_usd_per_mtok=9), section(input_usd_per_mtok=4)))
    assert price_of(book, "x", "y", service_tier="priority").input_usd_per_mtok == 9
    assert price_of(book, "x", "y", service_tier="flex").input_usd_per_mtok == 4
    assert price_of(book, "x", "y").input_usd_per_mtok == 4


def test_long_inputs_may_cost_more() -> None:
    """Above a size of the input all tokens cost what the step says, and what it leaves out stays as it was."""
    steps = [{"above_input_tokens": 1000, "input_usd_per_mtok": 4}]
    prices = price_of(PriceBook((section(input_usd_per_mtok=2, output_usd_per_mtok=6, long_context=steps),)), "x", "y")
    assert prices.amount_usd(Usage(uncached_input_tokens=1000, text_output_tokens=10)) == Decimal("0.00206")
    assert prices.amount_usd(Usage(uncached_input_tokens=1001, text_output_tokens=10)) == Decimal("0.004064")


def test_what_is_no_token_has_a_price_of_its_own() -> None:
    """Searches by the thousand, images by the piece, audio by the hour, text by its length, and each request."""
    prices = price_of(
        PriceBook(
            (
                section(
                    web_searches_usd_per_thousand=10,
                    image_usd="0.04",
                    audio_usd_per_hour="0.111",
                    characters_usd_per_million=15,
                    request_usd="0.005",
                ),
            )
        ),
        "x",
        "y",
    )
    # 3 x 0.01 + 2 x 0.04 + 60 x 0.111 / 3600 + 200 x 0.000015 + 0.005
    used = Usage(web_searches=3, images=2, audio_seconds=60, characters=200)
    assert prices.amount_usd(used) == Decimal("0.11985")
    assert prices.amount_usd(Usage(uncached_input_tokens=1, images=1)) is None


def test_a_factor_multiplies_what_the_data_says() -> None:
    """A discount or a premium holds for everything, also for steps, searches and tiers, and says so in the source."""
    plain = price_of(PriceBook(()), "openai", "gpt-5.4", service_tier="flex")
    cheaper = price_of(PriceBook((section("openai/*", factor="0.8"),)), "openai", "gpt-5.4", service_tier="flex")
    used = Usage(uncached_input_tokens=300_000, text_output_tokens=1000, web_searches=2)
    full_usd, less_usd = plain.amount_usd(used), cheaper.amount_usd(used)
    assert full_usd is not None
    assert less_usd == full_usd * Decimal("0.8")
    assert cheaper.source == f"{plain.source}, config x0.8"


def test_a_factor_prices_nothing_that_the_data_does_not_know() -> None:
    """What is unknown stays unknown, however it is multiplied."""
    book = PriceBook((section(factor=2),))
    assert book.prices(Target("openai", "no-such-model"), "openai", NOW) is None


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({}, "give either rates, or factor, or free"),
        ({"free": True, "input_usd_per_mtok": 1}, "give either rates, or factor, or free"),
        ({"factor": 1, "request_usd": 1}, "give either rates, or factor, or free"),
        ({"input_usd_per_mtok": 1, "from": "2026-02-01", "until": "2026-02-01"}, "until must be later than from"),
    ],
)
def test_a_section_says_one_thing(keys: dict[str, Any], complaint: str) -> None:
    """Rates, a factor or nothing to pay, and for at least a day."""
    with pytest.raises(ValidationError, match=complaint):
        section(**keys)


@pytest.mark.parametrize(
    ("vendor", "model", "region", "factor"),
    [
        ("openai", "gpt-5.4", "eu.api.openai.com", "1.1"),
        ("openai", "gpt-6-sol", "us.api.openai.com", "1.1"),
        ("openai", "gpt-5.4", "api.openai.com", "1"),
        ("openai", "gpt-4o", "eu.api.openai.com", "1"),
        ("anthropic", "claude-opus-4-6", "us", "1.1"),
        ("google", "claude-sonnet-4-5", "europe-west1", "1.1"),
        ("google", "claude-haiku-5-5", "eu", "1.1"),
        ("google", "claude-sonnet-4-5", "global", "1"),
        ("google", "claude-3-5-sonnet", "europe-west1", "1"),
        ("google", "gemini-2.5-pro", "europe-west1", "1"),
        ("mistral", "mistral-large-latest", "api.eu.mistral.ai", "1.1"),
    ],
)
def test_some_regions_cost_more(vendor: str, model: str, region: str, factor: str) -> None:
    """A vendor's premium for computing in a region is on every rate for tokens, and on nothing else."""
    book, used = PriceBook(()), Usage(uncached_input_tokens=1000, text_output_tokens=100)
    usual = book.prices(Target("x", model), vendor, NOW)
    there = book.prices(Target("x", model), vendor, NOW, region=region)
    assert usual is not None
    assert there is not None
    usual_usd = usual.amount_usd(used)
    assert usual_usd is not None
    assert there.amount_usd(used) == usual_usd * Decimal(factor)
    assert there.unit_rates == usual.unit_rates


def test_the_manual_has_every_class_and_a_configuration_that_is_right() -> None:
    """Each class that is counted is in the manual's table with what it falls back to, and its sections are accepted."""
    manual = (Path(__file__).parent.parent / "docs" / "prices.md").read_text()
    counted = re.findall(r"`(\w+)`", manual[manual.index("| Class |") : manual.index("No token is in two classes")])
    assert counted == list(USAGE_CLASSES)
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", manual, re.MULTILINE | re.DOTALL)
    document = ConfigDocument.parse(snippet, "snippet", {})
    assert document.validate(Config), document.mistakes
