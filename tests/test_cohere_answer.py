"""Answers from Cohere, made with its SDK's types and read with those of OpenAI's."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest
from cohere import V2ChatResponse, V2ChatStreamResponse
from cohere.types import EmbedByTypeResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from pydantic import TypeAdapter

from llmproxy.dialects.chat_answer import AnswerIdentity
from llmproxy.errors import Failure, UpstreamBroken, UpstreamCut, UpstreamError, UpstreamRefused
from llmproxy.providers.cohere.stream import CohereStream
from llmproxy.request import Operation, Request
from llmproxy.usage import Usage
from tests.providers import request
from tests.test_cohere_request import MODEL, SHELL, USER, WEATHER, cohere
from tests.vendor_streams import cut, decoded, heard, mutated, outcome, sse

USAGE = {
    "billed_units": {"input_tokens": 10, "output_tokens": 5},
    "tokens": {"input_tokens": 500, "output_tokens": 7},
    "cached_tokens": 4,
}
ASKED = request({"model": MODEL, "messages": [USER], "tools": [WEATHER, SHELL]})
TEXT = {"type": "text", "text": "Yes, Rome."}
THINKING = {"type": "thinking", "thinking": "Hm."}
SOURCES = [
    {"type": "document", "id": "doc:0", "document": {"id": "doc:0", "title": "Cities", "url": "https://example.com/a"}},
    {"type": "tool", "id": "tool:0", "tool_output": {"temperature": "20"}},
]


def native(message: dict[str, Any], finish: str = "COMPLETE", **members: Any) -> dict[str, Any]:
    """A whole answer as Cohere would write it, once its SDK has found it right."""
    answer = {
        "id": "c1",
        "finish_reason": finish,
        "message": {"role": "assistant", **message},
        "usage": USAGE,
        **members,
    }
    V2ChatResponse.model_validate(answer)
    return answer


def answered(document: dict[str, Any], asked: Request = ASKED) -> ChatCompletion:
    """What the client's SDK reads."""
    return ChatCompletion.model_validate_json(cohere().answer(asked, orjson.dumps(document), document), strict=True)


def call(call_id: str, name: str = "weather", arguments: str | None = '{"city": 1.0}') -> dict[str, Any]:
    """A tool call as Cohere writes them."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_text_and_thinking() -> None:
    """Text is content, thinking stands beside it; the model is the one asked for."""
    completion = answered(native({"content": [THINKING, TEXT, TEXT]}))
    message = completion.choices[0].message
    assert completion.model == MODEL
    assert completion.id.startswith("chatcmpl-")
    assert message.content == "Yes, Rome.Yes, Rome."
    assert (message.model_extra or {})["reasoning_content"] == "Hm."


def test_calls_with_their_plan() -> None:
    """Parallel calls keep their ids; a plan is what the assistant says; no arguments are an empty object."""
    calls = [call("a"), call("b", "now", None), call("c", "shell", '{"input": "ls"}')]
    choice = answered(native({"tool_plan": "Let me look.", "tool_calls": calls}, "TOOL_CALL")).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
    made = choice.message.tool_calls or []
    assert [one.id for one in made] == ["a", "b", "c"]
    assert [one.function.arguments for one in made if one.type == "function"] == ['{"city": 1.0}', "{}"]
    assert [one.custom.input for one in made if one.type == "custom"] == ["ls"]


def test_citations_are_annotations() -> None:
    """Places count characters of the joined text, whatever stands before the cited chunk; thoughts are not cited."""
    citations = [
        {"start": 5, "end": 9, "text": "Rome", "sources": SOURCES, "content_index": 2, "type": "TEXT_CONTENT"},
        {"start": 0, "end": 2, "text": "Hm", "sources": SOURCES, "content_index": 0, "type": "THINKING_CONTENT"},
    ]
    greeting = {"type": "text", "text": "Hé! "}
    message = answered(native({"content": [THINKING, greeting, TEXT], "citations": citations})).choices[0].message
    found = [annotation.url_citation for annotation in message.annotations or []]
    assert [(one.title, one.url) for one in found] == [("Cities", "https://example.com/a"), ("tool:0", "")]
    assert {(message.content or "")[one.start_index : one.end_index] for one in found} == {"Rome"}


@pytest.mark.parametrize(
    ("finish", "message", "expected", "own"),
    [
        ("COMPLETE", {"content": [TEXT]}, "stop", None),
        ("STOP_SEQUENCE", {"content": [TEXT]}, "stop", None),
        ("MAX_TOKENS", {"content": [TEXT]}, "length", None),
        ("TOOL_CALL", {"tool_calls": [call("a")]}, "tool_calls", None),
        ("COMPLETE", {"tool_calls": [call("a")]}, "tool_calls", None),
        ("ERROR_TOXIC", {"content": []}, "content_filter", None),
        ("ERROR", {"content": [TEXT]}, "stop", "ERROR"),
        ("SOMETHING_NEW", {"content": [TEXT]}, "stop", "SOMETHING_NEW"),
    ],
)
def test_finish_reasons(finish: str, message: dict[str, Any], expected: str, own: str | None) -> None:
    """Each reason has OpenAI's word; where that says less, Cohere's own stands beside it."""
    choice = answered(native(message, finish)).choices[0]
    assert choice.finish_reason == expected
    assert (choice.model_extra or {}).get("native_finish_reason") == own


@pytest.mark.parametrize(
    ("finish", "failure", "status"), [("ERROR", Failure.BROKEN, 502), ("TIMEOUT", Failure.TIMEOUT, 504)]
)
def test_an_error_without_output_is_one(finish: str, failure: Failure, status: int) -> None:
    """An answer that ends in error before it began can be asked for elsewhere."""
    with pytest.raises(UpstreamRefused) as caught:
        answered(native({"content": []}, finish))
    assert (caught.value.failure, caught.value.http_status) == (failure, status)


def test_usage_is_what_is_billed() -> None:
    """Cohere's own instructions are counted and not charged: what is charged is what is reported, once."""
    body = cohere().answer(ASKED, b"", native({"content": [TEXT]}))
    usage = cohere().usage(orjson.loads(body))
    assert usage == Usage(uncached_input_tokens=6, cache_read_input_tokens=4, text_output_tokens=5)
    assert usage is not None
    assert usage.total_tokens == 15


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"tokens": {"input_tokens": 3.0, "output_tokens": 2.0}}, (3, 2)),
        ({"billed_units": {}, "tokens": {"input_tokens": 3}}, (3, 0)),
        ({"billed_units": {"input_tokens": -3, "output_tokens": 2}}, (0, 2)),
        ({"tokens": {}}, None),
        (None, None),
    ],
)
def test_usage_that_is_hardly_one(usage: Any, expected: tuple[int, int] | None) -> None:
    """Counts may be missing or impossible; nothing is counted that was not told."""
    document = native({"content": [TEXT]}) | {"usage": usage}
    completion = answered(document)
    found = completion.usage and (completion.usage.prompt_tokens, completion.usage.completion_tokens)
    assert found == expected


def test_log_probabilities() -> None:
    """Each piece of text has its own."""
    whole = {"text": "Yé", "token_ids": [1], "logprobs": [-0.5]}
    items = [whole, {"text": "s", "token_ids": [2, 3], "logprobs": [-1, -2]}]
    logprobs = answered(native({"content": [TEXT]}, logprobs=items)).choices[0].logprobs
    assert logprobs is not None
    assert [(one.token, one.logprob) for one in logprobs.content or []] == [("Yé", -0.5), ("s", -3.0)]


@pytest.mark.parametrize(
    ("status", "body", "failure", "client_status"),
    [
        (401, {"message": "invalid api token"}, Failure.AUTH, 502),
        (404, {"message": "model 'x' not found"}, Failure.MODEL, 404),
        (429, {"message": "You are using a Trial key"}, Failure.RATE_LIMIT, 429),
        (422, {"message": "invalid type"}, Failure.INVALID_REQUEST, 400),
        (400, {"message": "too many tokens: total must be at most 4096"}, Failure.CONTEXT_LENGTH, 400),
        (498, {"message": "blocked output"}, Failure.CONTENT_POLICY, 400),
        (499, {"message": "cancelled"}, Failure.INVALID_REQUEST, 400),
        (503, {}, Failure.OVERLOADED, 503),
        (504, {"message": "timeout"}, Failure.TIMEOUT, 504),
    ],
)
def test_error_classes(status: int, body: dict[str, Any], failure: Failure, client_status: int) -> None:
    """Cohere's errors fall into the classes that failover knows; 498 is its word filter."""
    error = cohere().error(status, {}, orjson.dumps(body))
    assert (error.failure, error.http_status) == (failure, client_status)


@pytest.mark.parametrize("document", [{"message": "internal error", "id": "x"}, {}, {"message": None}])
def test_what_is_no_answer_is_an_error(document: dict[str, Any]) -> None:
    """Trap 22: a 200 without a message is no answer."""
    with pytest.raises(UpstreamBroken):
        answered(document)


# Embeddings

VECTORS = {
    "id": "e1",
    "response_type": "embeddings_by_type",
    "embeddings": {"float": [[0.5, -1.0], [1.0, 0.0]]},
    "texts": ["a", "b"],
    "meta": {"billed_units": {"input_tokens": 2}},
}


def embedded(document: dict[str, Any], **members: Any) -> dict[str, Any]:
    """The list of embeddings for two texts."""
    asked = request({"model": "embed-v4.0", "input": ["a", "b"], **members}, Operation.EMBEDDINGS)
    answer: dict[str, Any] = orjson.loads(cohere().answer(asked, b"", document))
    return answer


def test_embeddings_keep_their_order() -> None:
    """Trap 45: vectors are numbered in the order of the texts, and usage is what is billed."""
    EmbedByTypeResponse.model_validate(VECTORS)
    answer = CreateEmbeddingResponse.model_validate(embedded(VECTORS))
    assert [(one.index, one.embedding) for one in answer.data] == [(0, [0.5, -1.0]), (1, [1.0, 0.0])]
    assert (answer.usage.prompt_tokens, answer.model) == (2, "embed-v4.0")
    packed = embedded(VECTORS, encoding_format="base64")["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -1.0)


@pytest.mark.parametrize(
    "embeddings", [None, {}, {"float": []}, {"float": [[0.5]]}, {"float": [[0.5], "x"]}, {"float": [[0.5], ["x"]]}]
)
def test_a_missing_vector_is_an_error(embeddings: Any) -> None:
    """There is one vector for each text, or no answer."""
    with pytest.raises(UpstreamBroken):
        embedded({**VECTORS, "embeddings": embeddings})


# Streams


def event(kind: str, message: dict[str, Any] | None = None, index: int | None = None, **members: Any) -> dict[str, Any]:
    """An event as Cohere would write it, once its SDK has found it right."""
    made: dict[str, Any] = {"type": kind, **members}
    if message is not None:
        made["delta"] = {"message": message}
    if index is not None:
        made["index"] = index
    TypeAdapter(V2ChatStreamResponse).validate_python(made)
    return made


def text(piece: str, index: int = 0) -> dict[str, Any]:
    """A piece of text."""
    return event("content-delta", {"content": {"text": piece}}, index)


def end(finish: str = "COMPLETE", **members: Any) -> dict[str, Any]:
    """The last event."""
    return event("message-end", delta={"finish_reason": finish, "usage": USAGE, **members})


START = event(
    "message-start", {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}, id="c1"
)
TEXTS = sse(
    START,
    event("content-start", {"content": {"type": "thinking", "thinking": ""}}, 0),
    event("content-delta", {"content": {"thinking": "Hm."}}, 0),
    event("content-end", index=0),
    event("content-start", {"content": {"type": "text", "text": ""}}, 1),
    text("Hé, ", 1),
    text("Rome.", 1),
    event(
        "citation-start",
        {"citations": {"start": 4, "end": 8, "text": "Rome", "sources": SOURCES, "type": "TEXT_CONTENT"}},
        0,
    ),
    event("citation-end", index=0),
    event("content-end", index=1),
    end(),
    done=False,
)
CALLS = sse(
    START,
    event("tool-plan-delta", {"tool_plan": "Let me "}),
    event("tool-plan-delta", {"tool_plan": "look."}),
    event("tool-call-start", {"tool_calls": call("a", arguments="")}, 0),
    event("tool-call-delta", {"tool_calls": {"function": {"arguments": '{"city":'}}}, 0),
    event("tool-call-delta", {"tool_calls": {"function": {"arguments": " 1.0}"}}}, 0),
    event("tool-call-end", index=0),
    event("tool-call-start", {"tool_calls": call("b", "now", "")}, 1),
    event("tool-call-end", index=1),
    event("tool-call-start", {"tool_calls": call("c", "shell", "")}, 2),
    event("tool-call-delta", {"tool_calls": {"function": {"arguments": '{"input": "ls"}'}}}, 2),
    event("tool-call-end", index=2),
    end("TOOL_CALL"),
)


def stream() -> CohereStream:
    """A decoder."""
    return CohereStream(AnswerIdentity("chatcmpl-1", MODEL, 1), frozenset({"shell"}))


def test_a_streamed_text() -> None:
    """Thinking, text and citations come in their turn; usage and the end mark stand last, `[DONE]` or not."""
    answer = heard(decoded(stream(), [TEXTS]))
    assert (answer.reasoning, answer.text) == ("Hm.", "Hé, Rome.")
    assert (answer.finish_reasons, answer.roles, answer.is_done) == (["stop"], ["assistant"], True)
    cited = [one["url_citation"] for one in answer.annotations]
    assert {answer.text[one["start_index"] : one["end_index"]] for one in cited} == {"Rome"}
    usage = cohere().usage({"usage": answer.usage.model_dump()})
    assert usage == Usage(uncached_input_tokens=6, cache_read_input_tokens=4, text_output_tokens=5)


def test_streamed_calls_are_counted_from_zero() -> None:
    """Trap 1: the plan before the calls does not shift them. Trap 2: no arguments are an empty object."""
    answer = heard(decoded(stream(), [CALLS]))
    assert answer.text == "Let me look."
    assert [answer.calls[index]["id"] for index in range(3)] == ["a", "b", "c"]
    assert [answer.calls[index]["arguments"] for index in range(2)] == ['{"city": 1.0}', "{}"]
    assert answer.calls[2]["custom"] == {"name": "shell", "input": "ls"}
    assert answer.finish_reasons == ["tool_calls"]


def test_a_call_that_was_not_closed_is_closed_at_the_end() -> None:
    """Trap 2, where the vendor forgets the call's end."""
    answer = heard(
        decoded(stream(), [sse(event("tool-call-start", {"tool_calls": call("a", arguments="")}, 0), end())])
    )
    assert answer.calls[0]["arguments"] == "{}"
    assert answer.finish_reasons == ["tool_calls"]


def test_an_empty_answer_has_its_role_and_finish() -> None:
    """Trap 28: also an answer without content is one."""
    answer = heard(decoded(stream(), [sse(START, end("MAX_TOKENS"))]))
    assert (answer.roles, answer.finish_reasons, answer.text) == (["assistant"], ["length"], "")


def test_comments_and_unknown_events_are_ignored() -> None:
    """Trap 19."""
    odd = b": hello\n\n\n\nevent: x\n\n" + sse({"type": "debug", "prompt": "x"}, {"no": "type"}, done=False)
    assert heard(decoded(stream(), [odd, TEXTS])).text == "Hé, Rome."


@pytest.mark.parametrize("whole", [TEXTS, CALLS])
def test_a_stream_that_breaks_off_is_cut(whole: bytes) -> None:
    """Trap 24: without its end there is an error, also where `[DONE]` follows, never a stop nobody sent."""
    before_end = whole[: whole.find(b'{"type":"message-end"') - len(b"data: ")]
    for broken in (b"", before_end, before_end + b"data: [DONE]\n\n", whole[: len(before_end) + 30]):
        decoder = stream()
        list(decoder.feed(broken))
        with pytest.raises(UpstreamCut):
            list(decoder.finish())


def test_an_end_without_its_blank_line_is_an_end() -> None:
    """The last event counts when it is whole."""
    assert heard(decoded(stream(), [TEXTS.rstrip(b"\n")])).is_done


@pytest.mark.parametrize(
    ("last", "failure"),
    [
        (end("ERROR", error="the model is out"), Failure.BROKEN),
        (end("TIMEOUT"), Failure.TIMEOUT),
        ({"error": {"message": "rate", "code": "429"}}, Failure.RATE_LIMIT),
    ],
)
def test_an_error_in_the_stream_is_one(last: dict[str, Any], failure: Failure) -> None:
    """Trap 22: what ends in an error is never a clean stop."""
    decoder = stream()
    list(decoder.feed(sse(START, text("a"), done=False)))
    with pytest.raises(UpstreamRefused) as caught:
        list(decoder.feed(sse(last)))
    assert caught.value.failure is failure


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {nope\n\n",
        b"data: [1]\n\n",
        sse({"type": "tool-call-delta", "index": 3, "delta": {"message": {"tool_calls": {"function": {}}}}}),
    ],
)
def test_garbage_is_broken(garbage: bytes) -> None:
    """What makes no sense is not passed on."""
    with pytest.raises(UpstreamBroken):
        list(stream().feed(garbage))


@pytest.mark.parametrize("whole", [TEXTS, CALLS])
@given(places=st.lists(st.integers(min_value=0), max_size=6))
def test_any_split_gives_the_same_bytes(whole: bytes, places: list[int]) -> None:
    """Trap 18: cut inside a character, a line end or a number, the answer is the same."""
    assert decoded(stream(), cut(whole, places)) == decoded(stream(), [whole])


def test_one_byte_at_a_time() -> None:
    """Trap 18, at its worst."""
    assert decoded(stream(), [bytes([byte]) for byte in CALLS]) == decoded(stream(), [CALLS])


@settings(max_examples=300)
@given(broken=st.sampled_from([TEXTS, CALLS]).flatmap(mutated), places=st.lists(st.integers(min_value=0)))
def test_mutated_streams_end_in_an_answer_or_an_error(broken: bytes, places: list[int]) -> None:
    """Whatever comes, there is an end, and only errors of ours."""
    assert outcome(stream, cut(broken, places)) in {"complete", "UpstreamBroken", "UpstreamCut", "UpstreamRefused"}


MEMBERS = ("message", "content", "tool_calls", "function", "id", "type", "text", "citations", "sources", "start", "end")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON, JSON)
def test_any_document_is_an_answer_or_an_error(message: Any, finish: Any, usage: Any) -> None:
    """A whole answer of any shape gives a completion or an error of ours."""
    document = {"message": message, "finish_reason": finish, "usage": usage, "logprobs": usage}
    try:
        answer = cohere().answer(ASKED, b"", document)
    except UpstreamError:
        return
    ChatCompletion.model_validate_json(answer)
