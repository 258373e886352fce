"""Chat completions requests as Bedrock is sent them; botocore's description of Converse judges every body."""

from __future__ import annotations

import base64
import json
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from llmproxy.errors import BadRequest
from llmproxy.exchange import Target
from llmproxy.request import Document
from tests.bedrock import (
    CLAUDE_3,
    CLAUDE_4,
    CLAUDE_4_5,
    CLAUDE_4_6,
    CLAUDE_5_5,
    GPT_OSS,
    LLAMA,
    NOVA,
    QWEN,
    SCHEMA,
    asked,
    bedrock,
    calls,
    converse,
    prepare,
    result,
    tool,
    user,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20
PNG_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
PDF_URL = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7").decode()
MARK = {"type": "ephemeral"}
POINT = {"cachePoint": {"type": "default"}}
CLOSED = {**SCHEMA, "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}


# Tools


def test_tools_are_specified() -> None:
    """Names, descriptions and schemas travel; an empty description and a missing schema are made good."""
    bare = {"type": "function", "function": {"name": "now", "description": ""}}
    config = converse(CLAUDE_4_5, tools=[tool(strict=True), bare])["toolConfig"]
    assert config == {
        "tools": [
            {"toolSpec": {"name": "weather", "description": "Tells.", "inputSchema": {"json": SCHEMA}, "strict": True}},
            {"toolSpec": {"name": "now", "inputSchema": {"json": {"type": "object", "properties": {}}}}},
        ]
    }


@pytest.mark.parametrize(
    ("model", "choice", "expected", "offered"),
    [
        (CLAUDE_4_5, "auto", None, ["a", "b"]),
        (CLAUDE_4_5, "required", {"any": {}}, ["a", "b"]),
        (CLAUDE_4_5, {"type": "function", "function": {"name": "b"}}, {"tool": {"name": "b"}}, ["a", "b"]),
        (QWEN, {"type": "function", "function": {"name": "b"}}, {"any": {}}, ["b"]),
        (
            CLAUDE_4_5,
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]},
            },
            {"any": {}},
            ["b"],
        ),
    ],
)
def test_tool_choices(model: str, choice: Any, expected: Document | None, offered: list[str]) -> None:
    """Each choice has its own form; where one tool cannot be named, it is the only one offered."""
    config = converse(model, tools=[tool("a"), tool("b")], tool_choice=choice)["toolConfig"]
    assert config.get("toolChoice") == expected
    assert [each["toolSpec"]["name"] for each in config["tools"]] == offered


@pytest.mark.parametrize("model", [LLAMA, CLAUDE_5_5])
def test_a_call_that_cannot_be_forced_is_refused_or_dropped(model: str) -> None:
    """Models that only choose for themselves get a 400, or with drop_params the choice."""
    with pytest.raises(BadRequest) as raised:
        prepare(model, tools=[tool()], tool_choice="required")
    assert (raised.value.param, raised.value.error_code) == ("tool_choice", "unsupported_parameter")
    sent = prepare(model, tools=[tool()], tool_choice="required", drop_params=True)
    assert sent.dropped == ("tool_choice",)
    assert "toolChoice" not in orjson.loads(sent.body)["toolConfig"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", {"disable_parallel_tool_use": True}),
    ],
)
def test_parallel_calls_are_turned_off_where_claude_can(choice: str, expected: Document) -> None:
    """Claude's own switch needs a type, and must not have one beside a toolChoice; other models have none."""
    members = {"tools": [tool()], "tool_choice": choice, "parallel_tool_calls": False}
    assert converse(CLAUDE_4_5, **members)["additionalModelRequestFields"] == {"tool_choice": expected}
    assert prepare(NOVA, **members).dropped == ("parallel_tool_calls",)
    assert "additionalModelRequestFields" not in converse(CLAUDE_4_5, parallel_tool_calls=False)


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    """Free-form tools are offered as functions."""
    config = converse(CLAUDE_4_5, tools=[{"type": "custom", "custom": {"name": "run"}}])["toolConfig"]
    assert config["tools"][0]["toolSpec"]["inputSchema"]["json"]["required"] == ["input"]


# Formats


def test_a_json_schema_is_an_output_format_where_there_is_one() -> None:
    """Newer models are held to the schema, which goes as text and with closed objects."""
    body = converse(CLAUDE_4_5, response_format=FORMAT)
    schema = body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
    assert (orjson.loads(schema["schema"]), schema["name"]) == (CLOSED, "place")
    assert "toolConfig" not in body


@pytest.mark.parametrize("model", [CLAUDE_3, CLAUDE_4, NOVA])
def test_other_models_are_made_to_call_a_tool_of_that_form(model: str) -> None:
    """Without output formats, the schema is a tool that must be called."""
    config = converse(model, response_format=FORMAT)["toolConfig"]
    assert config["toolChoice"] == {"tool": {"name": "place"}}
    assert config["tools"][0]["toolSpec"]["inputSchema"] == {"json": SCHEMA}
    config = converse(model, response_format=FORMAT, tools=[tool()])["toolConfig"]
    assert config["toolChoice"] == {"any": {}}
    assert [each["toolSpec"]["name"] for each in config["tools"]] == ["weather", "place"]


def test_a_schema_that_refers_to_itself_goes_through_a_tool() -> None:
    """Trap 42: what cannot be held to a format still can be asked for; null in anyOf and missing closure are no bar."""
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "tree", "schema": tree}}
    assert converse(CLAUDE_4_5, response_format=wanted)["toolConfig"]["toolChoice"] == {"tool": {"name": "tree"}}
    nullable = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "maybe", "schema": nullable}}
    assert "outputConfig" in converse(CLAUDE_4_5, response_format=wanted)


def test_a_schema_for_a_model_that_has_no_way_to_it_is_refused() -> None:
    """A model with neither formats nor forced calls cannot promise a form."""
    with pytest.raises(BadRequest) as raised:
        prepare(LLAMA, response_format=FORMAT)
    assert raised.value.param == "response_format"


def test_json_without_a_schema_is_asked_for_in_words() -> None:
    """There is no such mode, so the instructions say it."""
    body = converse(
        CLAUDE_4_5, {"role": "system", "content": "Be kind."}, user(), response_format={"type": "json_object"}
    )
    assert len(body["system"]) == 2
    assert "JSON" in body["system"][1]["text"]


# Scalars


def test_the_answers_limits() -> None:
    """max_completion_tokens wins, temperatures are at most 1, stop sequences are listed."""
    members = {"max_tokens": 5, "max_completion_tokens": 7, "temperature": 1.7, "top_p": 0.5, "stop": "END"}
    assert converse(NOVA, **members)["inferenceConfig"] == {
        "maxTokens": 7,
        "temperature": 1,
        "topP": 0.5,
        "stopSequences": ["END"],
    }
    assert "inferenceConfig" not in converse(NOVA, stop=[""], max_tokens=None)


@pytest.mark.parametrize(
    ("model", "expected"),
    [(CLAUDE_4, {"top_k": 5}), (NOVA, {"inferenceConfig": {"topK": 5}}), (QWEN, None), (CLAUDE_5_5, None)],
)
def test_top_k_goes_where_the_model_has_it(model: str, expected: Document | None) -> None:
    """top_k is not Converse's: each family has a place for it, or none."""
    sent = prepare(model, top_k=5)
    assert orjson.loads(sent.body).get("additionalModelRequestFields") == expected
    assert sent.dropped == (() if expected else ("top_k",))


@pytest.mark.parametrize("model", ["us.anthropic.claude-opus-4-7-v1:0", CLAUDE_5_5])
def test_sampling_never_reaches_models_that_refuse_it(model: str) -> None:
    """Newer Claude models refuse sampling parameters even at their default values."""
    sent = prepare(model, temperature=1.0, top_p=1.0, top_k=5)
    assert orjson.loads(sent.body).keys() == {"messages"}
    assert set(sent.dropped) == {"temperature", "top_p", "top_k"}


def test_one_of_two_sampling_parameters_is_sent_where_both_are_refused() -> None:
    """Some Claude models take temperature or top_p."""
    sent = prepare(CLAUDE_4_5, temperature=0.5, top_p=0.5)
    assert orjson.loads(sent.body)["inferenceConfig"] == {"temperature": 0.5}
    assert sent.dropped == ("top_p",)


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        (CLAUDE_4_5, "medium", {"thinking": {"type": "enabled", "budget_tokens": 4096}}),
        (CLAUDE_4_5, "none", None),
        (
            CLAUDE_4_6,
            "high",
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "high"}},
        ),
        ("us.anthropic.claude-opus-5", "none", {"thinking": {"type": "disabled"}}),
        (GPT_OSS, "minimal", {"reasoning_effort": "low"}),
        (GPT_OSS, "xhigh", {"reasoning_effort": "high"}),
        (
            "us.amazon.nova-2-lite-v1:0",
            "medium",
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}},
        ),
        ("us.amazon.nova-2-lite-v1:0", "none", {"reasoningConfig": {"type": "disabled"}}),
    ],
)
def test_reasoning_effort(model: str, effort: str, expected: Document | None) -> None:
    """Each family is told in its own way how much to think."""
    body = converse(model, reasoning_effort=effort, max_tokens=20_000)
    assert body.get("additionalModelRequestFields") == expected


def test_reasoning_effort_of_models_that_do_not_reason_is_dropped() -> None:
    """It is a hint, and named among what was left out."""
    assert prepare(LLAMA, reasoning_effort="high").dropped == ("reasoning_effort",)


def test_a_model_that_always_thinks_is_not_told_not_to() -> None:
    """An effort of none would be something else."""
    with pytest.raises(BadRequest) as raised:
        prepare(CLAUDE_5_5, reasoning_effort="none")
    assert raised.value.param == "reasoning_effort"


def test_a_budget_stays_below_the_limit_of_the_answer() -> None:
    """Claude refuses a budget as large as the answer; where none is left, there is none."""
    body = converse(CLAUDE_4_5, reasoning_effort="high", max_tokens=2000)
    assert body["additionalModelRequestFields"]["thinking"]["budget_tokens"] < 2000
    assert prepare(CLAUDE_4_5, reasoning_effort="high", max_tokens=500).dropped == ("reasoning_effort",)
    assert converse(CLAUDE_4_5, reasoning_effort="high")["inferenceConfig"]["maxTokens"] > 16_384


def test_no_limit_is_invented() -> None:
    """A limit nobody asked for would be counted against the quota; the operator may set one."""
    assert "inferenceConfig" not in converse(CLAUDE_4_5)
    body = bedrock(default_max_tokens=300).prepare(asked(QWEN), Target("bedrock", QWEN), CIMultiDict()).body
    assert orjson.loads(body)["inferenceConfig"] == {"maxTokens": 300}


@pytest.mark.parametrize(
    ("members", "parameter"),
    [
        ({"n": 2}, "n"),
        ({"modalities": ["text", "audio"], "audio": {"voice": "x", "format": "mp3"}}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_what_changes_the_meaning_is_refused_or_dropped(members: Document, parameter: str) -> None:
    """A 400 that names the parameter; with drop_params it is left out and named."""
    with pytest.raises(BadRequest) as raised:
        prepare(CLAUDE_4_5, **members)
    assert (raised.value.param, raised.value.error_code) == (parameter, "unsupported_parameter")
    assert parameter in prepare(CLAUDE_4_5, **members, drop_params=True).dropped


def test_hints_are_dropped_and_named() -> None:
    """What Bedrock does not have and nobody will miss is left out of the body, and only that."""
    hints = {"seed": 1, "logit_bias": {"1": 2}, "user": "u", "presence_penalty": 1, "prompt_cache_key": "k", "x": 1}
    sent = prepare(CLAUDE_4_5, **hints, store=False, n=1, stream=True, stream_options={"include_usage": True})
    assert sent.dropped == tuple(hints)
    assert orjson.loads(sent.body).keys() == {"messages"}


def test_metadata_tags_the_request_as_far_as_it_fits() -> None:
    """Bedrock's tags have fewer letters than OpenAI's."""
    assert converse(CLAUDE_4_5, metadata={"team": "a b:c"})["requestMetadata"] == {"team": "a b:c"}
    sent = prepare(CLAUDE_4_5, metadata={"team": "ü", "a": "b"})
    assert orjson.loads(sent.body)["requestMetadata"] == {"a": "b"}
    assert sent.dropped == ("metadata",)
    assert len(converse(CLAUDE_4_5, metadata={f"k{n}": "v" for n in range(20)})["requestMetadata"]) == 16


@pytest.mark.parametrize(
    ("tier", "expected", "dropped"),
    [("flex", {"type": "flex"}, ()), ("auto", None, ()), ("scale", None, ("service_tier",))],
)
def test_service_tiers(tier: str, expected: Document | None, dropped: tuple[str, ...]) -> None:
    """Bedrock's own tiers travel; auto is what it does anyway."""
    sent = prepare(CLAUDE_4_5, service_tier=tier)
    assert (orjson.loads(sent.body).get("serviceTier"), sent.dropped) == (expected, dropped)


def test_converses_own_members_travel_as_they_are() -> None:
    """A client that knows Bedrock may say things that only Bedrock understands, and they win."""
    guardrail = {"guardrailIdentifier": "abc", "guardrailVersion": "1"}
    fields = {"thinking": {"type": "disabled"}}
    body = converse(CLAUDE_4_6, guardrailConfig=guardrail, additionalModelRequestFields=fields, reasoning_effort="low")
    assert body["guardrailConfig"] == guardrail
    assert body["additionalModelRequestFields"]["thinking"] == {"type": "disabled"}


def test_betas_are_listed_in_the_body() -> None:
    """Trap 12: betas of client and operator, each once, in order, and only for Claude."""
    provider = bedrock(betas=["b", "c"])
    headers = CIMultiDict({"anthropic-beta": "a, b"})
    body = orjson.loads(provider.prepare(asked(CLAUDE_4_5), Target("bedrock", CLAUDE_4_5), headers).body)
    assert body["additionalModelRequestFields"] == {"anthropic_beta": ["a", "b", "c"]}
    assert "additionalModelRequestFields" not in orjson.loads(
        provider.prepare(asked(NOVA), Target("bedrock", NOVA), headers).body
    )


# Caching


def test_cache_marks_become_cache_points() -> None:
    """Trap 13: marks on tools, system and parts become points behind them, an hour where the model has it."""
    marked = {"type": "text", "text": "long", "cache_control": {**MARK, "ttl": "1h"}}
    talk = [
        {"role": "system", "content": [marked]},
        user([marked, "short"]),
        calls("a"),
        {**result("a"), "cache_control": MARK},
    ]
    body = converse(CLAUDE_4_5, *talk, tools=[{**tool(), "cache_control": MARK}])
    hour = {"cachePoint": {"type": "default", "ttl": "1h"}}
    assert body["toolConfig"]["tools"][1] == POINT
    assert body["system"] == [{"text": "long"}, hour]
    assert body["messages"][0]["content"] == [{"text": "long"}, hour, {"text": "short"}]
    assert body["messages"][2]["content"][1] == POINT
    assert "cache_control" not in json.dumps(body)
    assert converse(CLAUDE_4, user([marked]))["messages"][0]["content"][1] == POINT


def test_models_without_caching_get_no_points() -> None:
    """A point is refused where nothing is cached; Nova caches no tools."""
    marked = user([{"type": "text", "text": "long", "cache_control": MARK}])
    sent = prepare(QWEN, marked)
    assert (b"cachePoint" in sent.body, sent.dropped) == (False, ("cache_control",))
    body = converse(NOVA, marked, tools=[{**tool(), "cache_control": MARK}])
    assert len(body["toolConfig"]["tools"]) == 1
    assert body["messages"][0]["content"][1] == POINT


def test_no_more_than_four_cache_points() -> None:
    """Trap 13: a fifth would be refused; the last ones reach furthest."""
    parts = [{"type": "text", "text": str(number), "cache_control": MARK} for number in range(6)]
    sent = prepare(CLAUDE_4_5, user(parts))
    assert orjson.loads(sent.body)["messages"][0]["content"] == [
        {"text": "0"},
        {"text": "1"},
        *(block for number in range(2, 6) for block in ({"text": str(number)}, POINT)),
    ]
    assert sent.dropped == ("cache_control",)


def test_the_same_request_gives_the_same_bytes() -> None:
    """Prompt caches of the vendor see no difference between two equal requests."""
    members = {"tools": [tool()], "metadata": {"b": "1", "a": "2"}, "stop": ["x"], "reasoning_effort": "low"}
    assert prepare(CLAUDE_4_6, **members).body == prepare(CLAUDE_4_6, **members).body
