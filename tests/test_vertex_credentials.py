"""Google Cloud's tokens: got from real token endpoints over real sockets, and renewed before they run out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from multidict import CIMultiDict

from llmproxy.attempt import Attempts
from llmproxy.config import Timeouts
from llmproxy.errors import Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.vertex import Vertex, VertexConfig
from llmproxy.services import Clock as AnyClock
from llmproxy.services import SystemClock
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import Clock, Reply, ScriptedUpstream, fail, hang, make_exchange
from llmproxy.testing import document as json_reply
from llmproxy.upstream import HTTPTransport, UpstreamHTTP
from tests.gemini import USER, candidate, chat, response
from tests.providers import header, services

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
MODEL = "gemini-2.5-pro"


def token(value: str, seconds: int = 3600) -> Reply:
    """A token endpoint's answer."""
    return json_reply({"access_token": value, "expires_in": seconds, "token_type": "Bearer"})


def account(upstream: ScriptedUpstream) -> str:
    """A service account's key whose tokens come from `upstream`."""
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "acme-1",
            "private_key_id": "k1",
            "private_key": PRIVATE,
            "client_email": "gateway@acme-1.iam.gserviceaccount.com",
            "token_uri": f"{upstream.origin}/token",
        }
    )


@asynccontextmanager
async def started(clock: AnyClock | None = None, **section: Any) -> AsyncIterator[Vertex]:
    """A provider that has been started, with the gateway's own HTTP client."""
    transport = HTTPTransport()
    tasks = BackgroundTasks(structlog.get_logger())
    given = services(clock)
    given = replace(given, http=UpstreamHTTP(transport), tasks=tasks, log=structlog.get_logger())
    provider = Vertex("vertex", VertexConfig.model_validate({"region": "europe-west4", **section}), given)
    try:
        await provider.startup()
        yield provider
    finally:
        await provider.shutdown()
        await tasks.cancel_all()
        await transport.close()


def bearer(provider: Vertex) -> str | None:
    """The token that a request carries now."""
    asked = chat({"model": MODEL, "messages": [USER]})
    return header(provider.prepare(asked, Target("vertex", MODEL), CIMultiDict()), "authorization")


async def test_a_service_accounts_key_becomes_a_token() -> None:
    """A signed assertion goes to the token endpoint, once; the project is the account's."""
    async with ScriptedUpstream([token("ya29.one")]) as upstream, started(credentials_json=account(upstream)) as vertex:
        assert [bearer(vertex) for _ in range(3)] == ["Bearer ya29.one"] * 3
        asked = chat({"model": MODEL, "messages": [USER]})
        assert (
            "/projects/acme-1/locations/europe-west4/"
            in vertex.prepare(asked, Target("vertex", MODEL), CIMultiDict()).url
        )
        [sent] = upstream.requests
        form = parse_qs(sent.body.decode())
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        claims = jwt.decode(form["assertion"][0], certs=PUBLIC, audience="https://oauth2.googleapis.com/token")
        assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
        assert claims["iss"] == "gateway@acme-1.iam.gserviceaccount.com"


async def test_the_key_may_be_in_a_file(tmp_path: Path) -> None:
    """`credentials_file` names it; a project of the section's own wins over the account's."""
    async with ScriptedUpstream([token("ya29.one")]) as upstream:
        file = tmp_path / "key.json"
        file.write_text(account(upstream))
        async with started(credentials_file=str(file), project="other") as vertex:
            assert bearer(vertex) == "Bearer ya29.one"
            asked = chat({"model": MODEL, "messages": [USER]})
            assert "/projects/other/" in vertex.prepare(asked, Target("vertex", MODEL), CIMultiDict()).url


async def test_the_machines_own_credentials_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key in the section, GOOGLE_APPLICATION_CREDENTIALS is followed as everywhere else."""
    async with ScriptedUpstream([token("ya29.adc")]) as upstream:
        file = tmp_path / "adc.json"
        file.write_text(account(upstream))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        async with started() as vertex:
            assert bearer(vertex) == "Bearer ya29.adc"


async def test_a_metadata_server_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Google's machines token and project come from the metadata server."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    async with ScriptedUpstream(default=metadata_server) as upstream:
        address = upstream.origin.removeprefix("http://")
        for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
            monkeypatch.setenv(name, address)
        async with started() as vertex:
            assert bearer(vertex) == "Bearer ya29.machine"
            asked = chat({"model": MODEL, "messages": [USER]})
            assert "/projects/machine-1/" in vertex.prepare(asked, Target("vertex", MODEL), CIMultiDict()).url
        assert all(sent.headers.get("metadata-flavor") == "Google" for sent in upstream.requests)


def metadata_server(request: Any) -> Reply:
    """Answers as the metadata server does."""
    flavor = (("metadata-flavor", "Google"),)
    if request.path.endswith("/token"):
        return json_reply({"access_token": "ya29.machine", "expires_in": 3600}, headers=flavor)
    if request.path.endswith("/project-id"):
        return json_reply("machine-1", headers=flavor)
    known = {"default": {"email": "a@b", "scopes": [], "aliases": ["default"]}, "email": "a@b", "scopes": []}
    return json_reply(known if request.query.get("recursive") else {}, headers=flavor)


async def test_a_token_is_renewed_before_it_runs_out() -> None:
    """The new one is got in the background and early; until it is there, requests carry the old one."""
    clock = Clock(datetime.now(UTC))
    async with (
        ScriptedUpstream([token("one"), token("two", seconds=36_000)]) as upstream,
        started(clock, credentials_json=account(upstream)) as vertex,
    ):
        assert bearer(vertex) == "Bearer one"
        await clock.advance(3000)
        assert bearer(vertex) == "Bearer one"
        assert len(upstream.requests) == 1
        await clock.advance(400)
        await upstream.wait_for(lambda: bearer(vertex) == "Bearer two")
        assert len(upstream.requests) == 2


async def test_a_token_endpoint_that_fails_is_asked_again() -> None:
    """The old token serves until it runs out; then requests say so, and the next good answer ends it."""
    clock = Clock(datetime.now(UTC))
    async with (
        ScriptedUpstream([token("one", seconds=300), *[fail(400)] * 30]) as upstream,
        started(clock, credentials_json=account(upstream)) as vertex,
    ):
        await clock.advance(200)
        assert bearer(vertex) == "Bearer one"
        await clock.advance(150)
        with pytest.raises(UpstreamError, match="no valid access token") as caught:
            bearer(vertex)
        assert (caught.value.failure, caught.value.error_code) == (Failure.AUTH, "upstream_auth_error")
        upstream.replies.clear()
        upstream.default = token("two")
        await upstream.wait_for(lambda: clock.sleepers > 0)
        await clock.advance(30)
        await upstream.wait_for(lambda: vertex._token._token is not None and vertex._token._token.value == "two")


async def test_an_endpoint_that_cannot_be_reached_does_not_stop_the_start() -> None:
    """The gateway starts all the same, and says what is missing when it is asked."""
    async with ScriptedUpstream() as upstream:
        key = account(upstream)
    async with started(credentials_json=key) as vertex:
        with pytest.raises(UpstreamError, match="no valid access token"):
            bearer(vertex)


async def test_a_stop_does_not_wait_for_a_silent_endpoint() -> None:
    """A token that is still awaited is given up when the gateway stops."""
    async with ScriptedUpstream([hang()]) as upstream:
        transport = HTTPTransport()
        tasks = BackgroundTasks(structlog.get_logger())
        given = replace(services(), http=UpstreamHTTP(transport), tasks=tasks)
        section = VertexConfig.model_validate({"credentials_json": account(upstream)})
        vertex = Vertex("vertex", section, given)
        waiting = tasks.start("start", vertex.startup())
        await upstream.wait_for(lambda: bool(upstream.requests))
        await vertex.shutdown()
        await tasks.cancel_all()
        assert waiting.done()
        await transport.close()


async def test_an_api_key_needs_no_token() -> None:
    """Nothing is fetched for the express mode."""
    async with started(api_key="key-1") as vertex:
        assert bearer(vertex) is None


async def test_a_token_carries_a_whole_exchange() -> None:
    """Token and answer over real sockets, by the gateway's own client and engine."""
    whole = response(candidates=[candidate({"text": "Hello"})], usage_metadata={"prompt_token_count": 3})
    async with (
        ScriptedUpstream([token("ya29.one")]) as endpoint,
        ScriptedUpstream([json_reply(whole)]) as upstream,
        started(credentials_json=account(endpoint), base_url=f"{upstream.origin}/v1") as vertex,
    ):
        transport = HTTPTransport()
        exchange = make_exchange()
        exchange.request = chat({"model": MODEL, "messages": [USER]})
        attempts = Attempts({("vertex", None): vertex}, transport, Timeouts(), SystemClock())
        attempt = attempts.begin(exchange, exchange.request, Target("vertex", MODEL))
        answer = await attempts.answer(exchange, attempt)
        await transport.close()
        [sent] = upstream.requests
        assert sent.headers.get("authorization") == "Bearer ya29.one"
        assert sent.path == (
            f"/v1/projects/acme-1/locations/europe-west4/publishers/google/models/{MODEL}:generateContent"
        )
        assert b"Hello" in answer.body


def test_no_secret_is_shown() -> None:
    """Neither the section nor the provider shows the key when it is printed."""
    section = VertexConfig.model_validate(
        {"credentials_json": json.dumps({"type": "service_account", "private_key": PRIVATE, "project_id": "p"})}
    )
    assert "PRIVATE KEY" not in repr(section)
    assert "PRIVATE KEY" not in repr(Vertex("vertex", section, services()).__dict__)
