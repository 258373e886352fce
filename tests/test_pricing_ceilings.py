"""The most that an attempt can use and cost: no answer, however it is served, comes to more than was reserved."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.accounting import Accounting
from llmproxy.allowances import WorstCase
from llmproxy.ceilings import (
    IMAGE_TOKENS,
    UNKNOWN_WINDOW_TOKENS,
    input_ceiling_tokens,
    output_ceiling_tokens,
    search_ceiling,
)
from llmproxy.config import PriceConfig
from llmproxy.estimate import Estimator
from llmproxy.exchange import Target
from llmproxy.pricing import PriceBook
from llmproxy.providers import Provider
from llmproxy.providers.anthropic import Anthropic
from llmproxy.providers.openai import OpenAI
from llmproxy.request import Operation, Request
from llmproxy.services import SystemClock
from llmproxy.usage import Usage
from tests.providers import request, services

# The data is indexed once for all examples.
BOOK = PriceBook(())
NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
DATA = base64.b64encode(b"x" * 30_000).decode()
DATA_URL = f"data:image/png;base64,{DATA}"


def chat(*parts: dict[str, Any], **members: Any) -> Request:
    """A request with these parts in its message."""
    return request({"model": "m", "messages": [{"role": "user", "content": list(parts)}], **members})


def image(url: str) -> dict[str, Any]:
    """An image part."""
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def accounting_for(kind: type[Provider], *prices: PriceConfig) -> Accounting:
    """An accounting for one vendor."""
    provider = kind(kind.kind, kind.Config.model_validate({"api_key": "k"}), services())
    return Accounting({(kind.kind, None): provider}, PriceBook(prices) if prices else BOOK, SystemClock())


def worst(kind: type[Provider], model: str, *prices: PriceConfig, **members: Any) -> WorstCase:
    """The worst case of an attempt at a model."""
    accounting = accounting_for(kind, *prices)
    asked = request({"model": model, "messages": [{"role": "user", "content": "Hi"}], **members})
    return accounting.ceiling(Target(kind.kind, model), NOW)(asked, 4096)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_text_has_no_more_tokens_than_bytes(texts: list[str]) -> None:
    """Whatever the tokenizer, a token is a byte at least; JSON and the vendor's own words come on top."""
    asked = request({"model": "m", "messages": [{"role": "user", "content": text} for text in texts]})
    assert input_ceiling_tokens(asked) > sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def test_edits_count_as_they_are_sent() -> None:
    """What a plugin adds is part of what is sent."""
    asked = request()
    before = input_ceiling_tokens(asked)
    asked.set("messages", [{"role": "system", "content": "x" * 1000}])
    assert input_ceiling_tokens(asked) > before + 900


def test_an_image_is_bounded_by_its_tokens_and_not_by_its_bytes() -> None:
    """Embedded or not, an image has the tokens of the dearest there is, and its data is no text."""
    embedded, remote = chat(image(DATA_URL)), chat(image("https://example.com/a.png"))
    assert abs(input_ceiling_tokens(embedded) - input_ceiling_tokens(remote)) <= len('"""')
    assert IMAGE_TOKENS < input_ceiling_tokens(embedded) < IMAGE_TOKENS + 400


def test_audio_is_bounded_by_its_size() -> None:
    """However well it is compressed, a token of audio takes some bytes."""
    asked = chat({"type": "input_audio", "input_audio": {"data": DATA, "format": "mp3"}})
    assert len(DATA) // 4 <= input_ceiling_tokens(asked) < len(DATA) // 4 + 400


@pytest.mark.parametrize(
    "asked",
    [
        chat({"type": "file", "file": {"file_id": "file-1"}}),
        chat({"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}}),
        chat(web_search_options={}),
        chat(previous_response_id="resp_1"),
    ],
)
def test_what_nobody_can_know_is_bounded_by_the_window(asked: Request) -> None:
    """Files, videos, searches and earlier answers fill the model's window at most."""
    assert input_ceiling_tokens(asked, 128_000) == 128_000
    assert input_ceiling_tokens(asked) == UNKNOWN_WINDOW_TOKENS


def test_nothing_is_larger_than_the_window() -> None:
    """A request that does not fit is refused by the vendor, and costs nothing."""
    assert input_ceiling_tokens(request({"model": "m", "messages": "x" * 5000}), 1000) == 1000


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 50, "max_tokens": 100, "n": 3}, 150),
        ({}, 8192),
        ({"n": 2}, 16_384),
        ({"prompt": ["a", "b"]}, 32),
        ({"prompt": ["a", "b"], "max_tokens": 10, "best_of": 4}, 80),
    ],
)
def test_output_is_what_was_asked_for_or_else_what_the_model_can(members: dict[str, Any], tokens: int) -> None:
    """For every choice, and every one that is written only to choose from."""
    assert output_ceiling_tokens(request({"model": "m", **members}), 8192, 4096) == tokens


def test_output_has_a_default_and_embeddings_have_none() -> None:
    """The default holds where neither request nor model says anything."""
    assert output_ceiling_tokens(request(), None, 4096) == 4096
    assert output_ceiling_tokens(request({"model": "m"}, Operation.EMBEDDINGS), None, 4096) == 0


@pytest.mark.parametrize(
    ("document", "searches"),
    [
        ({}, 0),
        ({"tools": [{"type": "function", "function": {"name": "web_search"}}]}, 0),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]}, 3),
        ({"tools": [{"type": "web_search"}]}, 10),
        ({"web_search_options": {}}, 10),
        ({"tools": "?"}, 0),
    ],
)
def test_searches_are_what_was_allowed(document: dict[str, Any], searches: int) -> None:
    """Where the client sets no limit, an allowance stands in."""
    assert search_ceiling(document) == searches


def test_the_worst_case_is_the_dearest_tier_that_the_answer_may_come_in() -> None:
    """An account may have priority without the request saying so; who asks for the usual tier gets no other."""
    maybe, usual, flex = (
        worst(OpenAI, "gpt-5", max_tokens=1000, **asked)
        for asked in ({}, {"service_tier": "default"}, {"service_tier": "flex"})
    )
    # 90-odd bytes of request, 64 for the vendor's template: at 2.5 and 20 dollars a million with priority.
    assert maybe.amount_usd == (maybe.input_tokens * Decimal("2.5") + 20_000) / 1_000_000
    assert usual.amount_usd == (usual.input_tokens * Decimal("1.25") + 10_000) / 1_000_000
    assert flex.amount_usd == (flex.input_tokens * Decimal("1.25") + 10_000) / 1_000_000
    assert maybe.price_source == usual.price_source


def test_the_worst_case_knows_premiums_searches_and_cache_writes() -> None:
    """With Claude: an hour's cache write at twice the input, a tenth more in the US, and three searches."""
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    found = worst(Anthropic, "claude-opus-5", max_tokens=100, tools=[search])
    assert (found.input_tokens, found.output_tokens) == (1_000_000, 100)
    assert found.amount_usd == Decimal("1.1") * (10 + Decimal("0.0025")) + Decimal("0.03")


def test_without_a_limit_the_models_own_counts() -> None:
    """How much a model can write is known of most."""
    assert worst(Anthropic, "claude-sonnet-4-5").output_tokens == 64_000
    assert worst(OpenAI, "no-such-model").output_tokens == 4096


def test_an_unknown_price_has_no_worst_case() -> None:
    """Neither has a model that is priced for less than the request may use."""
    assert worst(OpenAI, "no-such-model").amount_usd is None
    input_alone = PriceConfig.model_validate({"match": "*", "input_usd_per_mtok": 1})
    assert worst(OpenAI, "gpt-4o", input_alone).amount_usd is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_answer_costs_more_than_its_worst_case(data: st.DataObject) -> None:
    """Any split of that many tokens into classes, in any tier and region that the answer may name, is covered."""
    model = data.draw(st.sampled_from(["claude-opus-5", "claude-haiku-5-5", "claude-sonnet-4-5", "claude-fable-5-2"]))
    speed = data.draw(st.sampled_from([{}, {"speed": "fast"}]))
    accounting = accounting_for(Anthropic)
    text = "x" * data.draw(st.integers(1, 300_000))
    asked = request({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 5000, **speed})
    target = Target("anthropic", model)
    found = accounting.ceiling(target, NOW)(asked, 4096)
    cut = sorted(data.draw(st.lists(st.integers(0, found.input_tokens), min_size=3, max_size=3)))
    usage = Usage(
        uncached_input_tokens=cut[0],
        cache_read_input_tokens=cut[1] - cut[0],
        cache_write_5m_input_tokens=cut[2] - cut[1],
        cache_write_1h_input_tokens=found.input_tokens - cut[2],
        text_output_tokens=found.output_tokens,
        service_tier=data.draw(st.sampled_from([None, "priority", *speed.values()])),
        region=data.draw(st.sampled_from([None, "us"])),
    )
    amount = accounting.cost(target, usage, NOW).amount_usd
    assert amount is not None
    assert found.amount_usd is not None
    assert amount <= found.amount_usd


def test_an_estimate_does_not_take_pictures_for_text() -> None:
    """Thirty thousand bytes of image are some thousand tokens, not ten thousand."""
    text = request({"model": "m", "messages": [{"role": "user", "content": "word " * 80}]})
    assert 100 <= Estimator().input_tokens(text) <= 130
    assert 1000 < Estimator().input_tokens(chat(image(DATA_URL))) < 1100
    assert Estimator().input_tokens(chat({"type": "file", "file": {"file_data": DATA}})) < len(orjson.dumps(DATA)) // 20
