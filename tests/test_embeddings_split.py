"""Batches of embeddings that a vendor's one call cannot hold: sent in parts, answered as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIStatusError, AsyncOpenAI, RateLimitError

from llmproxy.attempt import Attempts
from llmproxy.config import ProviderConfig, Timeouts
from llmproxy.dialects.embeddings import MAX_INPUTS, merge_embeddings, split_batch, summed_usage
from llmproxy.errors import BadRequest, UpstreamBroken, UpstreamTimeout
from llmproxy.exchange import Attempt, Target
from llmproxy.providers.demo import Demo
from llmproxy.request import Document, Operation, Request
from llmproxy.services import SystemClock
from llmproxy.testing import (
    ProxyClient,
    RecordedRequest,
    Reply,
    StartProxy,
    document,
    fail,
    hang,
    make_exchange,
    slow_head,
    wait_until,
)
from tests.providers import request, services

TITAN: Any = {"providers": {"upstream": {"kind": "bedrock", "region": "us-east-1"}}}
TITAN["models"] = {"test": "upstream/amazon.titan-embed-text-v2:0"}


class InParts(Demo):
    """A demo provider that takes only so many texts in a call."""

    def __init__(self, max_texts: int) -> None:
        super().__init__("demo", ProviderConfig(), services())
        self.max_texts = max_texts

    def split(self, request: Request) -> Sequence[Request]:
        return split_batch(request, self.max_texts)


def batch(texts: object, **members: object) -> Request:
    """An embeddings request."""
    return request({"model": "embed", "input": texts, "dimensions": 3, **members}, Operation.EMBEDDINGS)


async def answered(max_texts: int, asked: Request) -> tuple[Document, Attempt]:
    """The answer of a provider that takes only so many texts in a call, and how the attempt went."""
    provider = InParts(max_texts)
    attempts = Attempts({("demo", None): provider}, cast("Any", None), Timeouts(), SystemClock())
    exchange = make_exchange()
    exchange.request = asked
    attempt = attempts.begin(exchange, exchange.request, Target("demo", "embed"))
    answer = await attempts.answer(exchange, attempt)
    decoded: Document = orjson.loads(answer.body)
    return decoded, attempt


@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=30),
    st.integers(min_value=1, max_value=12),
    st.sampled_from(["float", "base64"]),
)
def test_any_batch_in_parts_is_the_same_as_in_one_call(texts: list[str], limit: int, encoding: str) -> None:
    """Trap 45: order, index, encoding and usage do not tell how many calls there were."""
    asked = batch(texts, encoding_format=encoding)
    whole, one = asyncio.run(answered(1000, asked))
    merged, many = asyncio.run(answered(limit, asked))
    assert merged == whole
    assert [item["index"] for item in merged["data"]] == list(range(len(texts)))
    assert many.usage == one.usage
    assert many.status == 200


@given(st.lists(st.text(max_size=3), min_size=1, max_size=40), st.integers(min_value=1, max_value=50))
def test_the_parts_hold_every_text_once_and_all_else_each(texts: list[str], limit: int) -> None:
    """Each part is the request with fewer texts, and its body says so too."""
    asked = batch(texts, user="ann")
    parts = split_batch(asked, limit)
    assert [text for part in parts for text in part.document["input"]] == texts
    assert all(len(part.document["input"]) <= limit for part in parts)
    for part in parts:
        assert orjson.loads(part.encode()) == {**asked.document, "input": part.document["input"]}


@pytest.mark.parametrize("given_input", ["one text", ["a"], [1, 2, 3, 4], [[1], [2], [3]], ["a", 1, "b"], [], None])
def test_what_is_no_large_batch_of_texts_stays_whole(given_input: object) -> None:
    """A list of numbers is one input, and what is wrong is for the vendor's translation to refuse."""
    asked = batch(given_input)
    assert split_batch(asked, 2) == (asked,)


def test_a_request_cannot_become_any_number_of_calls() -> None:
    """Where every text is a call, OpenAI's own limit on a batch holds."""
    assert len(split_batch(batch(["a"] * MAX_INPUTS), 1)) == MAX_INPUTS
    with pytest.raises(BadRequest, match="may hold 2048 at most") as caught:
        split_batch(batch(["a"] * (MAX_INPUTS + 1)), 1)
    assert caught.value.param == "input"


def test_a_part_whose_answer_is_out_of_order_is_put_right() -> None:
    """The numbers inside a part count, not the places."""
    first = {"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}], "model": "m"}
    second = {"data": [{"index": 0, "embedding": [3]}]}
    merged = merge_embeddings([first, second])
    assert [(item["index"], item["embedding"]) for item in merged["data"]] == [(0, [1]), (1, [2]), (2, [3])]
    assert merged["model"] == "m"
    assert "usage" not in merged


def test_usage_is_summed_class_by_class_or_not_told() -> None:
    """Details add up like totals; when one part tells nothing, a sum would be too low."""
    part = {"usage": {"prompt_tokens": 2, "total_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}, "x": None}}
    assert summed_usage([part, part]) == {
        "usage": {"prompt_tokens": 4, "total_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}, "x": None}
    }
    assert summed_usage([part, {}]) == {}


@pytest.mark.parametrize("data", [None, {}, [1], "x"])
def test_an_answer_that_is_no_list_is_broken(data: object) -> None:
    """A part cannot be left out silently."""
    with pytest.raises(UpstreamBroken):
        merge_embeddings([{"data": []}, {"data": data}])


# Through a whole gateway


def titan(asked: RecordedRequest) -> Reply:
    """A vector that tells the text, later for the first texts than for the last."""
    number = int(asked.document["inputText"])
    return slow_head(document({"embedding": [number], "inputTextTokenCount": number}), 0.05 if number < 3 else 0)


def sdk(client: ProxyClient) -> AsyncOpenAI:
    """OpenAI's own SDK, which tries nothing twice."""
    return AsyncOpenAI(api_key=client.key, base_url=client.base_url, max_retries=0)


def bedrock(**section: object) -> dict[str, Any]:
    """A gateway whose upstream takes one text in a call."""
    return {**TITAN, "providers": {"upstream": {**TITAN["providers"]["upstream"], **section}}}


async def test_one_attempt_makes_the_calls_a_few_at_a_time(proxy: StartProxy) -> None:
    """The SDK sees one answer in order, the audit one attempt, and the ledger the sum."""
    async with proxy(config=bedrock()) as client, sdk(client) as openai:
        client.upstream.default = titan
        answer = await openai.embeddings.create(model="test", input=[str(number) for number in range(1, 10)])
        assert [item.embedding for item in answer.data] == [[float(number)] for number in range(1, 10)]
        assert answer.usage.prompt_tokens == sum(range(1, 10))
        assert len(client.upstream.requests) == 9
        assert 1 < client.upstream.connections_opened <= 4
        rows = await client.rows()
        assert len(rows.attempts) == 1
        assert [row["uncached_input_tokens"] for row in rows.attempts] == [45]


async def test_one_failure_fails_the_attempt_and_ends_the_other_calls(proxy: StartProxy) -> None:
    """The client gets the vendor's error at once, and nothing is left running."""

    def script(asked: RecordedRequest) -> Reply:
        return fail(429, retry_after=3) if asked.document["inputText"] == "4" else hang()

    async with proxy(config=bedrock()) as client, sdk(client) as openai:
        client.upstream.default = script
        with pytest.raises(RateLimitError):
            await openai.embeddings.create(model="test", input=[str(number) for number in range(1, 10)])
        await wait_until(lambda: len(client.upstream.cancelled) == 3)
        assert len(client.upstream.requests) == 4
        assert len((await client.rows()).attempts) == 1


async def test_parts_that_were_answered_are_paid_for(proxy: StartProxy) -> None:
    """When a later part fails, the tokens of those before it are on the attempt all the same."""

    def script(asked: RecordedRequest) -> Reply:
        return slow_head(fail(500), 0.3) if asked.document["inputText"] == "5" else titan(asked)

    async with proxy(config=bedrock()) as client, sdk(client) as openai:
        client.upstream.default = script
        with pytest.raises(APIStatusError):
            await openai.embeddings.create(model="test", input=["3", "5"])
        [row] = (await client.rows()).attempts
        assert row["uncached_input_tokens"] == 3


async def test_all_parts_share_the_attempts_time(proxy: StartProxy) -> None:
    """Calls that are each quick enough do not add up to more than the client will wait."""
    async with proxy(config=bedrock()) as client:
        client.upstream.default = slow_head(document({"embedding": [1]}), 0.4)
        response = await client.request(
            "POST",
            "/v1/embeddings",
            {"model": "test", "input": ["a"] * 20},
            headers={"x-llmproxy-timeout": "0.9"},
        )
        assert response.status == 504
        assert response.document["error"]["code"] == UpstreamTimeout("", phase="total").error_code
        assert len(client.upstream.requests) < 20
