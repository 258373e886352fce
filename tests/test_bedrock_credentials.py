"""Signatures over requests to Bedrock, and the AWS credentials they are made with."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from multidict import CIMultiDict

from llmproxy.errors import ConfigError, Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.bedrock import Bedrock
from llmproxy.providers.bedrock.aws import fixed_credentials, signature_headers
from llmproxy.providers.bedrock.config import BedrockConfig
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import Clock, Reply, ScriptedUpstream, document
from llmproxy.testing.connections import wait_until
from tests.bedrock import (
    ARN,
    KEYS,
    NOVA,
    asked,
    bedrock,
    signature,
)
from tests.providers import header, services

VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own AWS set-up."""
    for name in (*VARIABLES, "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@asynccontextmanager
async def started(clock: Clock, **section: Any) -> AsyncIterator[Bedrock]:
    """A provider with AWS credentials at work."""
    tasks = BackgroundTasks(structlog.get_logger())
    given = services(clock)
    made = replace(given, clock=clock, log=structlog.get_logger(), tasks=tasks)
    settings = {"region": "eu-west-1", **section}
    provider = Bedrock("bedrock", BedrockConfig.model_validate(settings), made)
    await provider.startup()
    try:
        yield provider
    finally:
        await provider.shutdown()
        await tasks.cancel_all()


# Signatures


def test_aws_own_example_is_signed_as_aws_signs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vector `post-vanilla` of AWS's test suite for signature version 4."""
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: datetime(2015, 8, 30, 12, 36, tzinfo=UTC))
    made = signature_headers(
        "https://example.amazonaws.com/",
        (),
        b"",
        credentials=fixed_credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None),
        region="us-east-1",
        service="service",
    )
    assert dict(made) == {
        "x-amz-date": "20150830T123600Z",
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        "SignedHeaders=host;x-amz-date, "
        "Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    }


async def test_requests_are_signed_for_the_service_over_the_doubly_encoded_path() -> None:
    """Trap 40: the path of an ARN is encoded once on the wire and once more in what is signed."""
    async with started(Clock(), **KEYS, session_token="the-token") as provider:
        request = provider.prepare(asked(ARN), Target("bedrock", ARN), CIMultiDict({"user-agent": "a  b"}))
    authorization = header(request, "authorization") or ""
    host = "bedrock-runtime.eu-west-1.amazonaws.com"
    path = request.url.removeprefix(f"https://{host}")
    assert "%3A" in path
    assert "/eu-west-1/bedrock/aws4_request" in authorization
    assert "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token," in authorization
    assert authorization.endswith(f"Signature={signature(dict(request.headers), request.body, path, host)}")
    assert header(request, "x-amz-security-token") == "the-token"


# Credentials


async def test_credentials_come_from_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Variables first, then the files; a profile that is named is what counts."""
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id=FILE\naws_secret_access_key=s\n")
    (tmp_path / "config").write_text("[profile work]\naws_access_key_id=WORK\naws_secret_access_key=s\n")

    async def key_of(**section: Any) -> str:
        async with started(Clock(), **section) as provider:
            made = provider.prepare(asked(NOVA), Target("bedrock", NOVA), CIMultiDict())
            return (header(made, "authorization") or "").partition("Credential=")[2].partition("/")[0]

    assert await key_of() == "FILE"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "VARIABLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert await key_of() == "VARIABLE"
    assert await key_of(profile="work") == "WORK"
    assert await key_of(**KEYS) == KEYS["access_key_id"]


async def test_credentials_that_are_not_there_may_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without credentials is told what to set; once there are some, requests are signed."""
    clock = Clock()
    async with started(clock) as provider:
        with pytest.raises(UpstreamError, match="AWS_ACCESS_KEY_ID") as raised:
            provider.prepare(asked(NOVA), Target("bedrock", NOVA), CIMultiDict())
        assert (raised.value.failure, raised.value.error_code) == (Failure.AUTH, "upstream_auth_error")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "LATER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        await clock.advance(60)
        assert "Credential=LATER" in await signed_by(provider, "LATER")


async def signed_by(provider: Bedrock, key: str) -> str:
    """The authorization of a request, once it is this key's; waits for it up to five seconds."""
    found: list[str] = []

    def is_signed() -> bool:
        with suppress(UpstreamError):
            made = provider.prepare(asked(NOVA), Target("bedrock", NOVA), CIMultiDict())
            found.append(header(made, "authorization") or "")
        return bool(found) and f"Credential={key}/" in found[-1]

    await wait_until(is_signed, 5)
    return found[-1]


async def test_credentials_are_renewed_before_they_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's role lends credentials for a while; others are fetched early, and no request waits for that."""

    def lent(key: str, minutes: int) -> Reply:
        expiration = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return document({"AccessKeyId": key, "SecretAccessKey": "s", "Token": f"of {key}", "Expiration": expiration})

    # With less than a quarter of an hour to go, the next ones are fetched.
    replies = [lent("FIRST", 5), lent("SECOND", 14), lent("THIRD", 60)]
    async with ScriptedUpstream(replies) as metadata:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata.origin}/role")
        clock = Clock()
        async with started(clock) as provider:
            await signed_by(provider, "SECOND")
            await clock.advance(60)
            await signed_by(provider, "THIRD")
            made = provider.prepare(asked(NOVA), Target("bedrock", NOVA), CIMultiDict())
            assert header(made, "x-amz-security-token") == "of THIRD"
            await clock.advance(600)
        assert len(metadata.requests) == 3


async def test_credentials_that_cannot_be_renewed_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever goes wrong with a renewal, requests go on with what there is."""
    process = tmp_path / "lend"
    expiration = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = {"Version": 1, "AccessKeyId": "LENT", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": expiration}
    process.write_text(f"#!/bin/sh\necho '{json.dumps(given)}'\n")
    process.chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {process}\n")
    clock = Clock()
    with structlog.testing.capture_logs() as logs:
        async with started(clock) as provider:
            await signed_by(provider, "LENT")
            process.write_text("#!/bin/sh\nexit 1\n")
            await clock.advance(60)
            await wait_until(lambda: "aws_credentials_not_renewed" in [each["event"] for each in logs], 5)
            await signed_by(provider, "LENT")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without botocore an API key still does; AWS credentials say what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bedrock().prepare(asked(NOVA), Target("bedrock", NOVA), CIMultiDict()).url
    with pytest.raises(ConfigError, match=r"llmproxy\[bedrock\]"):
        bedrock(api_key=None)
