"""What OpenAI's own models refuse on chat completions never reaches them, and everything else keeps its bytes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import SecretStr

from llmproxy.exchange import Target
from llmproxy.providers.azure import Azure, AzureConfig
from llmproxy.providers.openai import OpenAI, OpenAIVendorConfig
from llmproxy.request import Operation, Request
from llmproxy.services import UpstreamRequest
from tests.providers import services

HOSTS = {
    "openai": OpenAI("openai", OpenAIVendorConfig(api_key=SecretStr("sk-test-1234567890")), services()),
    "azure": Azure(
        "azure",
        AzureConfig(
            endpoint="https://acme.openai.azure.com",
            api_key=SecretStr("key-1234567890"),
            base_models={"ours": "o4-mini", "theirs": "gpt-4o"},
        ),
        services(),
    ),
}
UNKNOWN = ("cache_control", "extra_content", "images", "reasoning_content", "thinking_blocks")
MARK = {"type": "ephemeral"}
SIGNED = [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]


def prepare(body: bytes, kind: str = "openai", operation: Operation = Operation.CHAT) -> UpstreamRequest:
    """What would be sent for a client's body."""
    request = Request(operation, body, orjson.loads(body))
    return HOSTS[kind].prepare(request, Target(kind, request.model), CIMultiDict())


def begun_elsewhere(model: str = "gpt-4o") -> dict[str, Any]:
    """A conversation that began with Claude and went on with Gemini."""
    calls = [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "look", "arguments": '{"cache_control": 1.0}'},
            "extra_content": {"google": {"thought_signature": "c2ln"}},
        }
    ]
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": MARK}]},
            {"role": "user", "content": "Where am I?", "cache_control": MARK},
            {"role": "assistant", "content": "", "reasoning_content": "Hm.", "thinking_blocks": SIGNED},
            {"role": "assistant", "content": None, "tool_calls": calls, "extra_content": {}},
            {"role": "tool", "tool_call_id": "call_1", "content": "Here."},
        ],
        "tools": [
            {
                "type": "function",
                "cache_control": MARK,
                "function": {"name": "look", "parameters": {"properties": {"cache_control": {"type": "number"}}}},
            }
        ],
    }


@pytest.mark.parametrize(("kind", "model"), [("openai", "gpt-4o"), ("azure", "theirs")])
def test_what_other_vendors_left_in_a_conversation_is_dropped_and_named(kind: str, model: str) -> None:
    """Marks, reasoning and signatures are taken out wherever they stand; arguments and schemas are the client's own."""
    prepared = prepare(orjson.dumps(begun_elsewhere(model)), kind)
    sent = orjson.loads(prepared.body)
    assert set(prepared.dropped) == {
        "messages.cache_control",
        "messages.reasoning_content",
        "messages.thinking_blocks",
        "messages.extra_content",
        "tools.cache_control",
    }
    assert sent["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Where am I?"},
        {"role": "assistant", "content": ""},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"cache_control": 1.0}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Here."},
    ]
    assert sent["tools"] == [{"type": "function", "function": begun_elsewhere()["tools"][0]["function"]}]


def test_only_what_holds_something_unknown_is_written_anew() -> None:
    """Marked tools are no reason to touch the messages, nor anything else."""
    body = (
        b'{ "model":"gpt-4o" ,"temperature":1.0e0, "messages": [{"role":"user", "content":"\\u00e9"}],'
        b'"tools":[{"type":"function","function":{"name":"f"},"cache_control":{"type":"ephemeral"}}]}'
    )
    prepared = prepare(body)
    assert prepared.body == body.replace(
        body[body.index(b'[{"type"') : -1], b'[{"type":"function","function":{"name":"f"}}]'
    )
    assert prepared.dropped == ("tools.cache_control",)


def test_content_however_deep_breaks_nothing() -> None:
    """Parts within parts within parts are nobody's, and looked at no further."""
    deep = b'{"content":[' * 120 + b'{"type":"text"}' + b"]}" * 120
    body = b'{"model":"gpt-4o","messages":[{"role":"user","cache_control":null,"content":[' + deep + b"]}]}"
    prepared = prepare(body)
    assert prepared.dropped == ("messages.cache_control",)
    assert deep in prepared.body


MEMBERS = st.sampled_from([*UNKNOWN, "role", "content", "tool_calls", "name", "x_new"])
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from(["a", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4),
    max_leaves=12,
)


@given(messages=VALUES, tools=VALUES)
def test_no_conversation_breaks_it_and_a_clean_one_keeps_its_bytes(messages: object, tools: object) -> None:
    """Whatever a client sends as messages and tools is prepared; where nothing is dropped, every byte stays."""
    body = orjson.dumps({"model": "gpt-4o", "messages": messages, "tools": tools}, option=orjson.OPT_INDENT_2)
    prepared = prepare(body)
    assert (prepared.body == body) is (not prepared.dropped)
    again = prepare(prepared.body)
    assert again.dropped == ()
    assert again.body == prepared.body


@pytest.mark.parametrize(
    ("kind", "model", "name"),
    [
        ("openai", "o1", "max_completion_tokens"),
        ("openai", "o3-mini", "max_completion_tokens"),
        ("openai", "o4-mini-2025-04-16", "max_completion_tokens"),
        ("openai", "gpt-5-nano", "max_completion_tokens"),
        ("openai", "ft:o4-mini:acme", "max_completion_tokens"),
        ("openai", "gpt-4o", "max_tokens"),
        ("openai", "gpt-4.1-mini", "max_tokens"),
        ("openai", "llama-4", "max_tokens"),
        ("azure", "ours", "max_completion_tokens"),
        ("azure", "theirs", "max_tokens"),
        ("azure", "o4-like", "max_completion_tokens"),
    ],
)
def test_the_limit_goes_by_the_name_a_model_knows(kind: str, model: str, name: str) -> None:
    """Models that reason refuse `max_tokens`: a new model name alone must not end in a 400."""
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7})
    prepared = prepare(body, kind)
    assert orjson.loads(prepared.body) == {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        name: 7,
    }
    assert prepared.dropped == ()


def test_of_two_limits_the_new_one_wins() -> None:
    """Both names together are refused, so that the old one is left out, and said to be."""
    prepared = prepare(b'{"model":"o3","messages":[],"max_tokens":9,"max_completion_tokens":5}')
    assert orjson.loads(prepared.body) == {"model": "o3", "messages": [], "max_completion_tokens": 5}
    assert prepared.dropped == ("max_tokens",)


def test_legacy_completions_keep_their_bytes() -> None:
    """Only chat completions have the new name for the limit."""
    body = b'{"model":"gpt-5-instruct", "prompt":"Hi", "max_tokens": 7}'
    assert prepare(body, operation=Operation.TEXT_COMPLETION).body == body
