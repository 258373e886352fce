"""Tools and structured answers in the Messages format."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.lib._parse._transform import transform_schema

from llmproxy.providers.anthropic.schemas import closed_schema
from tests.anthropic_messages import (
    AS_SCHEMA,
    BUDGET,
    NEWEST,
    OLD,
    SCHEMA,
    USER,
    WEATHER,
    call,
    native,
    refused,
    result,
    translate,
)

# Tools


def test_tools_are_translated() -> None:
    """Name, description, schema and strictness; a tool without parameters takes an empty object."""
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"properties": {}}}}
    weather, bare = native(tools=[WEATHER, strict])["tools"]
    function: Any = WEATHER["function"]
    assert weather == {
        "name": "weather",
        "description": function["description"],
        "input_schema": function["parameters"],
    }
    assert bare == {"name": "f", "input_schema": {"type": "object", "properties": {}}, "strict": True}
    assert translate(OLD, tools=[strict]).dropped == ("tools.strict",)


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
    ],
)
def test_the_choice_of_tools(choice: object, sent: object) -> None:
    """Each choice has its own form."""
    assert native(tools=[WEATHER], tool_choice=choice).get("tool_choice") == sent


def test_allowed_tools_are_all_there_is() -> None:
    """A list of allowed tools leaves the others out."""
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]}
    body = native(tools=[WEATHER, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert [tool["name"] for tool in body["tools"]] == ["other"]
    assert body["tool_choice"] == {"type": "any"}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [(None, {"type": "auto", "disable_parallel_tool_use": True}), ("none", {"type": "none"})],
)
def test_one_tool_at_a_time(choice: object, sent: object) -> None:
    """`parallel_tool_calls: false` needs a choice to stand in, and means nothing where no tool is called."""
    assert native(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)["tool_choice"] == sent


def test_no_tools_means_no_choice() -> None:
    """An empty list of tools is none, and then there is nothing to choose."""
    body = native(tools=[], tool_choice="auto", parallel_tool_calls=False)
    assert not {"tools", "tool_choice"} & set(body)


def test_calls_of_the_past_keep_their_tools() -> None:
    """A history with tool calls is only understood beside tools, so those are declared and not offered."""
    said = [USER, {"role": "assistant", "tool_calls": [call("c1")]}, result("c1")]
    body = native(messages=said)
    assert [tool["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize("model", [NEWEST, "claude-opus-5-5", "claude-sonnet-5-5", "claude-mythos-5-1"])
def test_models_that_cannot_be_forced_say_so(model: str) -> None:
    """A forced call is refused, or left to the model where the operator allows it."""
    assert refused(model, tools=[WEATHER], tool_choice="required").param == "tool_choice"
    body = native(model, tools=[WEATHER], tool_choice="required", drop_params=True)
    assert body["tool_choice"] == {"type": "auto"}


@pytest.mark.parametrize(("model", "off"), [(BUDGET, None), ("claude-haiku-5-5", {"type": "disabled"})])
def test_a_forced_call_wins_over_thinking(model: str, off: object) -> None:
    """Where both cannot be had, the call was asked for in so many words and effort is only a hint."""
    prepared = translate(model, tools=[WEATHER], tool_choice="required", reasoning_effort="high")
    assert prepared.body["tool_choice"] == {"type": "any"}
    assert prepared.body.get("thinking") == off
    assert prepared.dropped == ("reasoning_effort",)


def test_custom_tools_take_one_text() -> None:
    """A free-form tool is a function with one argument."""
    tool = {"type": "custom", "custom": {"name": "sql", "description": "Runs SQL."}}
    assert native(tools=[tool])["tools"][0]["input_schema"]["required"] == ["input"]


def test_web_search_is_a_tool_of_the_server() -> None:
    """`web_search_options` becomes the server's own tool."""
    options = {
        "search_context_size": "low",
        "user_location": {"type": "approximate", "approximate": {"country": "DE", "city": "Bonn"}},
    }
    tool = native(web_search_options=options)["tools"][0]
    assert (tool["name"], tool["max_uses"]) == ("web_search", 1)
    assert tool["user_location"] == {"type": "approximate", "country": "DE", "city": "Bonn"}


# Structured output


def test_a_schema_is_held_to_by_the_api() -> None:
    """Models that can be held to a schema get it, with its objects closed."""
    body = native(response_format=AS_SCHEMA, reasoning_effort="low")
    assert body["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": {**SCHEMA, "additionalProperties": False}},
    }


def test_older_models_answer_through_a_tool() -> None:
    """A forced tool takes the schema where the API has nothing for it."""
    body = native(OLD, response_format=AS_SCHEMA)
    assert [(tool["name"], tool["input_schema"]) for tool in body["tools"]] == [("place", SCHEMA)]
    assert body["tool_choice"] == {"type": "tool", "name": "place", "disable_parallel_tool_use": True}


def test_the_answers_tool_stands_beside_the_clients() -> None:
    """With tools of the client's, the model calls one of them or answers; names never clash."""
    named = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    body = native(OLD, response_format=named, tools=[WEATHER])
    assert [tool["name"] for tool in body["tools"]] == ["weather", "weather_"]
    assert body["tool_choice"] == {"type": "any"}
    forced = native(OLD, response_format=named, tools=[WEATHER], tool_choice="required")
    assert [tool["name"] for tool in forced["tools"]] == ["weather"]


def test_any_json_is_asked_for_in_words() -> None:
    """JSON of no schema has no mode of its own."""
    body = native(response_format={"type": "json_object"})
    assert "JSON object" in body["system"][-1]["text"]


RECURSIVE = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/node"}},
    "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}]}}}},
}


@pytest.mark.parametrize(
    "schema",
    [
        RECURSIVE,
        {"type": "object", "properties": {"self": {"$ref": "#"}}},
        {"type": "object", "properties": {"free": {"type": "object"}}},
        {"type": "object", "properties": {"empty": {"type": "object", "properties": {}}}},
        {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"away": {"$ref": "https://example.com/schema"}}},
    ],
)
def test_schemas_that_cannot_be_enforced(schema: dict[str, Any]) -> None:
    """Trap 42: recursion and free keys go through the tool, and are refused where no tool can be forced."""
    wanted = {"type": "json_schema", "json_schema": {"name": "out", "schema": schema}}
    body = native(response_format=wanted)
    assert body["tool_choice"]["name"] == "out"
    assert body["tools"][0]["input_schema"] == schema
    assert refused(NEWEST, response_format=wanted).param == "response_format"


def test_unions_with_null_and_missing_closures_behave() -> None:
    """Trap 42: what the API wants otherwise is rewritten, and limits it cannot hold are told to the model."""
    schema = {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "string", "minLength": 2}, {"type": "null"}]},
            "b": {"oneOf": [{"type": ["integer", "null"], "minimum": 1}]},
            "c": {"type": "array", "items": {"$ref": "#/$defs/c"}, "minItems": 1, "maxItems": 3},
            "d": {"type": "string", "format": "date"},
        },
        "$defs": {"c": {"type": "object", "properties": {"x": {"const": 1}}, "additionalProperties": True}},
    }
    closed: Any = closed_schema(schema)
    assert closed["properties"]["a"]["anyOf"][0] == {"type": "string", "description": "{minLength: 2}"}
    assert closed["properties"]["b"]["anyOf"][0]["description"] == "{minimum: 1}"
    assert closed["$defs"]["c"]["additionalProperties"] is False
    assert closed["properties"]["d"]["format"] == "date"


def test_schemas_come_out_as_the_sdk_writes_them() -> None:
    """For what both know, the vendor's own rewriting comes to the same, and has nothing left to do."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "Who", "pattern": "^a"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "place": {"$ref": "#/$defs/place"},
        },
        "required": ["name"],
        "$defs": {"place": {"type": "object", "properties": {"id": {"type": "integer"}}}},
    }
    closed: Any = closed_schema(schema)
    assert transform_schema(closed) == closed
    assert closed_schema(closed) == closed
