"""The bedrock kind: addresses, keys, and answers over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from botocore.serialize import create_serializer
from multidict import CIMultiDict
from openai import AsyncOpenAI
from pydantic import ValidationError

from llmproxy.errors import BadRequest, Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.gateway import default_config
from llmproxy.providers.bedrock.config import BedrockConfig
from llmproxy.request import Operation
from llmproxy.services import UpstreamRequest
from llmproxy.testing import ProxyClient, Reply, StartProxy, document
from llmproxy.testing.messages import Ending, Framing, Message
from tests.bedrock import (
    ARN,
    CLAUDE_4_5,
    KEYS,
    NOVA,
    TITAN,
    asked,
    bedrock,
    delta,
    ending,
    exception,
    role,
    says,
    service_model,
    signature,
    stop,
)
from tests.providers import header

OPAQUE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123def456"
USAGE = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}


@pytest.fixture(autouse=True)
def _no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own AWS set-up."""
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)


def sent(model: str = CLAUDE_4_5, client: dict[str, str] | None = None, **section: Any) -> UpstreamRequest:
    """What a provider with this section would send."""
    return bedrock(**section).prepare(asked(model), Target("bedrock", model), CIMultiDict(client or {}))


# Addresses


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-west-1", "bedrock-runtime.eu-west-1.amazonaws.com"),
        ("us-gov-west-1", "bedrock-runtime.us-gov-west-1.amazonaws.com"),
        ("cn-north-1", "bedrock-runtime.cn-north-1.amazonaws.com.cn"),
        ("eusc-de-east-1", "bedrock-runtime.eusc-de-east-1.amazonaws.eu"),
    ],
)
def test_each_region_has_an_address(region: str, host: str) -> None:
    """The address is the region's own, in whatever part of AWS it is."""
    assert sent(NOVA, region=region).url == f"https://{host}/model/amazon.nova-pro-v1%3A0/converse"


@pytest.mark.parametrize("key", ["base_url", "endpoint_url"])
def test_an_address_of_the_operators_own(key: str) -> None:
    """A private endpoint stands in place of the region's, under either name, with or without a slash."""
    section: dict[str, Any] = {key: "https://vpce-1.example.org/"}
    url = sent(NOVA, **section).url
    assert url == "https://vpce-1.example.org/model/amazon.nova-pro-v1%3A0/converse"


@pytest.mark.parametrize("model", [CLAUDE_4_5, NOVA, ARN, OPAQUE, "a b/c%2f@ü"])
def test_a_models_id_is_encoded_once_as_botocore_does(model: str) -> None:
    """Trap 40: colons and slashes of ids and ARNs stay inside their step of the path."""
    serializer = create_serializer("rest-json", include_validation=False)
    expected = serializer.serialize_to_request({"modelId": model}, service_model().operation_model("Converse"))
    assert sent(model).url == f"https://bedrock-runtime.eu-west-1.amazonaws.com{expected['url_path']}"


@pytest.mark.parametrize("model", [".", "..", ""])
def test_a_name_that_would_lead_elsewhere_is_no_model(model: str) -> None:
    """Steps of dots cannot be encoded, and no model is called that."""
    with pytest.raises(BadRequest):
        sent(model)


def test_each_operation_has_its_own_address() -> None:
    """Streams are asked for by address, and embeddings through InvokeModel."""
    provider = bedrock()
    target = Target("bedrock", NOVA)
    streamed = provider.prepare(asked(NOVA, stream=True), target, CIMultiDict())
    assert streamed.url.endswith("/converse-stream")
    assert header(streamed, "accept") == "application/vnd.amazon.eventstream"
    embeddings = asked(TITAN, operation=Operation.EMBEDDINGS, input="a")
    assert provider.prepare(embeddings, Target("bedrock", TITAN), CIMultiDict()).url.endswith("/invoke")


def test_an_arn_that_does_not_say_its_model_can_be_told() -> None:
    """What holds for the model behind it holds for the profile, its price included."""
    request = asked(OPAQUE, temperature=1.0)
    unknown = bedrock()
    assert b"temperature" in unknown.prepare(request, Target("bedrock", OPAQUE), CIMultiDict()).body
    known = bedrock(base_models={OPAQUE: "anthropic.claude-opus-5-5"})
    assert known.prepare(request, Target("bedrock", OPAQUE), CIMultiDict()).dropped == ("temperature",)
    assert known.price_model(OPAQUE) == "anthropic.claude-opus-5-5"
    assert known.price_model(ARN) == "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


# Keys


def test_a_key_is_a_bearer_and_nothing_of_the_clients_goes_along() -> None:
    """Trap 41: the section's key goes out; the client's own credentials never do."""
    client = {"Authorization": "Bearer client", "x-api-key": "client", "cookie": "a=b", "User-Agent": "app/1"}
    assert dict(sent(client=client).headers) == {
        "accept": "application/json",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "authorization": "Bearer bedrock-key",
        "user-agent": "app/1",
    }


def test_the_usual_variable_serves_bedrock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AWS's variable for the key set, the gateway serves Bedrock without a file."""
    assert 'bedrock: {api_key: "${AWS_BEARER_TOKEN_BEDROCK}"}' in default_config({"AWS_BEARER_TOKEN_BEDROCK": "k"})
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert BedrockConfig.model_validate({}).region == "ap-south-1"


def test_a_missing_region_is_named() -> None:
    """Without a region there is nowhere to ask, which a request is told."""
    signed: dict[str, Any] = {"api_key": None, **KEYS}
    for section in ({}, signed, {**signed, "base_url": "https://example.org"}):
        with pytest.raises(UpstreamError, match="AWS_REGION") as raised:
            sent(region=None, **section)
        assert raised.value.failure is Failure.AUTH
    assert sent(region=None, base_url="https://example.org").url.startswith("https://example.org/model/")


@pytest.mark.parametrize(
    "section",
    [
        {"access_key_id": "a"},
        {"secret_access_key": "a"},
        {"session_token": "a"},
        {**KEYS, "api_key": "k"},
        {**KEYS, "profile": "p"},
        {"region": "evil.example.org/"},
    ],
)
def test_credentials_of_two_kinds_or_half_of_one_are_mistakes(section: dict[str, str]) -> None:
    """The configuration says which credentials it means."""
    with pytest.raises(ValidationError):
        BedrockConfig.model_validate(section)


def test_no_secret_is_shown() -> None:
    """Keys do not show where a section is printed."""
    shown = repr(BedrockConfig.model_validate({**KEYS, "session_token": "the-token"}))
    assert KEYS["secret_access_key"] not in shown
    assert "the-token" not in shown


# Over real connections


def frames(*pieces: bytes, ending: Ending = Ending.COMPLETE) -> Reply:
    """A stream of Bedrock's."""
    headers = (("Content-Type", "application/vnd.amazon.eventstream"), ("x-amzn-RequestId", "req-1"))
    return Reply(lambda _: Message(pieces=pieces, headers=headers, framing=Framing.CHUNKED, ending=ending))


@asynccontextmanager
async def gateway(proxy: StartProxy, *replies: Reply) -> AsyncIterator[tuple[ProxyClient, AsyncOpenAI]]:
    """A gateway in front of a server that answers like Bedrock, and the SDK of an application."""
    section = {"kind": "bedrock", "region": "us-east-1", "api_key": None, **KEYS}
    config = {
        "providers": {"upstream": section},
        "models": {"test": f"upstream/{ARN}"},
        "prices": [{"match": "upstream/*", "input_usd_per_mtok": 1, "output_usd_per_mtok": 2}],
    }
    async with (
        proxy(upstream=replies, config=config) as client,
        AsyncOpenAI(base_url=client.base_url, api_key=client.key, max_retries=0) as sdk,
    ):
        yield client, sdk


async def test_an_answer_through_the_gateway(proxy: StartProxy) -> None:
    """The signature holds for the very bytes that arrive, and the answer is OpenAI's."""
    async with gateway(proxy, document(says({"text": "Hi"}, usage=USAGE, metrics={"latencyMs": 1}))) as (client, sdk):
        answer = await sdk.chat.completions.create(model="test", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content == "Hi"
        request = client.upstream.requests[0]
        assert request.target == f"/v1/model/{quote(ARN, safe='')}/converse"
        host = client.upstream.origin.removeprefix("http://")
        made = signature(request.headers, request.body, request.target, host)
        assert request.headers["authorization"].endswith(f"Signature={made}")
        attempt = (await client.rows()).attempts[0]
        assert (attempt["uncached_input_tokens"], attempt["text_output_tokens"]) == (10, 5)


async def test_a_stream_through_the_gateway(proxy: StartProxy) -> None:
    """A stream that is no text comes out as events, and its usage is recorded although nobody asked for it."""
    stream = role() + delta(0, text="Hel") + delta(0, text="lo") + stop(0) + ending()
    async with gateway(proxy, frames(stream[:100], stream[100:250], stream[250:])) as (client, sdk):
        events = await sdk.chat.completions.create(
            model="test", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        chunks = [chunk async for chunk in events]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
        assert chunks[-1].choices[0].finish_reason == "stop"
        attempt = (await client.rows()).attempts[0]
        assert (attempt["uncached_input_tokens"], attempt["text_output_tokens"]) == (10, 5)


async def test_a_failing_stream_through_the_gateway(proxy: StartProxy) -> None:
    """Traps 20 and 24: before the content an exception is a status; after it, it is an event and never a clean stop."""
    content = role() + delta(0, text="Hel")
    replies = [
        frames(role() + exception("throttlingException", "Slow down.")),
        frames(content + exception("serviceUnavailableException", "Sorry.")),
        frames(content, ending=Ending.COMPLETE),
        document({"message": "Bad field."}, status=400, headers=(("x-amzn-ErrorType", "ValidationException"),)),
    ]
    async with gateway(proxy, *replies) as (client, _):
        refused = await client.chat(stream=True)
        assert (refused.status, refused.document["error"]["type"]) == (429, "ThrottlingException")
        for message in ("Sorry.", "ended before the answer was complete"):
            broken = await client.chat(stream=True)
            assert broken.status == 200
            assert b"Hel" in broken.body
            assert message in orjson.loads(broken.body.split(b"data: ")[-1])["error"]["message"]
            assert b"[DONE]" not in broken.body
            assert b'"finish_reason":"' not in broken.body
        wrong = await client.chat()
        assert (wrong.status, wrong.document["error"]["message"]) == (400, "Bad field.")
