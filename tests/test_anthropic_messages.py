"""Conversations in the Messages format: turns, media, thinking that goes back, and cache marks."""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.anthropic_messages import (
    BUDGET,
    NEW,
    OLD,
    REDACTED,
    SETTINGS,
    SIGNED,
    USER,
    WEATHER,
    call,
    judge,
    native,
    refused,
    result,
    text,
    translate,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 8


# Messages


def test_leading_instructions_become_the_system_prompt() -> None:
    """System and developer messages at the beginning are system text, blank ones left out."""
    said = [{"role": "system", "content": "A"}, {"role": "developer", "content": [text("B"), text("  ")]}, USER]
    body = native(messages=said)
    assert body["system"] == [text("A"), text("B")]
    assert body["messages"] == [{"role": "user", "content": [text("Hi")]}]


@pytest.mark.parametrize(("model", "roles"), [(NEW, ["user", "system", "user"]), (BUDGET, ["user"])])
def test_instructions_in_between_stay_where_they_are(model: str, roles: list[str]) -> None:
    """Later instructions keep their role on models that know it there, and are the user's words elsewhere."""
    body = native(model, messages=[USER, {"role": "system", "content": "S"}, {"role": "user", "content": "Go"}])
    assert [turn["role"] for turn in body["messages"]] == roles
    assert [block["text"] for turn in body["messages"] for block in turn["content"]] == ["Hi", "S", "Go"]


def test_a_lone_instruction_is_what_is_answered() -> None:
    """A request of system messages only becomes the user's turn."""
    body = native(messages=[{"role": "system", "content": "Say yes"}])
    assert "system" not in body
    assert body["messages"] == [{"role": "user", "content": [text("Say yes")]}]


def test_a_conversation_opens_with_the_user() -> None:
    """Where the assistant spoke first, a turn of the user is put before."""
    body = native(messages=[{"role": "assistant", "content": "Hello"}, USER])
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("content", ["Hi", [text("Hi")], ["Hi"], [text("Hi"), text("")]])
def test_every_form_of_content_is_accepted(content: object) -> None:
    """Trap 32: text, parts and parts of plain text are the same, in every role."""
    said = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": content, "tool_calls": [call("c1")]},
        result("c1", content),
        {"role": "system", "content": content},
    ]
    user, assistant, results = native(BUDGET, messages=said, tools=[WEATHER])["messages"]
    assert user["content"] == [text("Hi")]
    assert assistant["content"][0] == text("Hi")
    assert results["content"][0]["content"] == [text("Hi")]


@pytest.mark.parametrize("content", [None, "", " ", []])
def test_messages_without_words_are_left_out(content: object) -> None:
    """Blank text is refused by the vendor, so it never gets there."""
    said = [USER, {"role": "assistant", "content": content}, {"role": "user", "content": "Go"}]
    assert native(messages=said)["messages"] == [{"role": "user", "content": [text("Hi"), text("Go")]}]


def test_a_request_of_nothing_is_refused() -> None:
    """A conversation in which nobody says anything cannot be answered."""
    assert refused(messages=[{"role": "user", "content": " "}]).param == "messages"


def test_tool_results_come_first_and_in_one_message() -> None:
    """Trap 3: all results of a turn stand in one user message, before any text."""
    said = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call("c1"), call("c2")]},
        {"role": "system", "content": "Be brief"},
        result("c1"),
        result("c2", ""),
        {"role": "user", "content": "And?"},
    ]
    for model in (NEW, OLD):
        _, assistant, answers = native(model, messages=said, tools=[WEATHER])["messages"]
        assert [block["type"] for block in assistant["content"]] == ["tool_use", "tool_use"]
        assert [block.get("tool_use_id") for block in answers["content"]] == ["c1", "c2", None, None]
        assert "content" not in answers["content"][1]


def test_foreign_tool_ids_are_rewritten_alike_on_both_sides() -> None:
    """An id with letters that Claude refuses becomes another, the same for call and result, and no two become one."""
    said = [
        USER,
        {"role": "assistant", "tool_calls": [call("a.1"), call("a:1"), call("ok_-1")]},
        *(result(call_id) for call_id in ("a.1", "a:1", "ok_-1")),
    ]
    _, assistant, answers = native(messages=said, tools=[WEATHER])["messages"]
    ids = [block["id"] for block in assistant["content"]]
    assert ids == [block["tool_use_id"] for block in answers["content"]]
    assert len(set(ids)) == 3
    assert ids[2] == "ok_-1"


def test_tool_arguments_keep_their_numbers_and_order() -> None:
    """Trap 34: the client's own JSON goes out, whatever numbers it holds."""
    arguments = '{"z":1.0,"a":12345678901234567890123,"b":1e5,"ü":"ß"}'
    said = [USER, {"role": "assistant", "tool_calls": [call("c1", arguments)]}, result("c1")]
    assert arguments.encode() in translate(messages=said, tools=[WEATHER]).encode()


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [("", {}), ("{}", {}), ("[1]", {"_raw": "[1]"}), ('{"a":', {"_raw": '{"a":'}), ('{"a":1}', {"a": 1})],
)
def test_broken_tool_arguments_do_not_break_the_next_turn(arguments: str, sent: object) -> None:
    """What a model wrote wrong earlier still goes out as an object."""
    said = [USER, {"role": "assistant", "tool_calls": [call("c1", arguments)]}, result("c1")]
    assert native(messages=said, tools=[WEATHER])["messages"][1]["content"][0]["input"] == sent


def test_legacy_functions_are_tools_with_ids_of_their_own() -> None:
    """Two legacy calls of one function get two ids, and each result names its own."""
    said: list[dict[str, Any]] = [USER]
    for _ in range(2):
        said.append({"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}})
        said.append({"role": "function", "name": "weather", "content": "sunny"})
    body = native(messages=said, functions=[WEATHER["function"]], function_call="auto")
    calls = [turn["content"][0]["id"] for turn in body["messages"] if turn["role"] == "assistant"]
    results = [turn["content"][0]["tool_use_id"] for turn in body["messages"][2::2]]
    assert calls == results
    assert len(set(calls)) == 2


@pytest.mark.parametrize(("model", "is_taken"), [(BUDGET, True), ("claude-opus-4-6", False), (NEW, False)])
def test_going_on_from_its_own_words(model: str, *, is_taken: bool) -> None:
    """Older models go on from a last message of the assistant; newer ones get a clear refusal."""
    said = [USER, {"role": "assistant", "content": "{ "}]
    if is_taken:
        assert native(model, messages=said)["messages"][-1]["content"] == [text("{")]
    else:
        assert refused(model, messages=said).param == "messages"


# Media


def image(url: str) -> dict[str, Any]:
    """An image part."""
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("declared", ["image/png", "IMAGE/PNG", "image/jpg", ""])
def test_images_are_what_their_bytes_say(declared: str) -> None:
    """Trap 36: url-safe or unpadded base64 and a wrong declared type do no harm."""
    data = base64.urlsafe_b64encode(PNG).decode().rstrip("=")
    body = native(messages=[{"role": "user", "content": [image(f"DATA:{declared};BASE64,{data}")]}])
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    assert body["messages"][0]["content"] == [{"type": "image", "source": source}]


def test_images_elsewhere_are_fetched_by_the_vendor() -> None:
    """An http address is passed on as such."""
    body = native(messages=[{"role": "user", "content": [image("https://example.com/a.png")]}])
    source = {"type": "url", "url": "https://example.com/a.png"}
    assert body["messages"][0]["content"] == [{"type": "image", "source": source}]


def test_documents_become_documents() -> None:
    """A PDF goes as it is, a text file as text, both with their name."""
    pdf = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7").decode()
    plain = "data:text/csv;base64," + base64.b64encode(b"a,b").decode()
    files = [{"type": "file", "file": {"file_data": data, "filename": "f"}} for data in (pdf, plain)]
    first, second = native(messages=[{"role": "user", "content": files}])["messages"][0]["content"]
    assert (first["source"]["media_type"], first["title"]) == ("application/pdf", "f")
    assert (second["source"]["data"], second["title"]) == ("a,b", "f")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA"}},
        image("gs://bucket/a.png"),
        image("data:image/bmp;base64,Qk0="),
    ],
)
def test_what_claude_cannot_read_is_refused_by_name(part: dict[str, Any]) -> None:
    """Sound, foreign file ids and unknown types name the part; the operator may have them left out."""
    said = [{"role": "user", "content": [text("Hi"), part]}]
    error = refused(messages=said)
    assert (error.param, error.error_code) == ("messages[0].content[1]", "unsupported_parameter")
    assert native(messages=said, drop_params=True)["messages"][0]["content"] == [text("Hi")]


def test_images_of_the_assistant_are_refused() -> None:
    """Claude's own turns hold text only."""
    said = [USER, {"role": "assistant", "content": [image("https://example.com/a.png"), text("see")]}, USER]
    assert refused(messages=said).param == "messages[1].content[0]"


def test_tool_results_may_hold_images() -> None:
    """An image in a result stays in it."""
    said = [
        USER,
        {"role": "assistant", "tool_calls": [call("c1")]},
        result("c1", [text("see"), image("https://e.com/a")]),
    ]
    answers = native(messages=said, tools=[WEATHER])["messages"][2]["content"]
    assert [block["type"] for block in answers[0]["content"]] == ["text", "image"]


# Thinking that goes back


def test_thinking_goes_back_first_and_unchanged() -> None:
    """Trap 7: thinking and redacted thinking stand before all else of their turn, to the letter."""
    said = [
        USER,
        {"role": "assistant", "content": "So", "tool_calls": [call("c1")], "thinking_blocks": [SIGNED, REDACTED]},
        result("c1"),
    ]
    content = native(messages=said, tools=[WEATHER], reasoning_effort="high")["messages"][1]["content"]
    assert content[:2] == [SIGNED, REDACTED]
    assert [block["type"] for block in content[2:]] == ["text", "tool_use"]


@pytest.mark.parametrize(
    "foreign",
    [
        {"type": "thinking", "thinking": "hm"},
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "thinking", "thinking": "hm", "signature": None},
        {"type": "thinking", "thinking": "hm", "signature": "c2ln", "format": "gemini"},
        {"type": "redacted_thinking", "data": ""},
        {"type": "reasoning.encrypted", "data": "gAAA"},
        {"type": ["thinking"]},
    ],
)
def test_thinking_of_others_is_left_out(foreign: dict[str, Any]) -> None:
    """Trap 8: what is unsigned, or marked as another vendor's, does not reach Claude."""
    said = [USER, {"role": "assistant", "content": "So", "thinking_blocks": [foreign], "reasoning_content": "hm"}, USER]
    assert native(messages=said)["messages"][1]["content"] == [text("So")]


def test_a_budget_does_not_begin_in_the_middle_of_a_tool_loop() -> None:
    """Results whose calls came without thinking are answered without: the older API refuses the mixture."""
    said: list[dict[str, Any]] = [USER, {"role": "assistant", "tool_calls": [call("c1")]}, result("c1")]
    prepared = translate(BUDGET, messages=said, tools=[WEATHER], reasoning_effort="low")
    assert "thinking" not in prepared.body
    assert prepared.dropped == ("reasoning_effort",)
    said[1]["thinking_blocks"] = [SIGNED]
    assert native(BUDGET, messages=said, tools=[WEATHER], reasoning_effort="low")["thinking"]["type"] == "enabled"


# Prompt cache


def marked(words: str, ttl: str | None = None) -> dict[str, Any]:
    """A text part with a cache mark."""
    return text(words, cache_control={"type": "ephemeral", **({"ttl": ttl} if ttl else {})})


def marks(body: dict[str, Any]) -> list[tuple[str, Any]]:
    """Where the marks of a request stand, and how long they last."""
    blocks = [*body.get("tools", ()), *body.get("system", ()), *(b for t in body["messages"] for b in t["content"])]
    return [
        (b.get("name") or b.get("text") or b["type"], m.get("ttl")) for b in blocks if (m := b.get("cache_control"))
    ]


def test_cache_marks_reach_every_place_they_may_stand() -> None:
    """Trap 13: marks on tools, system, messages and results arrive; a message's own is its last part's."""
    tool = {**WEATHER, "cache_control": {"type": "ephemeral"}}
    said = [
        {"role": "system", "content": "S", "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": [text("a"), text("b")], "cache_control": {"type": "ephemeral"}},
        {"role": "assistant", "tool_calls": [call("c1")]},
        result("c1", [marked("r")]),
    ]
    assert marks(native(messages=said, tools=[tool])) == [
        ("weather", None),
        ("S", None),
        ("b", None),
        ("tool_result", None),
    ]


def test_openai_breakpoints_are_cache_marks() -> None:
    """`prompt_cache_breakpoint` on a part is the same thing."""
    part = text("a", prompt_cache_breakpoint={"mode": "explicit"})
    assert marks(native(messages=[{"role": "user", "content": [part]}])) == [("a", None)]


def test_no_more_than_four_marks() -> None:
    """Trap 13: of too many, the first and the last ones stay."""
    said = [{"role": "user", "content": [marked(letter) for letter in "abcdefg"]}]
    assert [name for name, _ in marks(native(messages=said))] == ["a", "e", "f", "g"]
    assert len(marks(native(messages=said, cache_control={"type": "ephemeral"}))) == 3


def test_longer_marks_precede_shorter_ones() -> None:
    """An hour after five minutes would be refused, so it is cut to five minutes."""
    said = [{"role": "user", "content": [marked("a", "1h"), marked("b"), marked("c", "1h")]}]
    assert marks(native(messages=said)) == [("a", "1h"), ("b", None), ("c", None)]


CONTENT = st.text(max_size=12) | st.lists(st.builds(text, st.text(max_size=6)), max_size=3)
TURNS = st.one_of(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["system", "user"]), CONTENT),
    st.builds(
        lambda content, ids, thinking: {
            "role": "assistant",
            "content": content,
            "tool_calls": [call(each) for each in ids],
            "thinking_blocks": thinking,
        },
        CONTENT,
        st.lists(st.text(max_size=3), max_size=2, unique=True),
        st.lists(st.sampled_from([SIGNED, REDACTED]), max_size=2),
    ),
    st.builds(result, st.text(max_size=3), CONTENT),
)


@SETTINGS
@given(st.lists(TURNS, max_size=8), st.sampled_from([NEW, OLD, BUDGET]))
def test_every_conversation_is_one_the_vendor_takes(said: list[dict[str, Any]], model: str) -> None:
    """In any order: the SDK's types hold, turns alternate, results come first, no text is blank."""
    body = native(model, messages=[*said, USER], tools=[WEATHER])
    judge(body)
    roles = [turn["role"] for turn in body["messages"]]
    assert roles[0] == "user"
    assert all(one != other for one, other in pairwise(roles))
    for turn in body["messages"]:
        kinds = [block["type"] for block in turn["content"]]
        assert kinds == sorted(kinds, key=lambda kind: kind != "tool_result")
        assert all(block["text"].strip() for block in turn["content"] if block["type"] == "text")
