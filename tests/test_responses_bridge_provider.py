"""Which chats go through the Responses API, and that OpenAI's SDK notices nothing of it through a whole gateway."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, get_args

import orjson
import pytest
from multidict import CIMultiDict
from openai import APIError, AsyncOpenAI, BadRequestError, RateLimitError
from openai.types.shared.responses_model import ResponsesModel
from pydantic import ValidationError

from llmproxy.exchange import Target
from llmproxy.providers.azure import Azure, AzureConfig
from llmproxy.providers.compatible import Compatible
from llmproxy.providers.openai import OpenAI, OpenAIVendorConfig
from llmproxy.request import Operation, Request
from llmproxy.services import UpstreamRequest
from llmproxy.testing import ProxyClient, StartProxy, document, events, fail, stream
from tests.providers import KINDS, header, provider, request, services
from tests.responses_api import (
    USER,
    WEATHER,
    call,
    custom_call,
    events_of,
    judge,
    message,
    reasoning,
    response,
    sse,
    text,
)

CHAT, RESPONSES = "/chat/completions", "/responses"
TOOLS: Any = [WEATHER]
FUNCTIONS: Any = [WEATHER["function"]]
MESSAGES: Any = [USER]
THOUGHT = {"role": "assistant", "content": "Hi", "thinking_blocks": [{"type": "reasoning"}]}
CALLS = response(reasoning("Hm."), call("weather", '{"city": 1.0}'), call("now", number=2))


def openai(**section: Any) -> OpenAI:
    """OpenAI as a section configures it."""
    return OpenAI("openai", OpenAIVendorConfig.model_validate({"api_key": "key-1", **section}), services())


def azure(**section: Any) -> Azure:
    """An Azure resource as a section configures it."""
    settings = {"endpoint": "https://acme.openai.azure.com", "api_key": "key-1", **section}
    return Azure("azure", AzureConfig.model_validate(settings), services())


def prepare(made: OpenAI, model: str, operation: Operation = Operation.CHAT, **members: Any) -> UpstreamRequest:
    """What a provider would be sent."""
    asked = request({"model": model, "messages": [USER], **members}, operation)
    return made.prepare(asked, Target(made.name, model), CIMultiDict())


@pytest.mark.parametrize(
    ("model", "members", "path"),
    [
        # Reasons unless told otherwise.
        ("gpt-5.6-sol", {"tools": TOOLS}, RESPONSES),
        ("gpt-6-astra", {"tools": TOOLS}, RESPONSES),
        ("gpt-6.1-terra", {"functions": FUNCTIONS}, RESPONSES),
        ("gpt-5.6-sol", {"tools": TOOLS, "reasoning_effort": None}, RESPONSES),
        ("gpt-5.6-sol", {"tools": TOOLS, "reasoning_effort": "none"}, CHAT),
        ("gpt-5.6-sol", {"tools": []}, CHAT),
        ("gpt-5.6-sol", {}, CHAT),
        ("gpt-5.6-sol", {"reasoning_effort": "high"}, CHAT),
        ("ft:gpt-5.6-sol:acme::id", {"tools": TOOLS}, RESPONSES),
        # Reasons only when asked to, or at least lets it pass.
        ("gpt-5.4", {"tools": TOOLS}, CHAT),
        ("gpt-5.5-2026-04-23", {"tools": TOOLS}, CHAT),
        ("gpt-5.4-mini", {"tools": TOOLS, "reasoning_effort": "low"}, RESPONSES),
        ("gpt-5.5", {"functions": FUNCTIONS, "reasoning_effort": "high"}, RESPONSES),
        ("gpt-5.5", {"tools": TOOLS, "reasoning_effort": "none"}, CHAT),
        # An effort that is unknown on chat completions.
        ("gpt-5.6-sol", {"reasoning_effort": "max"}, RESPONSES),
        # A conversation that holds what only the Responses API understands.
        ("gpt-5.6-sol", {"messages": [USER, THOUGHT, USER]}, RESPONSES),
        ("gpt-5.1", {"messages": [USER, THOUGHT, USER]}, CHAT),
        # Models that refuse nothing.
        ("gpt-5.1", {"tools": TOOLS, "reasoning_effort": "high"}, CHAT),
        ("gpt-4o", {"tools": TOOLS}, CHAT),
        ("ft:gpt-4o:acme::id", {"tools": TOOLS}, CHAT),
        ("o3", {"tools": TOOLS, "reasoning_effort": "high"}, CHAT),
        ("my-own-model", {"tools": TOOLS, "reasoning_effort": "max"}, CHAT),
        # Models that are not there at all.
        ("gpt-5-pro", {}, RESPONSES),
        ("gpt-5.1-codex-max", {}, RESPONSES),
    ],
)
def test_the_data_decides(model: str, members: dict[str, Any], path: str) -> None:
    """What a model refuses on chat completions goes to the Responses API, and nothing else does."""
    assert prepare(openai(), model, **members).url == f"https://api.openai.com/v1{path}"


def test_models_that_only_the_responses_api_has_always_go_there() -> None:
    """The SDK's own list of models without chat completions is covered by the data."""
    _, _, alone = get_args(ResponsesModel)
    assert len(get_args(alone)) > 20
    for model in get_args(alone):
        assert prepare(openai(), model).url.endswith(RESPONSES), model


@pytest.mark.parametrize(
    ("mode", "model", "path"),
    [("never", "gpt-5.6-sol", CHAT), ("never", "gpt-5-pro", CHAT), ("always", "x", RESPONSES)],
)
def test_the_operator_decides(mode: str, model: str, path: str) -> None:
    """`responses` switches it off or on for every chat."""
    assert prepare(openai(responses=mode), model, tools=TOOLS).url.endswith(path)


@pytest.mark.parametrize("operation", [Operation.EMBEDDINGS, Operation.TEXT_COMPLETION])
def test_other_operations_stay(operation: Operation) -> None:
    """Only chats can go another way."""
    assert not prepare(openai(responses="always"), "gpt-5-pro", operation).url.endswith(RESPONSES)


def test_what_stays_keeps_every_byte() -> None:
    """A chat that is not refused goes out as it came, and so does its answer."""
    body = b'{ "model":"gpt-5.6-sol" ,"temperature":1.0e0, "x_new": {"b":1,"b":2}, "messages":[]}\n'
    asked = Request(Operation.CHAT, body, orjson.loads(body))
    made = openai()
    assert made.prepare(asked, Target("openai", "gpt-5.6-sol"), CIMultiDict()).body == body
    answered = b'{"choices": [{}], "usage":{}}'
    assert made.answer(asked, answered, orjson.loads(answered)) is answered
    assert made.stream_decoder(asked) is None


def test_what_goes_there_is_what_the_vendor_accepts() -> None:
    """The address, the gateway's key and a body that the SDK's types accept; what was left out is named."""
    prepared = prepare(openai(base_url="http://127.0.0.1:1/v1/"), "gpt-5.6-sol", tools=TOOLS, seed=1, stream=True)
    assert prepared.url == "http://127.0.0.1:1/v1/responses"
    assert header(prepared, "authorization") == "Bearer key-1"
    assert header(prepared, "accept") == "text/event-stream"
    assert prepared.dropped == ("seed",)
    judge(orjson.loads(prepared.body))


def test_a_model_without_rules_is_not_asked_for_reasoning() -> None:
    """A model that does not reason would refuse to be asked for encrypted reasoning."""
    assert "include" not in orjson.loads(prepare(openai(responses="always"), "gpt-4o").body)
    asked = orjson.loads(prepare(openai(responses="always"), "my-own", reasoning_effort="low").body)
    assert asked["include"] == ["reasoning.encrypted_content"]


def test_azure_goes_by_what_a_deployment_runs() -> None:
    """The customer's name for a model says nothing; its base model does, and the v1 API has both addresses."""
    prepared = prepare(azure(base_models={"mine": "gpt-5.6-sol"}), "mine", tools=TOOLS)
    assert prepared.url == "https://acme.openai.azure.com/openai/v1/responses"
    assert header(prepared, "api-key") == "key-1"
    assert orjson.loads(prepared.body)["model"] == "mine"
    assert prepare(azure(), "mine", tools=TOOLS).url.endswith(CHAT)


def test_dated_azure_stays_with_chat_completions() -> None:
    """A dated version has no Responses API of that form, and asking for it always is a mistake."""
    dated = azure(api_version="2025-04-01-preview", base_models={"mine": "gpt-5.6-sol"})
    assert f"{CHAT}?" in prepare(dated, "mine", tools=TOOLS).url
    with pytest.raises(ValidationError, match="set api_version to v1"):
        azure(api_version="2025-04-01-preview", responses="always")


def test_other_vendors_have_no_such_way() -> None:
    """A vendor that speaks OpenAI's format is asked in it, whatever its models are called."""
    made = provider("groq")
    assert isinstance(made, Compatible)
    assert prepare(made, "gpt-5.6-sol", tools=TOOLS).url.endswith(CHAT)
    with pytest.raises(ValidationError, match="responses"):
        KINDS["groq"].Config.model_validate({"responses": "auto"})


def test_a_mistake_in_the_switch_is_found() -> None:
    """The configuration knows three words."""
    with pytest.raises(ValidationError, match="responses"):
        openai(responses="sometimes")


# Through a whole gateway


def sdk(client: ProxyClient) -> AsyncOpenAI:
    """OpenAI's own SDK, which tries nothing twice."""
    return AsyncOpenAI(api_key=client.key, base_url=client.base_url, max_retries=0)


def settings(**section: Any) -> dict[str, Any]:
    """The gateway's upstream as OpenAI, with a price for its model."""
    price = {"match": "upstream/*", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    return {"providers": {"upstream": {"kind": "openai", **section}}, "prices": [price]}


async def test_the_sdk_gets_a_chat_completion(proxy: StartProxy) -> None:
    """Tools, usage and reasoning reach the client as a chat completion, and the next turn takes the reasoning along."""
    second = response(message(text("Rain.")))
    async with proxy(upstream=[document(CALLS), document(second)]) as client, sdk(client) as openai:
        asked: Any = {"model": "upstream/gpt-5.6-sol", "tools": TOOLS}
        first = await openai.chat.completions.create(messages=MESSAGES, **asked)
        said = first.choices[0].message
        assert [made.id for made in said.tool_calls or ()] == ["call_1", "call_2"]
        assert first.choices[0].finish_reason == "tool_calls"
        results: Any = [{"role": "tool", "tool_call_id": made.id, "content": "rain"} for made in said.tool_calls or ()]
        history: Any = [*MESSAGES, said.model_dump(exclude_none=True), *results]
        last = await openai.chat.completions.create(messages=history, **asked)
        assert last.choices[0].message.content == "Rain."
        sent = [each.document for each in client.upstream.requests]
        assert [each.target for each in client.upstream.requests] == ["/v1/responses"] * 2
        judge(sent[1])
        assert sent[1]["input"][1] == CALLS["output"][0]
        assert [item["type"] for item in sent[1]["input"]] == [
            *("message", "reasoning", "function_call", "function_call"),
            *("function_call_output", "function_call_output"),
        ]


async def test_the_sdk_gets_a_stream(proxy: StartProxy) -> None:
    """Chunks come in OpenAI's form, and what the vendor counts is what is charged."""
    data = sse(events_of(CALLS))
    async with proxy(upstream=[events(data[:400], data[400:])], config=settings(responses="always")) as client:
        async with sdk(client) as openai:
            given = await openai.chat.completions.create(
                model="test", messages=MESSAGES, tools=TOOLS, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in given]
        pieces = [piece for chunk in chunks[:-1] for piece in chunk.choices[0].delta.tool_calls or ()]
        arguments = [piece.function.arguments or "" for piece in pieces if piece.function and piece.index == 0]
        assert "".join(arguments) == '{"city": 1.0}'
        assert chunks[-2].choices[0].finish_reason == "tool_calls"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens == 100
        assert client.upstream.requests[0].document["stream"] is True
        [row] = (await client.rows()).ledger
        assert row["amount_usd"] == Decimal("0.0002")


async def test_a_stream_that_breaks_off_is_an_error(proxy: StartProxy) -> None:
    """Trap 24, as the client's SDK sees it."""
    broken = sse(events_of(response(message(text("Hello"))))[:-1])
    async with proxy(upstream=[events(broken)], config=settings(responses="always")) as client, sdk(client) as openai:
        given = await openai.chat.completions.create(model="test", messages=MESSAGES, stream=True)
        with pytest.raises(APIError, match="ended before the answer was complete"):
            [chunk async for chunk in given]


async def test_a_failure_before_the_first_content_is_a_status(proxy: StartProxy) -> None:
    """Trap 22: a failed answer that nobody has seen anything of is a real error."""
    failed = response(status="failed", error={"code": "rate_limit_exceeded", "message": "Slow down."})
    reply = events(sse(events_of(failed)))
    async with proxy(upstream=[reply], config=settings(responses="always")) as client, sdk(client) as openai:
        with pytest.raises(RateLimitError, match=r"Slow down\."):
            await openai.chat.completions.create(model="test", messages=MESSAGES, stream=True)


async def test_the_vendors_refusal_reaches_the_client(proxy: StartProxy) -> None:
    """An error response is OpenAI's own, with its code and the member at fault."""
    refusal = fail(400, code="unsupported_value", param="reasoning.effort")
    async with proxy(upstream=[refusal], config=settings(responses="always")) as client, sdk(client) as openai:
        with pytest.raises(BadRequestError) as caught:
            await openai.chat.completions.create(model="test", messages=MESSAGES)
        assert (caught.value.code, caught.value.param) == ("unsupported_value", "reasoning.effort")


async def test_what_is_impossible_there_costs_nothing(proxy: StartProxy) -> None:
    """A request that the Responses API cannot serve is refused before it is sent, and says why."""
    async with proxy(config=settings(responses="always")) as client, sdk(client) as openai:
        with pytest.raises(BadRequestError) as caught:
            await openai.chat.completions.create(model="test", messages=MESSAGES, n=2)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "n")
        assert client.upstream.requests == []


async def test_chats_that_are_not_refused_stay_where_they_were(proxy: StartProxy) -> None:
    """The same model without tools is asked on chat completions."""
    async with proxy(upstream=[stream("Hi")]) as client, sdk(client) as openai:
        answer = await openai.chat.completions.create(model="upstream/gpt-5.6-sol", messages=MESSAGES)
        assert answer.choices[0].message.content == "Hi"
        assert client.upstream.requests[0].target == "/v1/chat/completions"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_clients_of_functions_get_function_calls(proxy: StartProxy, is_stream: bool) -> None:  # noqa: FBT001 - a parameter
    """Trap 43: who knows no tools gets `function_call` and its finish reason, whole and streamed."""
    reply = events(sse(events_of(CALLS))) if is_stream else document(CALLS)
    async with proxy(upstream=[reply], config=settings(responses="always")) as client, sdk(client) as openai:
        asked: Any = {"model": "test", "messages": MESSAGES, "functions": FUNCTIONS, "stream": is_stream}
        given = await openai.chat.completions.create(**asked)
        choices = [chunk.choices[0] async for chunk in given if chunk.choices] if is_stream else given.choices
        said = [choice.delta if is_stream else choice.message for choice in choices]
        calls = [each.function_call for each in said if each.function_call]
        assert "".join(made.arguments for made in calls) == '{"city": 1.0}'
        assert not any(each.tool_calls for each in said)
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["function_call"]


def test_custom_calls_are_the_clients_own() -> None:
    """A custom tool's call is not made a function's."""
    asked = request({"model": "gpt-5-pro", "messages": [USER]})
    answered = response(custom_call("sql", "SELECT 1"))
    said = orjson.loads(openai().answer(asked, orjson.dumps(answered), answered))["choices"][0]["message"]
    assert said["tool_calls"][0]["custom"] == {"name": "sql", "input": "SELECT 1"}
