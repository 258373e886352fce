"""Chat completions requests in the Messages format: thinking, limits, and all that is no conversation."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import BadRequest
from llmproxy.providers.anthropic.messages_format import merged_betas
from llmproxy.providers.anthropic.rules import load_models
from tests.anthropic_messages import (
    AS_SCHEMA,
    BUDGET,
    NEW,
    NEWEST,
    OLD,
    SETTINGS,
    USER,
    WEATHER,
    messages_format,
    native,
    refused,
    translate,
)

# Thinking that is asked for


@pytest.mark.parametrize(
    ("model", "asked", "thinking", "effort"),
    [
        ("claude-3-5-haiku-latest", "high", None, None),
        (OLD, "none", None, None),
        (BUDGET, "minimal", {"type": "enabled", "budget_tokens": 1024}, None),
        (BUDGET, "high", {"type": "enabled", "budget_tokens": 16_384}, None),
        ("claude-sonnet-4-6", "minimal", {"type": "adaptive", "display": "summarized"}, "low"),
        ("claude-sonnet-4-6", "xhigh", {"type": "adaptive", "display": "summarized"}, "max"),
        (NEW, None, None, None),
        (NEW, "none", None, None),
        (NEW, "xhigh", {"type": "adaptive", "display": "summarized"}, "xhigh"),
        (NEW, "max", {"type": "adaptive", "display": "summarized"}, "max"),
        ("claude-opus-5", "none", {"type": "disabled"}, None),
        ("claude-haiku-5-5", "none", {"type": "disabled"}, None),
        ("claude-sonnet-5-5", "none", {"type": "between_tools"}, None),
        (NEWEST, "medium", {"type": "adaptive", "display": "summarized"}, "medium"),
    ],
)
def test_reasoning_effort_in_each_models_own_way(
    model: str, asked: str | None, thinking: dict[str, Any] | None, effort: str | None
) -> None:
    """Budgets for older models, effort for newer ones, off where off is possible."""
    body = native(model, reasoning_effort=asked)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize("model", [NEWEST, "claude-opus-5-5", "claude-mythos-5"])
def test_models_that_always_think_say_so(model: str) -> None:
    """No thinking at all is refused where there is no such thing, unless the operator has it left out."""
    assert refused(model, reasoning_effort="none").param == "reasoning_effort"
    assert "thinking" not in native(model, reasoning_effort="none", drop_params=True)


@pytest.mark.parametrize("asked", ["extreme", 3, ["low"]])
def test_unknown_efforts_are_refused(asked: object) -> None:
    """Only the known words are efforts."""
    assert refused(reasoning_effort=asked).param == "reasoning_effort"


@SETTINGS
@given(st.integers(1, 70_000), st.sampled_from(["minimal", "low", "medium", "high", "xhigh", "max"]))
def test_a_budget_stays_below_the_limit(max_tokens: int, effort: str) -> None:
    """Trap 10: the client's limit is never raised, and the budget is at least 1024 and below it, or not there."""
    body = translate(BUDGET, max_tokens=max_tokens, reasoning_effort=effort).body
    assert body["max_tokens"] == max_tokens
    assert max_tokens <= 1024 if "thinking" not in body else 1024 <= body["thinking"]["budget_tokens"] < max_tokens


def test_native_thinking_is_taken_as_it_is() -> None:
    """A client that writes Claude's own `thinking` knows what it does."""
    thinking = {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}
    assert native(BUDGET, thinking=thinking, reasoning_effort="high")["thinking"] == thinking
    assert translate(BUDGET, thinking={"type": "enabled"}).body["thinking"] == {"type": "enabled"}


# Limits and sampling


@pytest.mark.parametrize(
    ("model", "limit"), [(NEW, 128_000), (BUDGET, 64_000), ("claude-3-haiku-20240307", 4096), ("claude-opus-4-1", 8192)]
)
def test_a_limit_is_always_sent(model: str, limit: int) -> None:
    """Trap 10: `max_tokens` is mandatory, so a request without gets the model's own."""
    assert native(model)["max_tokens"] == limit


def test_the_operators_default_limit() -> None:
    """A configured default holds for requests that set no limit, as far as the model goes."""
    for wanted, sent in ((1000, 1000), (10**6, 64_000)):
        prepared = messages_format(default_max_tokens=wanted).request({"messages": [USER]}, BUDGET)
        assert prepared.body["max_tokens"] == sent


def test_max_completion_tokens_wins() -> None:
    """Trap 11: of both limits the newer name counts."""
    assert native(max_completion_tokens=7, max_tokens=9)["max_tokens"] == 7


@pytest.mark.parametrize("model", [NEW, NEWEST, "claude-opus-5", "us.anthropic.claude-opus-4-7-v1:0", "claude-next"])
def test_newer_models_get_no_sampling_parameters(model: str) -> None:
    """Trap 9: not even at their defaults; they are named as left out."""
    prepared = translate(model, temperature=1.0, top_p=1, top_k=40)
    assert prepared.version == "2026-10-21"
    assert not {"temperature", "top_p", "top_k"} & set(prepared.body)
    assert prepared.dropped == ("temperature", "top_p", "top_k")


def test_older_models_are_sampled_under_the_older_version() -> None:
    """Sampling is kept within Claude's scale, under the version that knows it."""
    prepared = translate(OLD, temperature=1.7, top_p=0.9, top_k=40)
    assert prepared.version == "2023-06-01"
    assert {name: prepared.body[name] for name in ("temperature", "top_p", "top_k")} == {
        "temperature": 1,
        "top_p": 0.9,
        "top_k": 40,
    }


def test_one_way_of_sampling_at_a_time() -> None:
    """Models that refuse temperature together with top_p get the temperature."""
    prepared = translate(BUDGET, temperature=0.5, top_p=0.9)
    assert "top_p" not in prepared.body
    assert prepared.dropped == ("top_p",)


def test_thinking_and_sampling_exclude_each_other() -> None:
    """A model that thinks with a budget takes no temperature."""
    prepared = translate(BUDGET, temperature=0.5, reasoning_effort="low")
    assert "temperature" not in prepared.body
    assert prepared.dropped == ("temperature",)


def test_stop_sequences_of_white_space_are_left_out() -> None:
    """They would be refused."""
    prepared = translate(stop=["\n", "END"])
    assert prepared.body["stop_sequences"] == ["END"]
    assert prepared.dropped == ("stop",)


@pytest.mark.parametrize(
    ("model", "max_tokens", "must_stream"),
    [(NEW, 21_333, False), (NEW, 21_334, True), ("claude-opus-4-1", 8192, False), ("claude-opus-4-1", 8193, True)],
)
def test_long_answers_are_streamed(model: str, max_tokens: int, *, must_stream: bool) -> None:
    """What may take longer than a connection lives is asked for as a stream."""
    assert translate(model, max_tokens=max_tokens).must_stream is must_stream


# Everything else


def test_the_user_is_hashed() -> None:
    """The vendor learns a stable identifier and nothing of the person; safety_identifier wins."""
    body = native(user="alice@example.com", safety_identifier="s-1")
    assert body["metadata"] == {"user_id": hashlib.sha256(b"s-1").hexdigest()}
    assert "alice" not in orjson.dumps(native(user="alice@example.com")).decode()


@pytest.mark.parametrize(
    ("tier", "sent", "dropped"),
    [
        ("auto", "auto", ()),
        ("default", "standard_only", ()),
        ("priority", "auto", ()),
        ("flex", None, ("service_tier",)),
        (["x"], None, ("service_tier",)),
    ],
)
def test_service_tiers(tier: object, sent: object, dropped: tuple[str, ...]) -> None:
    """Tiers that exist are named in the vendor's words, others are left out."""
    prepared = translate(service_tier=tier)
    assert prepared.body.get("service_tier") == sent
    assert prepared.dropped == dropped


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["text", "audio"]),
    ],
)
def test_what_changes_the_answer_is_refused(name: str, value: Any) -> None:
    """A request that cannot be met is refused by name, or met in part where the operator wants it."""
    error = refused(**{name: value})
    assert (error.param, error.error_code) == (name, "unsupported_parameter")
    assert name in translate(drop_params=True, **{name: value}).dropped


def test_hints_are_left_out_and_named() -> None:
    """What would only have been nice does not fail a request, and what asks for nothing is not worth a word."""
    hints: dict[str, Any] = {
        "seed": 1,
        "logit_bias": {"1": 2},
        "presence_penalty": 0.5,
        "store": True,
        "verbosity": "low",
        "x": 1,
    }
    nothing: dict[str, Any] = {
        "n": 1,
        "logprobs": False,
        "frequency_penalty": 0,
        "metadata": None,
        "modalities": ["text"],
    }
    assert translate(**hints, **nothing, stream_options={}).dropped == tuple(hints)


def test_native_members_pass() -> None:
    """Members of the Messages format that a client adds arrive as they are."""
    assert native(inference_geo="eu", speed="fast")["inference_geo"] == "eu"


def test_the_same_request_has_the_same_bytes() -> None:
    """Prompt caches and bound thinking ask for bytes that do not change from call to call."""
    said = [{"role": "system", "content": "S"}, USER]
    bodies = {
        translate(messages=said, tools=[WEATHER], response_format=AS_SCHEMA, user="u").encode(model=NEW)
        for _ in range(3)
    }
    assert len(bodies) == 1


def test_betas_are_merged() -> None:
    """Trap 12: the client's come first, each once, in order."""
    assert merged_betas("b, a,b,", ("c", "a")) == ("b", "a", "c")
    assert merged_betas(None, ()) == ()


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("claude-sonnet-4@20250514", "claude-sonnet-4-20250514"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
        ("arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-opus-4-1-20250805-v1:0", "claude-opus-4-1"),
        ("claude-opus-5-5-20261001", "claude-opus-5-5"),
        ("claude-opus-5-20260801", "claude-opus-5"),
        ("my-deployment", "claude-of-the-future"),
    ],
)
def test_rules_hold_under_every_hosts_name(name: str, same_as: str) -> None:
    """What a host puts around a model's name does not change what the model takes."""
    table = load_models()
    assert table.rules(name) == table.rules(same_as)


@pytest.mark.parametrize(
    ("model", "version"),
    [("claude-opus-4-6", "2023-06-01"), ("claude-opus-4-7", "2026-10-21"), ("claude-haiku-4-5", "2023-06-01")],
)
def test_the_version_follows_the_model(model: str, version: str) -> None:
    """Models that may be sampled are asked under the version that knows sampling."""
    assert translate(model).version == version


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = [
    *("tools", "functions", "tool_choice", "function_call", "response_format", "stop", "n", "temperature", "top_p"),
    *("max_tokens", "reasoning_effort", "thinking", "output_config", "user", "service_tier", "modalities", "audio"),
    *("web_search_options", "parallel_tool_calls", "cache_control", "logprobs", "metadata", "messages"),
]
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "file", "input_audio", "refusal"]) | JSON},
    optional={"text": JSON, "image_url": JSON, "file": JSON, "cache_control": JSON},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function"]) | JSON},
    optional={
        "content": JSON | st.lists(PARTS, max_size=3),
        "tool_calls": JSON | st.lists(st.fixed_dictionaries({"id": JSON, "function": JSON}), max_size=2),
        "tool_call_id": JSON,
        "thinking_blocks": JSON,
        "name": JSON,
        "audio": JSON,
        "function_call": JSON,
    },
)


@SETTINGS
@given(
    st.dictionaries(st.sampled_from(MEMBERS), JSON, max_size=4),
    st.lists(MESSAGES, max_size=4) | JSON,
    st.sampled_from([NEW, OLD, BUDGET, NEWEST]),
)
def test_no_request_breaks_the_translation(members: dict[str, Any], said: object, model: str) -> None:
    """Whatever JSON a client sends is translated or refused, never an error of ours."""
    try:
        body = translate(model, **{"messages": said, **members}).encode(model=model)
    except BadRequest:
        return
    assert orjson.loads(body)["max_tokens"] > 0
