"""Answers from Mistral, made with its SDK's types and read with those of OpenAI's."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistralai.client.models import ChatCompletionResponse, CompletionChunk, EmbeddingResponse
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from llmproxy.errors import Failure, UpstreamBroken, UpstreamCut, UpstreamError, UpstreamRefused
from llmproxy.exchange import Target
from llmproxy.providers.mistral.stream import MistralStream
from llmproxy.request import Operation
from llmproxy.usage import Usage
from tests.providers import request
from tests.test_mistral_request import SHELL, USER, WEATHER, mistral
from tests.vendor_streams import cut, decoded, heard, mutated, outcome, sse

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 4}}
ASKED = request({"model": "mistral-large-latest", "messages": [USER]})
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm, "}, {"type": "text", "text": "so."}]}
TEXT = {"type": "text", "text": "Yes."}


def native(message: dict[str, Any], finish: str = "stop", **members: Any) -> dict[str, Any]:
    """A whole answer as Mistral would write it, once its SDK has found it right."""
    choices = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}]
    base = {"id": "c1", "object": "chat.completion", "created": 1, "model": "mistral-large-2512", "usage": USAGE}
    answer = {**base, "choices": choices, **members}
    ChatCompletionResponse.model_validate(answer)
    return answer


def answered(document: dict[str, Any], asked: Any = ASKED) -> ChatCompletion:
    """What the client's SDK reads."""
    return ChatCompletion.model_validate_json(mistral().answer(asked, orjson.dumps(document), document), strict=True)


def call(**members: Any) -> dict[str, Any]:
    """A tool call as Mistral writes them."""
    return {"id": "abcDEF123", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}, "index": 0, **members}


def test_a_plain_answer_keeps_its_bytes() -> None:
    """What is OpenAI's format already passes untouched."""
    document = native({"content": "Hi", "tool_calls": None}, usage=USAGE)
    del document["choices"][0]["message"]["tool_calls"]
    body = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    assert mistral().answer(ASKED, body, document) is body
    assert answered(document).choices[0].message.content == "Hi"


def test_thinking_stands_beside_the_text() -> None:
    """A list of chunks becomes text and `reasoning_content`; references are left out."""
    reference = {"type": "reference", "reference_ids": [1]}
    message = answered(native({"content": [THINKING, TEXT, reference, TEXT]})).choices[0].message
    assert message.content == "Yes.Yes."
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"] == "Hm, so."
    assert "thinking_blocks" not in message.model_extra


def test_signed_thinking_makes_the_round_trip() -> None:
    """What the client got back it sends, and Mistral gets its own chunk again, signature included."""
    signed = {**THINKING, "signature": "s1"}
    message = answered(native({"content": [signed, TEXT]})).choices[0].message
    history = request({"model": "m", "messages": [USER, message.model_dump(exclude_none=True), USER]})
    sent = mistral().prepare(history, Target("mistral", "mistral-medium-3-5"), {})
    assert orjson.loads(sent.body)["messages"][1]["content"] == [signed, TEXT]


@pytest.mark.parametrize(("arguments", "expected"), [({"a": 1}, '{"a":1}'), ('{"a": 1.0}', '{"a": 1.0}'), ("", "{}")])
def test_calls_have_ids_and_arguments_as_text(arguments: Any, expected: str) -> None:
    """Arguments come as text or as an object, an id may be "null": the client sees one form."""
    calls = [
        call(function={"name": "weather", "arguments": arguments}),
        call(id="null", function={"name": "weather", "arguments": arguments}, index=1),
    ]
    choice = answered(native({"content": "", "tool_calls": calls}, "tool_calls")).choices[0]
    assert choice.finish_reason == "tool_calls"
    made = choice.message.tool_calls or []
    assert [one.type for one in made] == ["function", "function"]
    assert made[0].id == "abcDEF123"
    assert made[1].id.startswith("call_")
    assert all(one.function.arguments == expected for one in made if one.type == "function")


def test_a_custom_tool_is_answered_as_one() -> None:
    """What went out as a function comes back as the custom tool it was."""
    asked = request({"model": "m", "messages": [USER], "tools": [SHELL, WEATHER]})
    calls = [call(function={"name": "shell", "arguments": '{"input": "ls"}'}), call(id="abcDEF124")]
    made = answered(native({"content": "", "tool_calls": calls}, "tool_calls"), asked).choices[0].message.tool_calls
    assert made is not None
    assert made[0].type == "custom"
    assert made[0].custom.input == "ls"
    assert made[1].type == "function"


@pytest.mark.parametrize(
    ("finish", "message", "expected", "own"),
    [
        ("stop", {"content": "a"}, "stop", None),
        ("length", {"content": "a"}, "length", None),
        ("model_length", {"content": "a"}, "length", "model_length"),
        ("tool_calls", {"tool_calls": [call()]}, "tool_calls", None),
        ("stop", {"tool_calls": [call()]}, "tool_calls", "stop"),
        ("error", {"content": "a"}, "stop", "error"),
        ("something_new", {"content": "a"}, "stop", "something_new"),
    ],
)
def test_finish_reasons(finish: str, message: dict[str, Any], expected: str, own: str | None) -> None:
    """Each reason has OpenAI's word; where that says less, Mistral's own stands beside it."""
    choice = answered(native({"content": "", **message}, finish)).choices[0]
    assert choice.finish_reason == expected
    assert (choice.model_extra or {}).get("native_finish_reason") == own


def test_an_error_without_output_is_one() -> None:
    """An answer that ends in error before it began can be asked for elsewhere."""
    with pytest.raises(UpstreamRefused) as caught:
        answered(native({"content": ""}, "error"))
    assert (caught.value.failure, caught.value.http_status) == (Failure.BROKEN, 502)


def test_usage_adds_up() -> None:
    """Trap 14: the prompt count holds the cached tokens, which are counted once."""
    usage = mistral().usage({"usage": USAGE})
    assert usage == Usage(uncached_input_tokens=6, cache_read_input_tokens=4, text_output_tokens=5)


TOO_LONG = "Prompt contains 9 tokens, too large for model with 8 maximum context length"


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (401, {"message": "Unauthorized", "request_id": "r"}, Failure.AUTH),
        (429, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited"}, Failure.RATE_LIMIT),
        (422, {"detail": [{"loc": ["body", "temperature"], "msg": "too high"}]}, Failure.INVALID_REQUEST),
        (400, {"object": "error", "message": TOO_LONG, "code": "3051"}, Failure.CONTEXT_LENGTH),
        (400, {"object": "error", "message": "'medium' is not supported", "code": "3051"}, Failure.INVALID_REQUEST),
        (400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model"}, Failure.MODEL),
        (503, {}, Failure.OVERLOADED),
    ],
)
def test_error_classes(status: int, body: dict[str, Any], failure: Failure) -> None:
    """Mistral's errors fall into the classes that failover knows."""
    error = mistral().error(status, {}, orjson.dumps(body))
    assert error.failure is failure


def test_an_error_inside_a_200_is_one() -> None:
    """Trap 22: an error object is never an answer."""
    with pytest.raises(UpstreamRefused):
        answered({"object": "error", "message": "x", "type": "internal_error", "code": "1000"})
    with pytest.raises(UpstreamBroken):
        answered({"choices": "x"})


# Embeddings


def test_vectors_are_encoded_as_asked() -> None:
    """Trap 45: base64 asked is base64 given; otherwise the bytes pass."""
    document = {
        "id": "e1",
        "object": "list",
        "model": "mistral-embed",
        "usage": USAGE,
        "data": [{"object": "embedding", "embedding": [0.5, -1.0], "index": 0}],
    }
    EmbeddingResponse.model_validate(document)
    body = orjson.dumps(document)
    asked = {"model": "mistral-embed", "input": "a"}
    assert mistral().answer(request(asked, Operation.EMBEDDINGS), body, document) is body
    in_base64 = request({**asked, "encoding_format": "base64"}, Operation.EMBEDDINGS)
    answer = mistral().answer(in_base64, body, document)
    CreateEmbeddingResponse.model_validate({**orjson.loads(answer), "data": document["data"]})
    packed = orjson.loads(answer)["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -1.0)


# Streams


def event(delta: dict[str, Any], finish: str | None = None, index: int = 0, **members: Any) -> dict[str, Any]:
    """A chunk as Mistral would write it, once its SDK has found it right."""
    choices = [{"index": index, "delta": delta, "finish_reason": finish}]
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "mistral-large-2512"}
    chunk = {**base, "choices": choices, **members}
    CompletionChunk.model_validate(chunk)
    return chunk


OPENING = event({"role": "assistant", "content": ""})
TEXTS = sse(OPENING, event({"content": "Hé"}), event({"content": "llo"}), event({"content": ""}, "stop", usage=USAGE))
THOUGHTS = sse(
    OPENING,
    event({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm, "}]}]}),
    event({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "so."}], "signature": "s1"}]}),
    event({"content": [{"type": "text", "text": "Yes"}]}),
    event({"content": "."}, "length", usage=USAGE),
)
CALLS = sse(
    OPENING,
    event({"content": "Let me look."}),
    event(
        {"tool_calls": [call(), call(id="null", function={"name": "weather", "arguments": {"city": "Oslo"}}, index=1)]}
    ),
    event({"tool_calls": [call(id="abcDEF125", function={"name": "now", "arguments": ""}, index=2)]}),
    event({"content": ""}, "tool_calls", usage=USAGE),
)


def stream(custom: frozenset[str] = frozenset(), choices: int = 1) -> MistralStream:
    """A decoder."""
    return MistralStream(custom, choices)


def test_a_streamed_text() -> None:
    """Text passes, usage gets a chunk of its own, and the end mark stands last."""
    answer = heard(decoded(stream(), [TEXTS]))
    assert (answer.text, answer.finish_reasons, answer.roles) == ("Héllo", ["stop"], ["assistant"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 5)
    assert answer.is_done


def test_chunks_that_fit_keep_their_bytes() -> None:
    """A chunk in OpenAI's form passes as it came."""
    raw = sse(OPENING, event({"content": "a"}), done=False)
    assert b"".join(stream().feed(raw)) == raw


def test_streamed_thinking_stands_beside_the_text() -> None:
    """Deltas that are lists become text and reasoning; a signature comes with the whole of what it signs."""
    events = decoded(stream(), [THOUGHTS])
    answer = heard(events)
    assert (answer.reasoning, answer.text, answer.finish_reasons) == ("Hm, so.", "Yes.", ["length"])
    whole = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm, so."}], "signature": "s1"}
    assert orjson.dumps([whole]) in events


def test_streamed_calls_are_counted_from_zero() -> None:
    """Trap 1: text before the calls does not shift them. Trap 2: no arguments are an empty object."""
    answer = heard(decoded(stream(), [CALLS]))
    assert sorted(answer.calls) == [0, 1, 2]
    assert [answer.calls[index]["arguments"] for index in range(3)] == ['{"city": "Rome"}', '{"city":"Oslo"}', "{}"]
    assert answer.calls[0]["id"] == "abcDEF123"
    assert answer.calls[1]["id"].startswith("call_")
    assert answer.finish_reasons == ["tool_calls"]


def test_a_call_in_pieces() -> None:
    """Pieces with the same id, or with neither id nor name, belong to the call before."""
    pieces = sse(
        event({"tool_calls": [call(function={"name": "f", "arguments": '{"a"'})]}),
        event({"tool_calls": [call(function={"name": "f", "arguments": ": 1"})]}),
        event({"tool_calls": [call(id="null", function={"name": "", "arguments": "}"})]}),
        event({}, "tool_calls"),
    )
    assert heard(decoded(stream(), [pieces])).calls == {
        0: {"arguments": '{"a": 1}', "id": "abcDEF123", "type": "function", "name": "f"}
    }


def test_a_streamed_custom_tool_is_answered_as_one() -> None:
    """Its text is only known when the call is whole, so that it comes at the end."""
    pieces = sse(
        event({"tool_calls": [call(function={"name": "shell", "arguments": '{"input": "l'})]}),
        event({"tool_calls": [call(function={"name": "shell", "arguments": 's"}'})]}),
        event({}, "tool_calls"),
    )
    answer = heard(decoded(stream(frozenset({"shell"})), [pieces]))
    assert answer.calls[0]["custom"] == {"name": "shell", "input": "ls"}


def test_several_choices_end_on_their_own() -> None:
    """Trap 28: each choice has its role and its finish; the stream is whole when all are."""
    first, second = event({"content": "a"}, "stop"), event({"content": "b"}, "length", index=1)
    events = decoded(stream(choices=2), [sse(first, second, done=False)])
    assert heard(events, 0).text == "a"
    assert heard(events, 1).roles == ["assistant"]
    with pytest.raises(UpstreamCut):
        decoded(stream(choices=2), [sse(first, done=False)])


def test_comments_blank_lines_and_unknown_events_are_ignored() -> None:
    """Trap 19."""
    assert heard(decoded(stream(), [b": hello\n\n\n\nevent: ping\n\n", TEXTS])).text == "Héllo"


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [{"index": 0, "delta": None, "finish_reason": None}], "created": None},
        {"choices": [{"index": 0}]},
    ],
)
def test_odd_chunks_are_not_the_end(odd: dict[str, Any]) -> None:
    """Trap 17: empty choices and missing deltas neither crash nor end anything."""
    decoder = stream()
    list(decoder.feed(sse(OPENING, odd, done=False)))
    with pytest.raises(UpstreamCut):
        list(decoder.finish())


@pytest.mark.parametrize("kept", range(4))
def test_a_stream_that_breaks_off_is_cut(kept: int) -> None:
    """Trap 24: without a finish there is an error, never a stop nobody sent."""
    whole = TEXTS.split(b"\n\n")
    decoder = stream()
    if kept < 3:
        list(decoder.feed(b"\n\n".join(whole[:kept]) + b"\n\n"))
    else:
        list(decoder.feed(TEXTS[: TEXTS.find(b'"stop"')]))
    with pytest.raises(UpstreamCut):
        list(decoder.finish())


def test_a_finish_without_an_end_mark_is_an_end() -> None:
    """The answer was complete; usage and the end mark are still sent."""
    answer = heard(decoded(stream(), [TEXTS.removesuffix(b"data: [DONE]\n\n")]))
    assert answer.is_done
    assert answer.usage is not None


@pytest.mark.parametrize(
    "last",
    [
        b'data: {"object":"error","message":"x","type":"internal_error","code":"1000"}\n\n',
        b'data: {"error":{"message":"x"}}\n\n',
        sse(event({"content": ""}, "error"), done=False),
    ],
)
def test_an_error_in_the_stream_is_one(last: bytes) -> None:
    """Trap 22: what ends in an error is never a clean stop."""
    decoder = stream()
    list(decoder.feed(sse(OPENING, done=False)))
    with pytest.raises(UpstreamRefused):
        list(decoder.feed(last))


def test_garbage_is_broken() -> None:
    """An event that is no JSON object is not passed on."""
    for garbage in (b"data: {nope\n\n", b"data: [1]\n\n"):
        with pytest.raises(UpstreamBroken):
            list(stream().feed(garbage))


@pytest.mark.parametrize("whole", [TEXTS, THOUGHTS, CALLS])
@given(places=st.lists(st.integers(min_value=0), max_size=6))
def test_any_split_gives_the_same_answer(whole: bytes, places: list[int]) -> None:
    """Trap 18: cut inside a character, a line end or a number, the answer is the same."""
    one, many = heard(decoded(stream(), [whole])), heard(decoded(stream(), cut(whole, places)))
    for answer in (one, many):
        for made in answer.calls.values():
            made["id"] = made["id"][:5]
    assert one == many


def test_one_byte_at_a_time() -> None:
    """Trap 18, at its worst."""
    assert heard(decoded(stream(), [bytes([byte]) for byte in THOUGHTS])).text == "Yes."


@settings(max_examples=300)
@given(broken=st.sampled_from([TEXTS, THOUGHTS, CALLS]).flatmap(mutated), places=st.lists(st.integers(min_value=0)))
def test_mutated_streams_end_in_an_answer_or_an_error(broken: bytes, places: list[int]) -> None:
    """Whatever comes, there is an end, and only errors of ours."""
    assert outcome(stream, cut(broken, places)) in {"complete", "UpstreamBroken", "UpstreamCut", "UpstreamRefused"}


MEMBERS = ("message", "content", "tool_calls", "function", "id", "type", "thinking", "text", "finish_reason", "choices")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_document_is_an_answer_or_an_error(choices: Any) -> None:
    """A whole answer of any shape gives a completion or an error of ours."""
    document = {"id": "x", "choices": choices}
    try:
        answer = mistral().answer(ASKED, orjson.dumps(document), document)
    except UpstreamError:
        return
    assert isinstance(orjson.loads(answer), dict)
