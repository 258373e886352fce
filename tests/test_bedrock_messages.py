"""Messages as Bedrock is sent them; botocore's description of Converse judges every body."""

from __future__ import annotations

import base64
import json

import pytest

from llmproxy.errors import BadRequest
from llmproxy.request import Document
from tests.bedrock import (
    CLAUDE_4_5,
    CLAUDE_5_5,
    NOVA,
    SCHEMA,
    calls,
    contents,
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


def test_system_messages_become_system_blocks() -> None:
    """Leading system and developer messages are instructions; a later one is what a user says, or a turn of its own."""
    talk = ({"role": "system", "content": "A"}, {"role": "developer", "content": [{"type": "text", "text": "B"}]})
    later = {"role": "system", "content": "C"}
    body = converse(NOVA, *talk, user(), {"role": "assistant", "content": "Yes?"}, later)
    assert body["system"] == [{"text": "A"}, {"text": "B"}]
    assert body["messages"][-1] == {"role": "user", "content": [{"text": "C"}]}
    body = converse("us.anthropic.claude-opus-5", user(), {"role": "assistant", "content": "Yes?"}, later, user())
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "system", "user"]


def test_turns_alternate_and_begin_with_the_user() -> None:
    """Messages of one role in a row are one turn; where the assistant speaks first, a user's turn stands before it."""
    talk = [{"role": "assistant", "content": "Hello"}, user("a"), user(["b", {"type": "text", "text": "c"}])]
    assert contents(CLAUDE_4_5, *talk) == [
        ("user", [{"text": "."}]),
        ("assistant", [{"text": "Hello"}]),
        ("user", [{"text": "a"}, {"text": "b"}, {"text": "c"}]),
    ]


def test_blank_texts_are_left_out() -> None:
    """Bedrock refuses texts of nothing but white space, and turns without a block."""
    talk = [user("a"), {"role": "assistant", "content": ""}, user([{"type": "text", "text": " \n"}]), user("b")]
    assert contents(CLAUDE_4_5, *talk) == [("user", [{"text": "a"}, {"text": "b"}])]
    with pytest.raises(BadRequest) as raised:
        prepare(CLAUDE_4_5, user(""))
    assert raised.value.param == "messages"


def test_instructions_alone_are_what_the_user_says() -> None:
    """A conversation of system messages only has somebody to answer."""
    body = converse(CLAUDE_4_5, {"role": "system", "content": "Say hi."})
    assert body["messages"] == [{"role": "user", "content": [{"text": "Say hi."}]}]
    assert "system" not in body


def test_all_tool_results_of_a_turn_go_into_one_user_message_before_any_text() -> None:
    """Trap 3: results split over messages, or text before them, are refused."""
    talk = [user(), calls("a", "b", content="Let me see."), user("Hurry."), result("a"), result("b", ["sun", "shine"])]
    assert contents(CLAUDE_4_5, *talk, tools=[tool()])[1:] == [
        (
            "assistant",
            [
                {"text": "Let me see."},
                {"toolUse": {"toolUseId": "a", "name": "weather", "input": {"city": "Oslo"}}},
                {"toolUse": {"toolUseId": "b", "name": "weather", "input": {"city": "Oslo"}}},
            ],
        ),
        (
            "user",
            [
                {"toolResult": {"toolUseId": "a", "content": [{"text": "rain"}]}},
                {"toolResult": {"toolUseId": "b", "content": [{"text": "sun"}, {"text": "shine"}]}},
                {"text": "Hurry."},
            ],
        ),
    ]


def test_a_result_without_content_says_so() -> None:
    """A tool that gave nothing still has a result, which may not be blank."""
    turns = contents(CLAUDE_4_5, user(), calls("a"), result("a", ""), tools=[tool()])
    assert turns[-1][1] == [{"toolResult": {"toolUseId": "a", "content": [{"text": "(no output)"}]}}]


@pytest.mark.parametrize("given", ["call|1/2", "ü", "x" * 100, ""])
def test_ids_of_other_vendors_are_made_to_fit(given: str) -> None:
    """Ids have 64 letters at most; a call and its result get the same one, and other ids another."""
    turns = contents(CLAUDE_4_5, user(), calls(given, given + "."), result(given), result(given + "."), tools=[tool()])
    made = [block["toolUse"]["toolUseId"] for block in turns[1][1]]
    assert [block["toolResult"]["toolUseId"] for block in turns[2][1]] == made
    assert len(set(made)) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"), [("", {}), ("[1]", {"_raw": "[1]"}), ('{"a"', {"_raw": '{"a"'}), ("{}", {})]
)
def test_arguments_that_are_no_object_do_not_break_the_next_turn(arguments: str, expected: Document) -> None:
    """What a model once wrote as arguments goes back as an object."""
    turns = contents(CLAUDE_4_5, user(), calls("a", arguments=arguments), result("a"), tools=[tool()])
    assert turns[1][1][0]["toolUse"]["input"] == expected


def test_numbers_in_arguments_keep_their_spelling() -> None:
    """Large integers and 1.0 go back as they came."""
    sent = prepare(CLAUDE_4_5, user(), calls("a", arguments='{"n":12345678901234567890123,"m":1.0}'), tools=[tool()])
    assert b'"input":{"n":12345678901234567890123,"m":1.0}' in sent.body


def test_calls_of_old_are_told_as_text_where_there_are_no_tools() -> None:
    """Blocks of tools need a toolConfig; without one, the conversation still says what happened."""
    body = converse(CLAUDE_4_5, user(), calls("a"), result("a"), tool_choice="none", tools=[tool()])
    assert "toolConfig" not in body
    assert "toolUse" not in json.dumps(body)
    assert "rain" in json.dumps(body["messages"][-1])
    assert "weather" in json.dumps(body["messages"][1])


def test_a_beginning_of_the_answer_goes_where_it_is_taken() -> None:
    """Claude goes on from a text that does not end in white space; newer models not at all, which is said at once."""
    begun = {"role": "assistant", "content": "It is \n"}
    assert contents(CLAUDE_4_5, user(), begun)[-1] == ("assistant", [{"text": "It is"}])
    with pytest.raises(BadRequest) as raised:
        prepare(CLAUDE_5_5, user(), begun)
    assert raised.value.param == "messages"


def test_names_of_speakers_are_left_out() -> None:
    """Converse knows roles only."""
    assert prepare(NOVA, {**user(), "name": "Ann"}).dropped == ("messages.name",)


# Media


def test_an_image_is_sent_as_what_it_is() -> None:
    """The bytes tell an image's format, whatever the data URL declares."""
    declared_wrong = PNG_URL.replace("image/png", "image/jpg")
    part = {"type": "image_url", "image_url": {"url": declared_wrong}}
    blocks = contents(CLAUDE_4_5, user([part]))[0][1]
    assert blocks == [{"image": {"format": "png", "source": {"bytes": base64.b64encode(PNG).decode()}}}]


def test_an_image_elsewhere_must_be_in_s3() -> None:
    """Bedrock fetches nothing from the web, and the error names the part."""
    part = {"type": "image_url", "image_url": {"url": "s3://bucket-1/cat.jpg"}}
    image = contents(NOVA, user([part]))[0][1][0]["image"]
    assert image == {"format": "jpeg", "source": {"s3Location": {"uri": "s3://bucket-1/cat.jpg"}}}
    with pytest.raises(BadRequest) as raised:
        prepare(NOVA, user(["Look:", {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]))
    assert raised.value.param == "messages[0].content[1]"


def test_documents_have_distinct_harmless_names_and_a_text_beside_them() -> None:
    """Bedrock refuses other characters in names, the same name twice, and a document on its own."""
    files = [
        {"type": "file", "file": {"file_data": PDF_URL, "filename": "a  b_<c>.pdf"}},
        {"type": "file", "file": {"file_data": PDF_URL, "filename": "a b c.pdf"}},
        {"type": "file", "file": {"file_data": PDF_URL}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,YSxi", "filename": "table.csv"}},
    ]
    blocks = contents(CLAUDE_4_5, user(files))[0][1]
    documents = [(block["document"]["name"], block["document"]["format"]) for block in blocks[:-1]]
    assert documents == [("a b c", "pdf"), ("a b c 2", "pdf"), ("document", "pdf"), ("table", "csv")]
    assert blocks[-1] == {"text": "."}


def test_a_sound_is_an_audio_block() -> None:
    """Which models can hear is the vendor's to say."""
    part = {"type": "input_audio", "input_audio": {"data": "UklGRgAAAABXQVZF", "format": "wav"}}
    blocks = contents("mistral.voxtral-mini-3b-2507", user([part]))[0][1]
    assert blocks == [{"audio": {"format": "wav", "source": {"bytes": "UklGRgAAAABXQVZF"}}}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_id": "file-123"}},
        {"type": "file", "file": {"file_data": "data:application/zip;base64,UEsDBA==", "filename": "a.zip"}},
        {"type": "image_url", "image_url": {"url": "data:image/tiff;base64,SUkqAA=="}},
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(part: Document) -> None:
    """A part that Bedrock cannot take is a 400 that names it."""
    with pytest.raises(BadRequest) as raised:
        prepare(CLAUDE_4_5, user([part]))
    assert raised.value.param == "messages[0].content[0]"


# Thoughts


def test_signed_thoughts_go_back_first_and_unchanged() -> None:
    """Claude's thoughts are replayed before all else, byte for byte, hidden ones included."""
    thoughts = [
        {"type": "thinking", "thinking": "Hmm…\n", "signature": "c2ln/+=="},
        {"type": "redacted_thinking", "data": "aGlkZGVu"},
    ]
    turns = contents(
        CLAUDE_4_5, user(), calls("a", content="So.", thinking_blocks=thoughts), result("a"), tools=[tool()]
    )
    assert turns[1][1][:3] == [
        {"reasoningContent": {"reasoningText": {"text": "Hmm…\n", "signature": "c2ln/+=="}}},
        {"reasoningContent": {"redactedContent": "aGlkZGVu"}},
        {"text": "So."},
    ]


@pytest.mark.parametrize(
    ("model", "thought"),
    [
        (CLAUDE_4_5, {"type": "thinking", "thinking": "Hmm"}),
        (CLAUDE_4_5, {"type": "thinking", "thinking": "Hmm", "signature": "x", "issuer": "another"}),
        (NOVA, {"type": "thinking", "thinking": "Hmm", "signature": "x"}),
    ],
)
def test_thoughts_of_others_are_left_out(model: str, thought: Document) -> None:
    """Thoughts without Claude's signature, or for another model, would be refused."""
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hmm", "thinking_blocks": [thought]}
    assert contents(model, user(), said, user())[1] == ("assistant", [{"text": "Yes."}])


def test_thoughts_alone_are_no_turn() -> None:
    """Thoughts that led to nothing are nothing to go on from."""
    thought = {"type": "thinking", "thinking": "Hmm", "signature": "x"}
    said = {"role": "assistant", "content": None, "thinking_blocks": [thought]}
    assert contents(CLAUDE_4_5, user("a"), said, user("b")) == [("user", [{"text": "a"}, {"text": "b"}])]
