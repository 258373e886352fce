"""The azure kind: addresses, keys and tokens of one resource, OpenAI's bytes, and prices by base model."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from llmproxy.accounting import Accounting
from llmproxy.config import PriceConfig
from llmproxy.dialects.openai_errors import error_body
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import Failure, UpstreamError, UpstreamRefused
from llmproxy.exchange import Target
from llmproxy.pricing import PriceBook
from llmproxy.providers.access_token import AccessToken, RenewedToken
from llmproxy.providers.azure import Azure, AzureConfig
from llmproxy.request import Operation, Request
from llmproxy.services import Services, SystemClock, UpstreamRequest
from llmproxy.sse import event_data
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import Clock, ScriptedUpstream, document
from llmproxy.usage import Usage
from tests.providers import header, request, services

ENDPOINT = "https://acme.openai.azure.com"
TARGET = Target("azure", "my-deployment")


def azure(**section: Any) -> Azure:
    """A configured resource."""
    settings = {"endpoint": ENDPOINT, "api_key": "key-1", **section}
    return Azure("azure", AzureConfig.model_validate(settings), services())


def prepare(asked: Request | None = None, target: Target = TARGET, **section: Any) -> UpstreamRequest:
    """What a resource would be sent."""
    return azure(**section).prepare(asked or request({"model": target.model}), target, CIMultiDict())


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        (Operation.CHAT, "/chat/completions"),
        (Operation.TEXT_COMPLETION, "/completions"),
        (Operation.EMBEDDINGS, "/embeddings"),
    ],
)
def test_both_forms_of_address(operation: Operation, path: str) -> None:
    """The v1 API has one address for every deployment; a dated version has one for each."""
    asked = request({"model": "my-deployment"}, operation)
    assert prepare(asked).url == f"{ENDPOINT}/openai/v1{path}"
    dated = prepare(asked, api_version="2024-10-21").url
    assert dated == f"{ENDPOINT}/openai/deployments/my-deployment{path}?api-version=2024-10-21"


@pytest.mark.parametrize("given", [ENDPOINT, f"{ENDPOINT}/", f"{ENDPOINT}/openai/v1/", f"{ENDPOINT}/openai"])
@pytest.mark.parametrize("key", ["endpoint", "base_url"])
def test_the_address_may_be_copied_from_anywhere(key: str, given: str) -> None:
    """With or without the path of the API, an endpoint is the same; `base_url` stands in place of it."""
    section: dict[str, Any] = {"endpoint": None, key: given}
    assert prepare(**section).url == f"{ENDPOINT}/openai/v1/chat/completions"


def test_a_deployments_name_is_encoded_once() -> None:
    """A name with a slash or a space stays one step of the path."""
    url = prepare(target=Target("azure", "a/b c%2f"), api_version="2025-01-01-preview").url
    assert url.startswith(f"{ENDPOINT}/openai/deployments/a%2Fb%20c%252f/chat")


def test_the_key_has_azures_own_header() -> None:
    """The key travels as `api-key`, and no bearer token beside it."""
    prepared = prepare()
    assert header(prepared, "api-key") == "key-1"
    assert header(prepared, "authorization") is None


def test_the_clients_own_keys_stay_here() -> None:
    """Trap 41: whatever key the client came with, Azure sees the gateway's."""
    client = CIMultiDict({"api-key": "client-key", "Authorization": "Bearer client-key", "User-Agent": "app/1"})
    prepared = azure().prepare(request({"model": "d"}), TARGET, client)
    assert header(prepared, "api-key") == "key-1"
    assert header(prepared, "user-agent") == "app/1"
    assert all("client-key" not in value for _, value in prepared.headers)


def test_bytes_stay_bytes() -> None:
    """What the client wrote goes out as it came, unknown members and number spelling included."""
    body = b'{ "model":"my-deployment" ,"temperature":1.0e0, "x_new": {"b":1,"b":2}, "messages":[]}\n'
    assert prepare(Request(Operation.CHAT, body, orjson.loads(body))).body == body
    answered = b'{"choices": [{"content_filter_results": {}}], "usage":{}}'
    assert azure().answer(request(), answered, orjson.loads(answered)) is answered
    assert azure().stream_decoder(request()) is None


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"endpoint": None}, "set endpoint, or base_url"),
        ({"endpoint": "acme.openai.azure.com"}, "match pattern"),
        ({"api_version": "newest"}, "match pattern"),
        ({"entra": {}}, "set api_key or entra, not both"),
        ({"api_key": None, "entra": {"client_secret": "s"}}, "client_secret needs tenant_id and client_id"),
    ],
)
def test_a_section_that_cannot_work_is_refused(section: dict[str, Any], said: str) -> None:
    """A mistake is found when the configuration is read."""
    with pytest.raises(ValidationError, match=said):
        azure(**section)


def test_a_missing_library_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entra without its optional package names the extra to install."""
    monkeypatch.setitem(sys.modules, "azure", None)
    with pytest.raises(ValidationError, match=r"install llmproxy\[azure\]"):
        azure(api_key=None, entra={})


def test_a_missing_key_is_said_plainly() -> None:
    """Without a key or Entra the resource is not asked."""
    with pytest.raises(UpstreamError) as caught:
        prepare(api_key=None)
    assert caught.value.message == "The provider 'azure' has no api_key; set providers.azure.api_key."


# Prices


def test_a_deployment_costs_what_its_base_model_costs() -> None:
    """`base_models` says what a deployment runs; without it the deployment is unpriced, never free."""
    provider = azure(base_models={"my-deployment": "gpt-4o"})
    accounting = Accounting({("azure", None): provider}, PriceBook([]), SystemClock())
    used = Usage(uncached_input_tokens=1000, text_output_tokens=100)
    direct = accounting.cost(Target("azure", "gpt-4o"), used).amount_usd
    assert direct is not None
    assert accounting.cost(TARGET, used).amount_usd == direct > 0
    assert accounting.cost(Target("azure", "another-deployment"), used).amount_usd is None
    assert provider.model_names() == ("my-deployment",)


def test_the_operators_own_price_wins_by_the_deployments_name() -> None:
    """A price section names what clients ask for, not what runs behind it."""
    prices = PriceBook([PriceConfig(match="azure/my-deployment", free=True)])
    accounting = Accounting({("azure", None): azure(base_models={"my-deployment": "gpt-4o"})}, prices, SystemClock())
    assert accounting.cost(TARGET, Usage(uncached_input_tokens=1000)).amount_usd == 0


# Content filters

BLOCKED = {
    "error": {
        "message": "The response was filtered.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
    }
}


def test_a_blocked_prompt_is_a_content_policy_failure() -> None:
    """Azure's filter refuses with 400: the client gets its code, and failover knows the class."""
    error = azure().error(400, {}, orjson.dumps(BLOCKED))
    assert isinstance(error, UpstreamRefused)
    assert (error.failure, error.http_status) == (Failure.CONTENT_POLICY, 400)
    assert orjson.loads(error_body(error, None))["error"]["code"] == "content_filter"


def chunk(**members: Any) -> bytes:
    """An event of a stream, with what Azure leaves empty left empty."""
    base = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
    return b"data: " + orjson.dumps({**base, **members}) + b"\n\n"


def choice(delta: Any, finish: str | None = None) -> list[dict[str, Any]]:
    """The choices of a chunk."""
    return [{"index": 0, "delta": delta, "finish_reason": finish, "content_filter_results": {}}]


FILTERED_STREAM = [
    chunk(prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}]),
    chunk(choices=choice({"role": "assistant", "content": ""})),
    chunk(choices=choice({"content": "Hi"})),
    chunk(choices=choice(None)),
    chunk(choices=None),
    chunk(choices=choice({}, "content_filter")),
    chunk(usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}),
    b"data: [DONE]\n\n",
]


def test_filter_chunks_are_neither_content_nor_the_end() -> None:
    """Trap 17: chunks with empty or null choices or a null delta pass as they came, and count for nothing."""
    facts = StreamFacts(hide_usage=True)
    assert facts.feed(FILTERED_STREAM[0]) == FILTERED_STREAM[0]
    assert not facts.has_content
    assert not facts.is_complete
    relayed = [facts.feed(event) for event in FILTERED_STREAM[1:]]
    assert relayed == [*FILTERED_STREAM[1:6], b"", FILTERED_STREAM[7]]
    assert facts.finish_reasons == ("content_filter",)
    assert azure().usage(facts.usage or {}) == Usage(uncached_input_tokens=5, text_output_tokens=2)


def test_the_sdk_reads_a_filtered_stream() -> None:
    """The bytes that pass are chunks to the client's SDK."""
    for event in FILTERED_STREAM[1:3]:
        members = orjson.loads(event_data(event) or b"")
        parsed = ChatCompletionChunk.model_validate({**members, "object": "chat.completion.chunk"})
        assert parsed.choices[0].delta.role in ("assistant", None)


@given(st.integers(min_value=0), st.integers(min_value=0))
def test_an_error_in_the_stream_is_one_however_it_is_cut(first: int, second: int) -> None:
    """Trap 22: an error object inside a 200 stream ends it as an error."""
    facts = StreamFacts(hide_usage=True)
    events = [*FILTERED_STREAM[: 1 + first % 4], b'data: {"error":{"code":"content_filter","message":"x"}}\n\n']
    at = second % (len(events) + 1)
    facts.feed(b"".join(events[:at]))
    facts.feed(b"".join(events[at:]))
    assert facts.error is not None
    assert facts.error.failure is Failure.CONTENT_POLICY


# Tokens


class Issuer:
    """Hands out tokens that run out an hour later, or fails."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.issued = 0
        self.running = 0
        self.fails = False

    async def fetch(self) -> AccessToken:
        """The next token; no two calls may overlap."""
        assert self.running == 0
        self.running += 1
        await self.clock.sleep(0)
        self.running -= 1
        if self.fails:
            raise ConnectionError("no network")
        self.issued += 1
        return AccessToken(f"token-{self.issued}", self.clock.now().timestamp() + 3600)


@asynccontextmanager
async def renewed(issuer: Issuer) -> AsyncIterator[RenewedToken]:
    """A token that is kept fresh while the block runs."""
    log = structlog.get_logger()
    tasks = BackgroundTasks(log)
    token = RenewedToken("azure", issuer.fetch, replace(services(issuer.clock), tasks=tasks, log=log))
    await token.start()
    try:
        yield token
    finally:
        await token.stop()
        await tasks.cancel_all()


async def test_a_token_is_renewed_before_it_runs_out() -> None:
    """Four minutes before its end a new token is there, and no request has waited for it."""
    issuer = Issuer(Clock())
    async with renewed(issuer) as token:
        assert token.value == "token-1"
        await issuer.clock.advance(3600 - 241)
        assert token.value == "token-1"
        await issuer.clock.advance(2)
        assert token.value == "token-2"


async def test_a_failed_renewal_is_tried_again_while_the_old_token_lasts() -> None:
    """A network that is away for a while is noticed by nobody; one that stays away is said plainly."""
    issuer = Issuer(Clock())
    async with renewed(issuer) as token:
        issuer.fails = True
        await issuer.clock.advance(3599)
        assert token.value == "token-1"
        await issuer.clock.advance(2)
        with pytest.raises(UpstreamError, match="no valid access token") as caught:
            _ = token.value
        assert caught.value.failure is Failure.AUTH
        issuer.fails = False
        await issuer.clock.advance(16)
        assert token.value == "token-2"


async def test_a_start_without_a_token_goes_on() -> None:
    """Credentials that do not work yet keep nothing from starting."""
    issuer = Issuer(Clock())
    issuer.fails = True
    async with renewed(issuer) as token:
        issuer.fails = False
        await issuer.clock.advance(16)
        assert token.value == "token-1"


def test_a_token_does_not_show_itself() -> None:
    """What is printed of a token does not hold it."""
    assert "secret" not in repr(AccessToken("secret", 1.0))


async def entra_services() -> Services:
    """Services with real tasks."""
    log = structlog.get_logger()
    return replace(services(), tasks=BackgroundTasks(log), log=log)


async def test_an_entra_token_comes_from_the_machines_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """azure-identity asks the machine's own endpoint, and its token travels as bearer in place of a key."""
    token = {"access_token": "entra-token", "expires_on": "4102444800", "resource": "r", "token_type": "Bearer"}
    async with ScriptedUpstream([], default=document(token)) as identity:
        for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{identity.base_url}/token")
        monkeypatch.setenv("IDENTITY_HEADER", "machine-secret")
        config = AzureConfig.model_validate({"endpoint": ENDPOINT, "entra": {}})
        provider = Azure("azure", config, await entra_services())
        await provider.startup()
        prepared = provider.prepare(request({"model": "d"}), TARGET, CIMultiDict())
        await provider.shutdown()
        assert header(prepared, "authorization") == "Bearer entra-token"
        assert header(prepared, "api-key") is None
        asked = identity.requests[0]
        assert "resource=https://ai.azure.com" in asked.target
        assert asked.headers.get("x-identity-header") == "machine-secret"


async def test_without_a_token_nothing_is_sent() -> None:
    """A request before the first token fails with a clear error."""
    config = AzureConfig.model_validate({"endpoint": ENDPOINT, "entra": {}})
    provider = Azure("azure", config, await entra_services())
    with pytest.raises(UpstreamError, match="no valid access token"):
        provider.prepare(request({"model": "d"}), TARGET, CIMultiDict())


def test_the_example_of_the_design_is_a_section() -> None:
    """The section that the documentation shows is accepted as it stands."""
    section = json.loads('{"endpoint": "https://acme.openai.azure.com", "api_key": "k", "api_version": "v1"}')
    config = AzureConfig.model_validate({**section, "base_models": {"my-deployment": "gpt-4o"}})
    assert not config.is_dated
