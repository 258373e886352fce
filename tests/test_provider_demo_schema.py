"""The demo provider's made-up values and tokens: whatever a client sends, something comes of it."""

from __future__ import annotations

import json

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmproxy.providers.demo_models import tokens
from llmproxy.providers.demo_schema import example_of

schemas = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just({"$ref": "#"}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "anyOf",
                    "required",
                    "enum",
                    "minimum",
                    "exclusiveMinimum",
                    "minItems",
                    "minLength",
                    "$ref",
                    "a",
                ]
            ),
            inner | st.sampled_from(["object", "array", "string", "integer"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(schemas)
@example({"enum": [-(2**63) - 1]})
@example({"type": "integer", "exclusiveMinimum": 2**64 - 1})
def test_no_schema_breaks_the_demo(schema: object) -> None:
    """Whatever a client calls a schema, some JSON comes of it."""
    sent = orjson.loads(json.dumps(schema))
    assert orjson.dumps(example_of(sent))


def test_a_schema_without_end_ends() -> None:
    """A schema that refers to itself twice in each member does not grow without bound."""
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}, "required": ["a", "b"]}
    assert len(orjson.dumps(example_of(schema))) < 100_000


@given(st.text(max_size=200))
def test_tokens_add_up_to_the_text(text: str) -> None:
    """Joined, the pieces of a text are the text."""
    assert "".join(tokens(text)) == text
