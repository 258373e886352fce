"""What is told of models: facts and prices where they are known, and nothing where they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import StartDateConstraint
from openai import AsyncOpenAI

from llmproxy.config import PriceConfig
from llmproxy.exchange import Target
from llmproxy.listing import Listing
from llmproxy.model_facts import FactsTable, ModelFacts, load_facts
from llmproxy.price_data import PriceData
from llmproxy.pricing import PriceBook
from llmproxy.providers import Provider
from llmproxy.providers.anthropic import Anthropic
from llmproxy.providers.azure import Azure
from llmproxy.providers.openai import OpenAI
from llmproxy.testing import Clock, StartProxy
from tests.providers import services

NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
OWN_PRICE = PriceConfig(match="local/*", input_usd_per_mtok=Decimal("0.100"), output_usd_per_mtok=Decimal(20))


def made(kind: type[Provider], name: str = "", **section: Any) -> Provider:
    """A configured provider."""
    return kind(name or kind.kind, kind.Config.model_validate({"api_key": "k", **section}), services())


def listing(clock: Clock | None = None) -> Listing:
    """Four endpoints, one of which has prices of its own."""
    providers: Mapping[str, Provider] = {
        "openai": made(OpenAI),
        "anthropic": made(Anthropic),
        "azure": made(Azure, endpoint="https://acme.openai.azure.com", base_models={"mine": "gpt-4o"}),
        "local": made(OpenAI, "local", base_url="http://127.0.0.1:1/v1"),
    }
    return Listing(providers, PriceBook([OWN_PRICE]), clock or Clock(NOW))


def told(*names: str) -> dict[str, Any]:
    """What is told of an alias for these targets."""
    return listing().describe([Target(provider, model) for provider, model in (name.split("/") for name in names)])


def test_a_known_model_is_told_with_all_that_is_known() -> None:
    """Context, forms, retirement and price stand together; amounts are in dollars per million tokens."""
    facts = told("openai/gpt-4o")
    assert facts["context_window_tokens"] == 128_000
    assert (facts["input_modalities"], facts["output_modalities"]) == (("text", "image"), ("text",))
    assert facts["retires_on"] == date(2027, 1, 14)
    assert (facts["input_usd_per_mtok"], facts["output_usd_per_mtok"]) == ("2.5", "10")
    assert facts["price_source"].startswith("genai-prices ")


def test_nothing_is_told_of_an_unknown_model() -> None:
    """A name that nobody has heard of has its target, and no fact that was made up."""
    assert told("openai/gpt-nonesuch") == {"targets": ["openai/gpt-nonesuch"]}
    assert "max_output_tokens" not in told("anthropic/claude-nonesuch-9")


def test_a_kind_adds_what_it_knows_itself() -> None:
    """How much Claude can answer with stands in the kind's own table, and nowhere twice."""
    assert told("anthropic/claude-sonnet-4-5")["max_output_tokens"] == 64_000


def test_a_deployment_is_priced_as_what_it_runs() -> None:
    """Azure's deployments are called what the customer likes."""
    assert told("azure/mine")["input_usd_per_mtok"] == told("openai/gpt-4o")["input_usd_per_mtok"]


def test_own_prices_are_told_as_such() -> None:
    """What the operator set is what is charged, and so what is listed, without zeros that mean nothing."""
    facts = told("local/llama")
    assert (facts["input_usd_per_mtok"], facts["output_usd_per_mtok"]) == ("0.1", "20")
    assert facts["price_source"] == "config"


def test_an_alias_is_told_what_all_its_targets_have_in_common() -> None:
    """What holds for one target only would be wrong for the others' answers."""
    facts = told("openai/gpt-4o", "openai/gpt-4.1")
    assert facts["targets"] == ["openai/gpt-4o", "openai/gpt-4.1"]
    assert facts["retires_on"] == date(2027, 1, 14)
    assert facts.keys().isdisjoint({"context_window_tokens", "input_usd_per_mtok"})


def test_the_region_is_told() -> None:
    """Whoever must keep data in a region sees where a model is."""
    assert listing().describe([Target("openai", "gpt-4o", "eu")])["region"] == "eu"


def test_listed_prices_follow_the_clock() -> None:
    """A dated price takes effect in the list on the day on which it is charged."""
    model, start = next(
        (model.id, dated.constraint.start_date)
        for vendor in get_snapshot().providers
        if vendor.id == "openai"
        for model in vendor.models
        if isinstance(model.prices, list) and len(model.prices) == 2
        for first, dated in [model.prices]
        if isinstance(dated.constraint, StartDateConstraint) and first.prices.input_mtok != dated.prices.input_mtok
    )
    target = Target("openai", model)
    before = listing(Clock(datetime(start.year - 1, 1, 1, tzinfo=UTC))).describe([target])
    after = listing(Clock(datetime(start.year + 1, 1, 1, tzinfo=UTC))).describe([target])
    assert after != before


@pytest.mark.parametrize("vendor", get_snapshot().providers, ids=lambda vendor: vendor.id)
def test_a_model_is_found_as_the_library_finds_it(vendor: Any) -> None:
    """The way by the id is shorter, and leads nowhere else."""
    data, everyone = PriceData(), get_snapshot().providers
    for model in vendor.models[::7]:
        library = vendor.find_model(model.id, all_providers=everyone)
        found = data._find_uncached(model.id, vendor.id)
        assert (found and found[1]) is library


def test_rows_add_what_those_before_left_open() -> None:
    """A model may be in several rows; the first word on a fact counts, and only for its vendor."""
    table = FactsTable(
        [
            {"vendor": "a", "match": ["m"], "retires_on": date(2027, 1, 1)},
            {"vendor": "a", "match": ["m*"], "retires_on": date(2028, 1, 1), "input_modalities": ["text"]},
        ]
    )
    assert table.facts("m", "a") == ModelFacts(retires_on=date(2027, 1, 1), input_modalities=("text",))
    assert table.facts("m", "b") == table.facts("n", "a") == table.facts("m", None) == ModelFacts()


def test_every_row_that_comes_with_the_gateway_fits_a_model() -> None:
    """Each vendor of the table is one of the price data, and some model of it has a date on which it retires."""
    table = load_facts()
    known = {vendor.id: [model.id for model in vendor.models] for vendor in get_snapshot().providers}
    assert set(table._rows) <= known.keys()
    retiring = {model for model in known["openai"] if table.facts(model, "openai").retires_on}
    assert {"gpt-4o", "gpt-5", "o3"} <= retiring
    assert "gpt-4o-audio-preview" not in retiring


async def test_the_list_keeps_openais_form(proxy: StartProxy) -> None:
    """An SDK reads the list as ever; what OpenAI does not tell stands in a member of its own."""
    config = {"providers": {"openai": {"api_key": "k", "region": "us"}}, "models": {"fast": "openai/gpt-4o"}}
    async with proxy(config=config) as client, AsyncOpenAI(api_key=client.key, base_url=client.base_url) as sdk:
        models = {model.id: model async for model in sdk.models.list()}
        extra = models["fast"].to_dict()["llmproxy"]
        assert isinstance(extra, dict)
        assert (extra["targets"], extra["region"]) == (["openai/gpt-4o"], "us")
        assert (extra["context_window_tokens"], extra["retires_on"]) == (128_000, "2027-01-14")
        assert models["fast"].owned_by == "llmproxy"
        # One that is not listed is described all the same.
        one: Any = (await sdk.models.retrieve("openai/ft:gpt-4o-mini-2024-07-18:acme")).to_dict()
        assert one["llmproxy"]["targets"] == ["openai/ft:gpt-4o-mini-2024-07-18:acme"]


async def test_a_long_list_lets_others_go_on(proxy: StartProxy) -> None:
    """While thousands of models are listed for one, others are answered."""
    config = {"providers": {"upstream": {"models": [f"model-{number}" for number in range(6_000)]}}}
    async with proxy(config=config) as client:
        # The first list looks everything up.
        assert len((await client.request("GET", "/v1/models")).document["data"]) > 6_000
        listed = asyncio.get_running_loop().create_task(client.request("GET", "/v1/models"))
        others = 0
        while not listed.done():
            assert (await client.request("GET", "/health/live")).status == 200
            others += 1
        assert others >= 5
