"""Prices: the operator's own first, then exactly what the library reckons, and never free by accident."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice
from genai_prices.types import Provider as Vendor
from genai_prices.types import Usage as LibraryUsage
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.config import PriceConfig
from llmproxy.exchange import Target
from llmproxy.prices import Prices
from llmproxy.pricing import FREE, PriceBook
from llmproxy.usage import UNIT_CLASSES, Usage

NOW = datetime(2026, 11, 22, 12, 30, 15, tzinfo=UTC)
MILLION = 1_000_000

thresholds = st.sampled_from([1, 128_000, 200_000, 200_001, 272_001, MILLION])
counts = st.one_of(st.just(0), st.integers(0, 300_000), thresholds)
NOT_VARIED = ("cache_read_audio_input_tokens", "images", "provenance", "service_tier", "region")
usages = st.builds(
    Usage,
    uncached_input_tokens=counts,
    cache_read_input_tokens=counts,
    cache_write_5m_input_tokens=counts,
    cache_write_1h_input_tokens=counts,
    audio_input_tokens=counts,
    image_input_tokens=counts,
    text_output_tokens=counts,
    reasoning_output_tokens=counts,
    audio_output_tokens=counts,
    image_output_tokens=counts,
    web_searches=st.integers(0, 50),
    audio_seconds=st.integers(0, 90_000),
    characters=st.integers(0, 90_000),
    # Hypothesis would make these up otherwise.
    **{name: st.just(default) for name, default in Usage._field_defaults.items() if name in NOT_VARIED},
)
TIERS = [None, "priority", "flex", "batch", "fast"]
# What the library calls each of our units, and the rates for them.
UNIT_KEYS = {
    "web_searches": ("web_searches_kcount",),
    "audio_seconds": ("audio_hours", "input_audio_hours"),
    "characters": ("input_mchars",),
}
# The data is indexed once for all examples.
BOOK = PriceBook(())
MODELS = [(vendor, model) for vendor in get_snapshot().providers for model in vendor.models]


def price_of(book: PriceBook, vendor: str, model: str, at: datetime = NOW, service_tier: str | None = None) -> Prices:
    """The price of a model, which must be known."""
    prices = book.prices(Target(vendor, model), vendor, at, service_tier)
    assert prices is not None
    return prices


def library_usage(usage: Usage) -> LibraryUsage:
    """The same usage in the library's words, which count every class inside its parent."""
    return LibraryUsage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_input_tokens,
        cache_write_tokens=usage.cache_write_5m_input_tokens + usage.cache_write_1h_input_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_input_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_input_tokens,
        input_audio_tokens=usage.audio_input_tokens,
        cache_audio_read_tokens=0,
        cache_audio_write_tokens=0,
        input_image_tokens=usage.image_input_tokens,
        cache_image_read_tokens=0,
        input_video_tokens=0,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.reasoning_output_tokens,
        output_audio_tokens=usage.audio_output_tokens,
        output_audio_reasoning_tokens=0,
        output_image_tokens=usage.image_output_tokens,
        output_image_reasoning_tokens=0,
        output_video_tokens=0,
        output_citation_tokens=0,
        web_searches=usage.web_searches,
        audio_seconds=usage.audio_seconds,
        input_audio_seconds=usage.audio_seconds,
        input_characters=usage.characters,
    )


def library_context(service_tier: str | None) -> dict[str, str] | None:
    """The library's words for a tier, of which each model knows one."""
    return (service_tier and {"service_tier": service_tier, "processing": service_tier, "speed": service_tier}) or None


def is_covered(price: ModelPrice, usage: Usage) -> bool:
    """Whether the library has a rate for what was used; it counts the rest as nothing, where we say unknown."""
    listed = {key for key, value in vars(price).items() if value is not None}
    counted_units = [keys for name, keys in UNIT_KEYS.items() if getattr(usage, name)]
    return (
        (usage.text_output_tokens + usage.reasoning_output_tokens == 0 or "output_mtok" in listed)
        and (not usage.input_tokens or "input_mtok" in listed)
        and (not usage.output_tokens or "output_mtok" in listed)
        and all(listed.intersection(keys) for keys in counted_units)
    )


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MODELS), usages, st.integers(-400 * 24 * 60, 400 * 24 * 60), st.sampled_from(TIERS))
def test_costs_are_the_librarys_own(
    listed: tuple[Vendor, ModelInfo], usage: Usage, minutes: int, service_tier: str | None
) -> None:
    """For any model, usage, time and service tier, the cost is what the library reckons, steps and units included."""
    vendor, listed_model = listed
    at = NOW + timedelta(minutes=minutes)
    model = vendor.find_model(listed_model.id, all_providers=get_snapshot().providers)
    if model is None:
        return
    is_own = any(model is own for own in vendor.models)
    price = model.get_prices(at, library_context(service_tier) if is_own else None)
    prices = BOOK.prices(Target("x", listed_model.id), vendor.id, at, service_tier)
    lacks_audio = "audio" in model.id and "input_audio_mtok" not in vars(price)
    has_audio = usage.audio_input_tokens + usage.audio_output_tokens > 0
    if prices is None or not is_covered(price, usage) or (lacks_audio and has_audio):
        cost = PriceBook.cost(usage, prices)
        assert cost.amount_usd is None or model.id.endswith(":free")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = price.calc_price(library_usage(usage))["total_price"]
    if usage == Usage():
        assert prices.amount_usd(usage) == (0 if prices.is_free else None)
    else:
        assert prices.amount_usd(usage) == expected


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MODELS), usages)
def test_a_ceiling_holds_whatever_the_classes(listed: tuple[Vendor, ModelInfo], usage: Usage) -> None:
    """No usage of so many tokens costs more than the ceiling for that many."""
    vendor, model = listed
    prices = BOOK.prices(Target("x", model.id), vendor.id, NOW)
    if prices is None:
        return
    units = {name: getattr(usage, name) for name in UNIT_CLASSES}
    ceiling = prices.ceiling_usd(usage.input_tokens, usage.output_tokens, units)
    amount = prices.amount_usd(usage)
    assert ceiling is None or usage == Usage() or (amount is not None and amount <= ceiling)


def test_known_amounts() -> None:
    """Published prices come out: cached reads apart, and long contexts at their own rate."""
    book = PriceBook(())
    cached = Usage(uncached_input_tokens=200, cache_read_input_tokens=800, text_output_tokens=100)
    assert price_of(book, "openai", "gpt-4o").amount_usd(cached) == Decimal("0.0025")
    long = Usage(uncached_input_tokens=300_000)
    assert price_of(book, "anthropic", "claude-sonnet-4-5").amount_usd(long) == Decimal("1.8")


def test_service_tiers_have_their_own_price() -> None:
    """A priority request costs more than a standard one; a tier that nobody lists is an estimate."""
    book, usage = PriceBook(()), Usage(uncached_input_tokens=1000, text_output_tokens=1000)
    standard = price_of(book, "openai", "gpt-4.1").amount_usd(usage)
    priority = price_of(book, "openai", "gpt-4.1", service_tier="priority").amount_usd(usage)
    assert standard is not None
    assert priority is not None
    assert priority > standard
    unlisted = price_of(book, "openai", "gpt-4.1", service_tier="scale")
    assert unlisted.amount_usd(usage) == standard
    assert PriceBook.cost(usage, unlisted).provenance == "estimated"


@pytest.mark.parametrize(("vendor", "model"), [("openai", "no-such-model"), ("no-such-vendor", "gpt-4o"), (None, "m")])
def test_what_nobody_lists_is_unknown(vendor: str | None, model: str) -> None:
    """Without a price the cost is unknown rather than zero."""
    prices = PriceBook(()).prices(Target("x", model), vendor, NOW)
    cost = PriceBook.cost(Usage(uncached_input_tokens=10, provenance="estimated"), prices)
    assert (prices, cost.amount_usd, cost.price_source, cost.provenance) == (None, None, None, "estimated")


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("whisper-1", Usage(uncached_input_tokens=10)),
        ("gpt-4o", Usage(uncached_input_tokens=10, audio_seconds=60)),
        ("tts-1", Usage(audio_seconds=60)),
        ("gpt-4o", Usage()),
    ],
)
def test_a_wrong_unit_is_unknown_and_never_free(model: str, usage: Usage) -> None:
    """Rates for something else than what was counted make no price, and neither does counting nothing."""
    assert price_of(PriceBook(()), "openai", model).amount_usd(usage) is None


def test_tokens_that_no_rate_covers_are_unknown() -> None:
    """An input price alone does not make output free."""
    prices = price_of(PriceBook(()), "openai", "text-embedding-3-small")
    assert prices.amount_usd(Usage(uncached_input_tokens=MILLION)) == Decimal("0.02")
    assert prices.amount_usd(Usage(uncached_input_tokens=1, text_output_tokens=1)) is None
    assert prices.ceiling_usd(10, 10) is None
    assert prices.ceiling_usd(10, 0) == Decimal("0.0000002")


def test_free_is_zero_and_says_so() -> None:
    """`free: true` and the demo provider cost nothing, which is an amount and not a missing one."""
    book = PriceBook((PriceConfig(match="local/*", free=True),))
    usage = Usage(uncached_input_tokens=10, text_output_tokens=10)
    for prices in (
        book.prices(Target("local", "m"), None, NOW),
        book.prices(Target("demo", "echo"), FREE, NOW),
        book.prices(Target("openrouter", "deepseek/deepseek-chat:free"), "openrouter", NOW),
    ):
        cost = PriceBook.cost(usage, prices)
        assert cost.amount_usd == 0
        assert cost.provenance == "measured"
        assert cost.price_source


def test_the_source_names_the_price_data() -> None:
    """A cost says which release of the price data it comes from."""
    assert price_of(PriceBook(()), "openai", "gpt-4o").source.startswith("genai-prices 0.")


def test_prices_follow_the_clock() -> None:
    """A vendor with off-peak hours is priced by the time of the request."""
    book = PriceBook(())
    peak = price_of(book, "deepseek", "deepseek-v4-pro", NOW.replace(hour=2))
    off_peak = price_of(book, "deepseek", "deepseek-v4-pro", NOW.replace(hour=12))
    assert peak.rates != off_peak.rates


def test_known_models_are_the_datas() -> None:
    """The catalogue can list what the data knows of a vendor, and nothing of one it does not know."""
    book = PriceBook(())
    assert "gpt-4o" in book.known_models("openai")
    assert not book.known_models(None)
    assert not book.known_models(FREE)
    assert not book.known_models("no-such-vendor")
