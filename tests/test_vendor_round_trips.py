"""Every vendor behind a whole gateway: the client's SDK asks, the vendor answers in its own words, the SDK reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic import BaseModel

from llmproxy.testing import Reply, ScriptedUpstream, StartProxy
from llmproxy.testing.database import TestDatabases
from tests.vendor_answers import INPUT_TOKENS, OUTPUT_TOKENS, SAID, VENDORS, Said, Vendor
from tests.vendor_matrix import TOOL

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: Any = [{"role": "user", "content": "What is the weather?"}]
TOOLS: Any = [TOOL]
EXPECTED_ERRORS: dict[str, tuple[type[openai.APIStatusError], str | None]] = {
    "rate limit": (openai.RateLimitError, None),
    "context length": (openai.BadRequestError, "context_length_exceeded"),
    # It is the gateway's key that is wrong, which is nothing a client can mend.
    "wrong key": (openai.InternalServerError, "upstream_auth_error"),
    "overload": (openai.InternalServerError, None),
}

each_vendor = pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: f"{vendor.kind}/{vendor.model}")
whole_or_streamed = pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])


class Place(BaseModel):
    """What structured answers are made of."""

    city: str


@dataclass
class Heard:
    """What the SDK made of an answer."""

    text: str = ""
    thinking: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    usage: Any = None
    roles: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway with every vendor behind it, all of them played by one upstream."""

    sdk: AsyncOpenAI
    upstream: ScriptedUpstream

    def will_say(self, *replies: Reply) -> int:
        """Put replies up, and only these. The number of requests so far."""
        self.upstream.replies.clear()
        self.upstream.replies.extend(replies)
        return len(self.upstream.requests)

    async def ask(self, vendor: Vendor, *, is_stream: bool, **fields: Any) -> Heard:
        """An answer, however it comes."""
        asked = {"model": vendor.name, "messages": MESSAGES, **fields}
        create: Any = self.sdk.chat.completions.create  # its overloads want to know each field
        if not is_stream:
            return _read(await create(**asked))
        answer = Heard()
        async for chunk in await create(**asked, stream=True, stream_options={"include_usage": True}):
            _hear(answer, chunk)
        return answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(llmproxy_databases: TestDatabases) -> AsyncIterator[Gateway]:
    """One for all tests here: a start takes longer than any of them."""
    async with ScriptedUpstream() as upstream:
        address = {"base_url": upstream.base_url, "api_key": "key"}
        providers = {vendor.kind: {**address, **vendor.section} for vendor in VENDORS}
        async with (
            StartProxy(llmproxy_databases)(config={"providers": providers}) as client,
            AsyncOpenAI(api_key=client.key, base_url=client.base_url, max_retries=0) as sdk,
        ):
            yield Gateway(sdk, upstream)


def _read(completion: Any) -> Heard:
    (choice,) = completion.choices
    calls = [[call.id, call.function.name, call.function.arguments] for call in choice.message.tool_calls or []]
    thinking = (choice.message.model_extra or {}).get("reasoning_content") or ""
    text = choice.message.content or ""
    return Heard(text, thinking, calls, choice.finish_reason, completion.usage, {choice.message.role})


def _hear(answer: Heard, chunk: Any) -> None:
    answer.usage = chunk.usage or answer.usage
    for choice in chunk.choices:
        answer.finish = choice.finish_reason or answer.finish
        answer.text += choice.delta.content or ""
        answer.thinking += (choice.delta.model_extra or {}).get("reasoning_content") or ""
        answer.roles |= {choice.delta.role} if choice.delta.role else set()
        for call in choice.delta.tool_calls or []:
            if call.index == len(answer.calls):
                answer.calls.append([call.id, call.function.name, ""])
            answer.calls[call.index][2] += call.function.arguments or ""


def judge(heard: Heard, said: Said) -> None:
    """Hold what the SDK read against what the model said."""
    assert (heard.text, heard.thinking) == ("".join(said.text), "".join(said.thinking))
    assert heard.finish == said.finish
    assert [(name, json.loads(arguments)) for _, name, arguments in heard.calls] == [
        ("weather", {"city": city}) for city in said.cities
    ]
    assert len({call_id for call_id, *_ in heard.calls if call_id}) == len(said.cities)
    assert heard.roles == {"assistant"}
    assert (heard.usage.prompt_tokens, heard.usage.completion_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)
    assert heard.usage.total_tokens == INPUT_TOKENS + OUTPUT_TOKENS


@each_vendor
@whole_or_streamed
@pytest.mark.parametrize("name", [name for name in SAID if name != "structured output"])
async def test_what_a_model_says_reaches_the_client(
    gateway: Gateway, vendor: Vendor, name: str, *, is_stream: bool
) -> None:
    """Text, thinking, parallel calls, an answer cut short and a refusal are the same whoever gave them."""
    said = vendor.can_say(SAID[name])
    gateway.will_say(vendor.streamed(said) if is_stream else vendor.whole(said))
    tools = {"tools": TOOLS} if said.cities else {}
    judge(await gateway.ask(vendor, is_stream=is_stream, **tools), said)


@each_vendor
async def test_structured_output_is_parsed(gateway: Gateway, vendor: Vendor) -> None:
    """The SDK's own way to a typed answer works, whole and streamed, and the vendor was shown the schema."""
    said = SAID["structured output"]
    before = gateway.will_say(vendor.whole(said), vendor.streamed(said))
    chat = gateway.sdk.chat.completions
    parsed = await chat.parse(model=vendor.name, messages=MESSAGES, response_format=Place)
    assert parsed.choices[0].message.parsed == Place(city="Rome")
    async with chat.stream(model=vendor.name, messages=MESSAGES, response_format=Place) as events:
        final = await events.get_final_completion()
    assert final.choices[0].message.parsed == Place(city="Rome")
    assert ["city" in request.body.decode() for request in gateway.upstream.requests[before:]] == [True, True]


@each_vendor
async def test_results_of_tools_go_back(gateway: Gateway, vendor: Vendor) -> None:
    """What the SDK got it sends back with the results, and the vendor gets these in the order of its calls."""
    said = SAID["text"]
    gateway.will_say(vendor.whole(SAID["parallel tools"]), vendor.whole(said))
    chat = gateway.sdk.chat.completions
    message = (await chat.create(model=vendor.name, messages=MESSAGES, tools=TOOLS)).choices[0].message
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": f"rain {number}"}
        for number, call in enumerate(message.tool_calls or [])
    ]
    history = [*MESSAGES, message.model_dump(exclude_none=True), *results]
    answer = await chat.create(model=vendor.name, messages=history, tools=TOOLS)
    assert answer.choices[0].message.content == "".join(said.text)
    sent = gateway.upstream.requests[-1].body
    assert sent.index(b"rain 0") < sent.index(b"rain 1")


@each_vendor
@whole_or_streamed
@pytest.mark.parametrize("name", EXPECTED_ERRORS)
async def test_failures_are_the_classes_that_the_sdk_knows(
    gateway: Gateway, vendor: Vendor, name: str, *, is_stream: bool
) -> None:
    """Each vendor's own words for a failure become the same exception, and the upstream's address is not told."""
    expected, code = EXPECTED_ERRORS[name]
    gateway.will_say(vendor.errors[name])
    with pytest.raises(expected) as caught:
        await gateway.ask(vendor, is_stream=is_stream)
    assert caught.value.code == vendor.own_codes.get(name, code) or code is None
    assert "127.0.0.1" not in caught.value.message
