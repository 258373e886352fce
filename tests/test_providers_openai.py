"""The openai kind: the client's bytes, the gateway's credentials, and no header that has no business there."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import SecretStr, ValidationError

from llmproxy.errors import Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.openai import OpenAI, OpenAIConfig, OpenAIVendorConfig
from llmproxy.request import Operation, Request
from llmproxy.services import UpstreamRequest
from tests.providers import header, request, services

KEY = "sk-test-1234567890"
TARGET = Target("openai", "gpt-4o")


def prepare(
    client_headers: dict[str, str] | None = None, asked: Request | None = None, **section: Any
) -> UpstreamRequest:
    """What the provider would send for a section of the configuration."""
    provider = OpenAI("openai", OpenAIVendorConfig(**section), services())
    return provider.prepare(asked or request(), TARGET, CIMultiDict(client_headers or {}))


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        (Operation.CHAT, "/chat/completions"),
        (Operation.TEXT_COMPLETION, "/completions"),
        (Operation.EMBEDDINGS, "/embeddings"),
    ],
)
def test_each_operation_has_its_path(operation: Operation, path: str) -> None:
    """The URL is the base and the operation's path, whether or not the base ends in a slash."""
    asked = request({"model": "m"}, operation)
    assert prepare(asked=asked, api_key=KEY).url == f"https://api.openai.com/v1{path}"
    assert prepare(asked=asked, base_url="http://127.0.0.1:1/v1/").url == f"http://127.0.0.1:1/v1{path}"


def test_an_unedited_body_keeps_every_byte() -> None:
    """What the client wrote goes out as it came: spacing, number spelling, escapes and unknown members."""
    body = b'{ "model":"gpt-4o" ,"temperature":1.0e0, "x_new": {"b":1,"b":2}, "messages":[],"s":"\\u00e9"}\n'
    asked = Request(Operation.CHAT, body, orjson.loads(body))
    assert prepare(asked=asked, api_key=KEY).body == body


def test_an_edited_body_changes_in_that_member_alone() -> None:
    """An edit made on the way replaces its own member and no other byte."""
    body = b'{ "model":"alias" ,"temperature":1.0e0, "messages":[]}'
    asked = Request(Operation.CHAT, body, orjson.loads(body))
    asked.set("model", "gpt-4o")
    assert prepare(asked=asked, api_key=KEY).body == body.replace(b"alias", b"gpt-4o")


def test_the_headers_are_the_gateways_own() -> None:
    """A request carries the configured key and says what it sends and accepts."""
    prepared = prepare(api_key=KEY)
    assert prepared.method == "POST"
    assert dict(prepared.headers) == {
        "accept": "application/json",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {KEY}",
    }


def test_a_stream_is_asked_for_as_one() -> None:
    """A streamed request accepts server-sent events."""
    assert header(prepare(asked=request({"model": "m", "stream": True}), api_key=KEY), "accept") == "text/event-stream"


def test_organization_and_project_travel_as_headers() -> None:
    """The section's organization and project become OpenAI's headers."""
    prepared = prepare(api_key=KEY, organization="org-1", project="proj_2")
    assert header(prepared, "openai-organization") == "org-1"
    assert header(prepared, "openai-project") == "proj_2"


def test_only_harmless_client_headers_travel_on() -> None:
    """Of the client's headers only those on the list go out, whatever their case; credentials never do."""
    client = {
        "User-Agent": "app/1",
        "Idempotency-Key": "k1",
        "OpenAI-Beta": "assistants=v2",
        "Authorization": "Bearer client-key",
        "Cookie": "a=b",
        "api-key": "client-key",
        "x-api-key": "client-key",
        "X-Forwarded-For": "10.0.0.1",
        "x-llmproxy-user": "alice",
        "OpenAI-Organization": "org-of-the-client",
        "Host": "gateway",
        "Content-Length": "1",
        "X-Custom": "no",
    }
    prepared = prepare(client, api_key=KEY)
    assert header(prepared, "user-agent") == "app/1"
    assert header(prepared, "idempotency-key") == "k1"
    assert header(prepared, "openai-beta") == "assistants=v2"
    assert header(prepared, "authorization") == f"Bearer {KEY}"
    assert len(prepared.headers) == 7


def test_the_operator_may_forward_more() -> None:
    """`forward_headers` lets a further header of the client's through."""
    assert header(prepare({"X-Trace": "t1"}, api_key=KEY, forward_headers=["X-Trace"]), "x-trace") == "t1"


def test_configured_headers_win() -> None:
    """A header of the section stands in place of the client's and of the gateway's own, once."""
    prepared = prepare(
        {"user-agent": "app/1"}, api_key=KEY, headers={"User-Agent": "fixed", "Authorization": "Custom x"}
    )
    assert header(prepared, "user-agent") == "fixed"
    assert header(prepared, "authorization") == "Custom x"


@pytest.mark.parametrize(
    "name",
    [
        "Authorization", "authorization", "Proxy-Authorization", "Cookie", "api-key", "x-api-key", "X-Goog-Api-Key",
        "x-amz-security-token", "x-forwarded-for", "X-LLMProxy-Tags", "Connection", "Transfer-Encoding", "Host",
        "Content-Length", "TE", "Upgrade", "bad name", "",
    ],
)  # fmt: skip
def test_forwarding_a_credential_is_a_mistake(name: str) -> None:
    """A configuration that would hand on credentials, framing or the gateway's own headers is refused."""
    with pytest.raises(ValidationError, match="cannot be forwarded"):
        OpenAIConfig(forward_headers=(name,))


@pytest.mark.parametrize(
    "section",
    [
        {"headers": {"x-a": "b\r\nx-evil: 1"}},
        {"headers": {"x a": "b"}},
        {"headers": {"Content-Length": "3"}},
        {"api_key": "sk-1\nx-evil: 1"},
        {"organization": "org\r\nx-evil: 1"},
    ],
)
def test_a_configured_value_cannot_start_another_header(section: dict[str, Any]) -> None:
    """Names that are no names and values with line breaks are mistakes in the configuration."""
    with pytest.raises(ValidationError):
        OpenAIVendorConfig(**section)


def test_a_mistake_in_a_key_does_not_show_the_key() -> None:
    """What is said about a wrong key does not hold it."""
    with pytest.raises(ValidationError) as caught:
        OpenAIVendorConfig(api_key=SecretStr("sk-secret\nx"))
    assert all("sk-secret" not in mistake["msg"] for mistake in caught.value.errors())


@given(st.text(max_size=40))
def test_no_client_value_can_start_another_header(value: str) -> None:
    """Whatever a client sends as user agent, no line break or NUL reaches the provider."""
    sent = header(prepare({"user-agent": value}, api_key=KEY), "user-agent")
    assert sent is None or not set(sent) & set("\r\n\0")


def test_a_key_read_from_a_file_may_end_in_a_line_break() -> None:
    """White space around a key is not part of it."""
    assert header(prepare(api_key=f" {KEY}\n"), "authorization") == f"Bearer {KEY}"


@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key_is_said_plainly(key: str | None) -> None:
    """Without a key the vendor is not asked, and the error says where to put one."""
    with pytest.raises(UpstreamError) as caught:
        prepare(api_key=key)
    assert (
        caught.value.message == "The provider 'openai' has no api_key; set OPENAI_API_KEY or providers.openai.api_key."
    )
    assert (caught.value.error_code, caught.value.failure) == ("upstream_auth_error", Failure.AUTH)


def test_a_server_of_ones_own_needs_no_key() -> None:
    """With another base URL no key is asked for, and none is sent."""
    assert header(prepare(base_url="http://127.0.0.1:8000/v1"), "authorization") is None


def test_static_headers_are_not_rebuilt() -> None:
    """Two requests without client headers share the very same header fields."""
    provider = OpenAI("openai", OpenAIVendorConfig(api_key=SecretStr(KEY)), services())
    first, second = (provider.prepare(request(), TARGET, CIMultiDict()) for _ in range(2))
    assert first.headers is second.headers
