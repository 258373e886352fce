"""Errors as the official OpenAI SDK for Python sees them: the right class, the provider's code, and honest ends."""

from __future__ import annotations

import time

import openai
import pytest

from llmproxy.testing import (
    Reply,
    StartProxy,
    cut_after,
    cut_mid_event,
    end_without_done,
    error_event_after,
    fail,
    hang,
    hang_after,
    nothing,
    reply,
    stream,
)
from tests.test_openai_sdk import MESSAGES, sdk_of, texts_of

LIMITED = {"workspaces": {"default": {"models": ["demo/*"]}}}


async def test_a_wrong_key_is_an_authentication_error(proxy: StartProxy) -> None:
    """The gateway's own keys count; the provider never hears of another."""
    async with proxy() as client, sdk_of(client, api_key="sk-wrong") as sdk:
        with pytest.raises(openai.AuthenticationError) as raised:
            await sdk.chat.completions.create(model="test", messages=MESSAGES)
        assert raised.value.code == "invalid_api_key"
        assert client.upstream.requests == []
        assert (await client.rows()).requests == []


async def test_an_unknown_model_is_not_found_and_named(proxy: StartProxy) -> None:
    """A misspelt name is answered with the nearest ones there are."""
    async with proxy() as client, sdk_of(client) as sdk:
        with pytest.raises(openai.NotFoundError, match="Did you mean 'demo/echo'") as raised:
            await sdk.chat.completions.create(model="demo/ecco", messages=MESSAGES)
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("nobody/nothing")


async def test_a_model_that_is_not_allowed_is_a_permission_error(proxy: StartProxy) -> None:
    """What a workspace may not use is neither served nor listed."""
    async with proxy(config=LIMITED) as client, sdk_of(client) as sdk:
        with pytest.raises(openai.PermissionDeniedError) as raised:
            await sdk.chat.completions.create(model="test", messages=MESSAGES)
        assert raised.value.code == "model_not_allowed"
        assert all(model.id.startswith("demo/") for model in [model async for model in sdk.models.list()])


async def test_a_malformed_request_is_a_bad_request(proxy: StartProxy) -> None:
    """The gateway's refusal and the provider's are of one class, each with its own code."""
    async with proxy(upstream=[fail(400, code="invalid_value", param="temperature")]) as client, sdk_of(client) as sdk:
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.chat.completions.create(model="test", messages=MESSAGES, extra_body={"fallbacks": "demo/echo"})
        assert raised.value.param == "fallbacks"
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.chat.completions.create(model="test", messages=MESSAGES, temperature=9)
        assert (raised.value.code, raised.value.param) == ("invalid_value", "temperature")


@pytest.mark.parametrize(
    ("given", "kind", "status", "code"),
    [
        (fail(401, code="invalid_api_key"), openai.InternalServerError, 502, "upstream_auth_error"),
        (fail(429, code="rate_limit_exceeded", retry_after=7), openai.RateLimitError, 429, "rate_limit_exceeded"),
        (fail(500), openai.InternalServerError, 502, "server_error"),
        (fail(503, code="overloaded"), openai.InternalServerError, 503, "overloaded"),
        (nothing(), openai.InternalServerError, 502, "upstream_cut"),
    ],
)
async def test_failures_of_the_provider_keep_their_meaning(
    proxy: StartProxy, given: Reply, kind: type[openai.APIStatusError], status: int, code: str
) -> None:
    """Before anything was streamed, a failure is a status; the provider's refusal of our key is not the client's."""
    async with proxy(upstream=[given, given]) as client, sdk_of(client) as sdk:
        for is_stream in (False, True):
            with pytest.raises(kind) as raised:
                await sdk.chat.completions.create(model="test", messages=MESSAGES, stream=is_stream)
            error = raised.value
            assert (error.status_code, error.code) == (status, code)
            assert isinstance(error.body, dict)
            assert error.body["llmproxy"]["request_id"] == error.response.headers["x-llmproxy-request-id"]
            assert error.response.headers.get("retry-after") == ("7" if status == 429 else None)


async def test_the_sdk_retries_when_it_is_told_to(proxy: StartProxy) -> None:
    """A 429 carries the provider's `retry-after`; the SDK waits for it and succeeds, and both tries have a row."""
    async with proxy(upstream=[fail(429, retry_after=1), reply("hi")]) as client, sdk_of(client, max_retries=1) as sdk:
        started = time.monotonic()
        answer = await sdk.chat.completions.create(model="test", messages=MESSAGES)
        assert answer.choices[0].message.content == "hi"
        assert time.monotonic() - started >= 1
        assert [row["http_status"] for row in (await client.rows()).requests] == [429, 200]


@pytest.mark.parametrize(
    "ending",
    [
        cut_after(3),
        cut_mid_event(3),
        end_without_done(3),
        error_event_after(3, message="The model fell over.", code="model_fell"),
        cut_after(3, stream(*"abcdef", include_role=False)),
    ],
)
async def test_a_stream_that_dies_never_looks_complete(proxy: StartProxy, ending: Reply) -> None:
    """After the first content an upstream's death is an error of the stream, whatever form it takes."""
    async with proxy(upstream=[ending]) as client, sdk_of(client) as sdk:
        events = await sdk.chat.completions.create(model="test", messages=MESSAGES, stream=True)
        received = [await anext(events) for _ in range(3)]
        assert all(event.choices[0].finish_reason is None for event in received)
        with pytest.raises(openai.APIError):
            await anext(events)
        [row] = (await client.rows()).requests
        assert (row["outcome"], row["http_status"]) == ("failed", 200)


async def test_the_clients_own_deadline_is_kept(proxy: StartProxy) -> None:
    """`x-llmproxy-timeout` ends an attempt that takes longer: a 504 before the stream, an error in it."""
    config = {"providers": {"upstream": {"timeouts": {"idle_seconds": 0.1}}}}
    async with proxy(upstream=[hang(), hang_after(2)], config=config) as client, sdk_of(client) as sdk:
        with pytest.raises(openai.InternalServerError) as raised:
            await sdk.chat.completions.create(
                model="test", messages=MESSAGES, extra_headers={"x-llmproxy-timeout": "0.1"}
            )
        assert (raised.value.status_code, raised.value.code) == (504, "upstream_total_timeout")
        with pytest.raises(openai.APIError) as broken:
            await texts_of(sdk)
        assert broken.value.code == "upstream_idle_timeout"


async def test_a_client_that_gives_up_ends_the_providers_work(proxy: StartProxy) -> None:
    """The SDK's own timeout closes the connection: the upstream is cancelled and the row says who left."""
    async with proxy(upstream=[hang()]) as client:
        async with sdk_of(client, timeout=0.2) as sdk:
            with pytest.raises(openai.APITimeoutError):
                await sdk.chat.completions.create(model="test", messages=MESSAGES)
        await client.upstream.wait_for(lambda: bool(client.upstream.cancelled))
        [row] = (await client.rows()).requests
        assert row["outcome"] == "disconnected"


async def test_the_demo_provider_fails_as_its_models_say(proxy: StartProxy) -> None:
    """An application can try out its error handling without a vendor."""
    async with proxy() as client, sdk_of(client) as sdk:
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(model="demo/fail-429", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(model="demo/fail-400", messages=MESSAGES)
        with pytest.raises(openai.InternalServerError):
            await sdk.chat.completions.create(model="demo/error-in-200", messages=MESSAGES)
        with pytest.raises(openai.APIError):
            await texts_of(sdk, "demo/cut-after-3")
