"""What every vendor charges, to the digit: its own usage in its own answer, by its own published price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import orjson
import pytest

from llmproxy.accounting import Accounting
from llmproxy.config import PriceConfig
from llmproxy.exchange import Target
from llmproxy.pricing import PriceBook
from llmproxy.providers import Provider
from llmproxy.providers.anthropic import Anthropic
from llmproxy.providers.azure import Azure
from llmproxy.providers.bedrock import Bedrock
from llmproxy.providers.cohere import Cohere
from llmproxy.providers.gemini import Gemini
from llmproxy.providers.mistral import Mistral
from llmproxy.providers.openai import OpenAI
from llmproxy.providers.vertex import Vertex
from llmproxy.request import Operation
from llmproxy.testing import Clock
from llmproxy.usage import Cost
from tests import bedrock, gemini, test_cohere_answer
from tests.anthropic_messages import message, text
from tests.price_cases import AT, CASES, Case
from tests.providers import KINDS, request, services

OUR_KINDS: Mapping[str, type[Provider]] = {
    "openai": OpenAI,
    "responses": OpenAI,
    "azure": Azure,
    "anthropic": Anthropic,
    "vertex": Vertex,
    "gemini": Gemini,
    "bedrock": Bedrock,
    "cohere": Cohere,
    "mistral": Mistral,
}
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "responses": {"responses": "always"},
    "azure": {"endpoint": "https://acme.openai.azure.com"},
    "bedrock": {"region": "us-east-1"},
}
BOOK = PriceBook(())


def provider_of(case: Case) -> Provider:
    """The configured provider."""
    kind = OUR_KINDS.get(case.kind) or KINDS[case.kind]
    section = {"api_key": "k", **SECTIONS.get(case.kind, {}), **case.section}
    return kind(kind.kind, kind.Config.model_validate(section), services())


def chat_completion(case: Case) -> dict[str, Any]:
    """An answer in the OpenAI format."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": case.model, "choices": [choice], "usage": case.usage}


def responses_answer(case: Case) -> dict[str, Any]:
    """An answer of the Responses API, whose searches stand in its output."""
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
    output = [*case.also["search"], said]
    return {"id": "resp_1", "object": "response", "status": "completed", "output": output, "usage": case.usage}


ANSWERS: Mapping[str, Callable[[Case], dict[str, Any]]] = {
    "responses": responses_answer,
    "anthropic": lambda case: {**message(text("Hi")), "usage": case.usage},
    "vertex": lambda case: {**message(text("Hi")), "usage": case.usage},
    "gemini": lambda case: {
        "candidates": [{**gemini.candidate({"text": "Hi"}), **case.also}],
        "modelVersion": case.model,
        "usageMetadata": case.usage,
    },
    "bedrock": lambda case: {**bedrock.says({"text": "Hi"}), "usage": case.usage},
    "cohere": lambda case: {
        **test_cohere_answer.native({"content": [{"type": "text", "text": "Hi"}]}),
        "usage": case.usage,
    },
}


def cost_of(case: Case, book: PriceBook = BOOK) -> Cost:
    """What the gateway makes of the vendor's answer."""
    provider = provider_of(case)
    operation = Operation.EMBEDDINGS if "embedding" in case.model else Operation.CHAT
    asked = request({"model": case.model, "messages": [{"role": "user", "content": "Hi"}]}, operation)
    native = ANSWERS[case.kind](case) if case.kind in ANSWERS else {**chat_completion(case), **case.also}
    body = provider.answer(asked, orjson.dumps(native), native)
    usage = provider.usage(orjson.loads(body))
    assert usage is not None
    accounting = Accounting({(provider.name, None): provider}, book, Clock(case.at))
    return accounting.cost(Target(provider.name, case.model), usage)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_the_vendors_price_comes_out_to_the_digit(case: Case) -> None:
    """The sum done by hand is the amount in the row, and the amount the gateway charges, which is measured."""
    by_hand = sum((count * Decimal(usd) / 1_000_000 for count, usd in case.charged), Decimal(0))
    assert by_hand == Decimal(case.usd)
    cost = cost_of(case)
    assert cost.amount_usd == Decimal(case.usd)
    assert cost.provenance == "measured"


def test_the_cases_have_a_price_of_their_own() -> None:
    """No two rows of a model come to the same amount by chance, so that each of them tests what it says."""
    amounts = [(case.kind, case.model, case.usd) for case in CASES]
    assert len(set(amounts)) == len(amounts)


def test_the_dearer_way_that_nobody_lists_is_an_estimate() -> None:
    """Bedrock's priority tier costs more, and the price data does not say how much."""
    case = next(case for case in CASES if case.name == "Nova")
    provider = provider_of(case)
    native = {**ANSWERS["bedrock"](case), "serviceTier": {"type": "priority"}}
    body = provider.answer(request({"model": case.model}), orjson.dumps(native), native)
    usage = provider.usage(orjson.loads(body))
    assert usage is not None
    cost = Accounting({("bedrock", None): provider}, BOOK, Clock(AT)).cost(Target("bedrock", case.model), usage)
    assert (cost.amount_usd, cost.provenance) == (Decimal(case.usd), "estimated")
    assert cost.price_source is not None
    assert "not of priority" in cost.price_source


def test_audio_is_not_sold_as_text() -> None:
    """Where the data has no price for the audio of a model made for it, the price is unknown until you give it."""
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"audio_tokens": 10}}
    case = Case("audio", "openai", "gpt-4o-audio-preview", usage, (), "0")
    assert cost_of(case).amount_usd is None
    own = PriceConfig.model_validate({"match": "openai/*audio*", "audio_input_usd_per_mtok": 40})
    assert cost_of(case, PriceBook((own,))).amount_usd == Decimal("0.0004")
