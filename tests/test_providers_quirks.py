"""In what OpenAI-compatible vendors differ: what they are sent, and how their answers are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from llmproxy.errors import BadRequest
from llmproxy.exchange import Target
from llmproxy.providers.compatible import RenamedReasoning
from llmproxy.request import Request
from tests.providers import KINDS, prepare, provider, request


def sent(kind: str, **members: Any) -> dict[str, Any]:
    """The document a vendor gets, for a chat with some members more."""
    document = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **members}
    decoded: dict[str, Any] = orjson.loads(prepare(kind, document).body)
    return decoded


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_needs_no_change_keeps_its_bytes(kind: str) -> None:
    """An everyday request reaches every vendor byte for byte, and nothing is reported as dropped."""
    body = b'{ "model":"m","messages":[ {"role":"system","content":"a"},{"role":"user","content":[]} ],"n":1,"x":1.0}'
    operation = min(KINDS[kind].operations)
    asked = Request(operation, body, orjson.loads(body))
    prepared = provider(kind).prepare(asked, Target(kind, "m"), CIMultiDict())
    assert prepared.body == body
    assert prepared.dropped == ()


@pytest.mark.parametrize(
    ("kind", "member", "value"),
    [
        ("groq", "logprobs", True),
        ("groq", "top_logprobs", 3),
        ("groq", "logit_bias", {"50256": -100}),
        ("groq", "n", 2),
        ("ollama", "n", 3),
        ("ollama", "logit_bias", {"1": 1}),
        ("deepseek", "response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
        ("zai", "response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
        ("moonshot", "tool_choice", "required"),
    ],
)
def test_what_would_change_the_answer_is_refused(kind: str, member: str, value: object) -> None:
    """A parameter that a vendor lacks and that changes the answer is a 400 that names it."""
    with pytest.raises(BadRequest) as caught:
        sent(kind, **{member: value})
    assert (caught.value.param, caught.value.error_code) == (member, "unsupported_parameter")


@pytest.mark.parametrize(
    ("kind", "member", "value"),
    [("groq", "logprobs", False), ("groq", "n", 1), ("groq", "logit_bias", None), ("zai", "response_format", None)],
)
def test_what_asks_for_nothing_is_not_refused(kind: str, member: str, value: object) -> None:
    """A parameter that is off is let through."""
    assert sent(kind, **{member: value})[member] == value


@pytest.mark.parametrize(
    ("kind", "members", "dropped"),
    [
        ("cerebras", {"logit_bias": {"1": 2}}, ("logit_bias",)),
        ("ollama", {"user": "alice"}, ("user",)),
        ("groq", {"messages": [{"role": "user", "content": "a", "name": "bob"}]}, ("messages.name",)),
        (
            "xai",
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}, "cache_control": {}}]},
            ("tools.cache_control", "tools.strict"),
        ),
        (
            "together",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}, "odd"]}]},
            ("messages.cache_control",),
        ),
    ],
)
def test_hints_a_vendor_lacks_are_dropped_and_named(kind: str, members: dict[str, Any], dropped: Sequence[str]) -> None:
    """A hint that a vendor does not know is left out, and the request says which it was."""
    prepared = prepare(kind, {"model": "m", "messages": [], **members})
    assert prepared.dropped == dropped
    assert all(f'"{name.rpartition(".")[2]}"'.encode() not in prepared.body for name in dropped)


def test_cache_marks_stay_where_they_are_understood() -> None:
    """OpenRouter passes cache marks on to vendors that have them."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}]
    assert sent("openrouter", messages=messages)["messages"] == messages


def test_developer_becomes_system_where_the_role_is_unknown() -> None:
    """The developer's message is a system message for vendors that have no such role, and not a dropped one."""
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prepared = prepare("together", {"model": "m", "messages": messages})
    assert [message["role"] for message in orjson.loads(prepared.body)["messages"]] == ["system", "user"]
    assert prepared.dropped == ()
    assert sent("openrouter", messages=messages)["messages"] == messages


def test_max_tokens_goes_by_the_name_a_vendor_knows() -> None:
    """Where only `max_tokens` is known it takes the newer one's value, which wins when both are given."""
    assert sent("deepseek", max_completion_tokens=5) | {"max_tokens": 5} == sent("deepseek", max_completion_tokens=5)
    assert "max_completion_tokens" not in sent("deepseek", max_completion_tokens=5)
    assert sent("deepseek", max_completion_tokens=5, max_tokens=9)["max_tokens"] == 5
    assert sent("deepseek", max_completion_tokens=None, max_tokens=9)["max_tokens"] == 9
    assert sent("groq", max_completion_tokens=5)["max_completion_tokens"] == 5


def test_temperature_is_held_to_what_a_vendor_allows() -> None:
    """Moonshot's temperature ends at 1."""
    assert sent("moonshot", temperature=1.7)["temperature"] == 1
    assert sent("moonshot", temperature=0.3)["temperature"] == 0.3


@pytest.mark.parametrize(
    ("kind", "effort", "name", "value"),
    [
        ("deepseek", "high", "thinking", {"type": "enabled"}),
        ("zai", "none", "thinking", {"type": "disabled"}),
        ("dashscope", "low", "enable_thinking", True),
        ("dashscope", "none", "enable_thinking", False),
    ],
)
def test_reasoning_effort_becomes_a_switch(kind: str, effort: str, name: str, value: object) -> None:
    """Where reasoning can only be switched, the effort switches it."""
    document = sent(kind, reasoning_effort=effort)
    assert document[name] == value
    assert "reasoning_effort" not in document


def test_the_vendors_own_switch_wins() -> None:
    """A client that sets the vendor's own switch keeps it."""
    assert sent("deepseek", reasoning_effort="high", thinking={"type": "disabled"})["thinking"] == {"type": "disabled"}


MEMBERS = st.sampled_from(["role", "name", "content", "function", "cache_control", "type"])
PARAMETERS = st.sampled_from(
    [
        *("messages", "tools", "n", "temperature", "response_format", "tool_choice", "reasoning_effort"),
        *("max_completion_tokens", "logprobs"),
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "name", "content", "function", "cache_control", "type"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(PARAMETERS, json_values))
def test_no_document_breaks_a_vendor(kind: str, members: dict[str, Any]) -> None:
    """Whatever JSON a client sends is prepared or refused as a bad request, and stays JSON."""
    try:
        prepared = prepare(kind, {"model": "m", **members}, min(KINDS[kind].operations))
    except BadRequest as error:
        blamed = error.param
    else:
        blamed = None
        assert orjson.loads(prepared.body)["model"] == "m"
    assert blamed is None or blamed in members


def test_reasoning_text_has_one_name_for_clients() -> None:
    """An answer's `reasoning` reaches clients as `reasoning_content`; other answers keep their bytes."""
    groq = provider("groq")
    body = b'{"choices":[{"message":{"content":"4","reasoning":"2+2, \\"reasoning\\": sums"}}]}'
    asked = request()
    renamed = orjson.loads(groq.answer(asked, body, orjson.loads(body)))
    assert renamed["choices"][0]["message"] == {"content": "4", "reasoning_content": '2+2, "reasoning": sums'}
    plain = b'{"choices":[{"message":{"content":"4"}}]}'
    assert groq.answer(asked, plain, orjson.loads(plain)) is plain
    assert provider("together").answer(asked, body, orjson.loads(body)) is body
    assert provider("together").stream_decoder(asked) is None


@given(st.lists(st.integers(1, 30), max_size=40))
def test_streamed_reasoning_is_renamed_however_it_is_split(sizes: list[int]) -> None:
    """A stream comes out the same wherever the network cut it, a last event without its blank line included."""
    stream = (
        b'data: {"choices":[{"index":0,"delta":{"reasoning":"th\xc3\xa9 "}}]}\n\n: note\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"\\"reasoning\\":"}}]}\n\ndata: [DONE]'
    )
    decoder = RenamedReasoning()
    pieces: list[bytes] = []
    position = 0
    for size in [*sizes, len(stream)]:
        pieces += decoder.feed(stream[position : position + size])
        position += size
    expected = stream.replace(b'"reasoning":"th', b'"reasoning_content":"th') + b"\n\n"
    assert b"".join([*pieces, *decoder.finish()]) == expected


def test_half_an_event_is_not_passed_on() -> None:
    """What was cut in the middle of an event is no event."""
    decoder = RenamedReasoning()
    decoder.feed(b'data: {"a":1}\n\ndata: {"choices":[{"del')
    assert decoder.finish() == []


def test_xai_counts_reasoning_apart() -> None:
    """Reasoning tokens that a vendor leaves out of its completion count are added once."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 20}}
    apart = provider("xai").usage({"choices": [], "usage": {**usage, "total_tokens": 35}})
    assert apart is not None
    assert (apart.text_output_tokens, apart.reasoning_output_tokens, apart.total_tokens) == (5, 20, 35)
    inside = {**usage, "completion_tokens": 25, "total_tokens": 35}
    counted = provider("xai").usage({"choices": [], "usage": inside})
    assert counted is not None
    assert counted.total_tokens == 35


@given(json_values, json_values, json_values)
def test_odd_usage_never_breaks(prompt: object, completion: object, details: object) -> None:
    """Usage of any shape is read or ignored."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "completion_tokens_details": details}
    read = provider("xai").usage({"usage": usage})
    assert read is None or read.total_tokens >= 0
