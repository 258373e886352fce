"""Bedrock's answers as chat completions; botocore judges what comes in, the OpenAI SDK what goes out."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from openai.types import Embedding

from llmproxy.errors import BadRequest, Failure, UpstreamBroken, UpstreamError, UpstreamRefused
from llmproxy.exchange import Target
from llmproxy.request import Document, Operation
from llmproxy.usage import Usage
from tests.bedrock import (
    CLAUDE_4,
    CLAUDE_4_5,
    COHERE,
    NOVA,
    TITAN,
    answered,
    asked,
    bedrock,
    says,
)

FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": {"type": "object"}}}


def test_a_text_answer() -> None:
    """Texts are joined with nothing between, and nothing else is made up."""
    completion = answered(says({"text": "Hel"}, {"text": "lo"}))
    assert completion.choices[0].message.content == "Hello"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.tool_calls is None
    assert completion.id.startswith("chatcmpl-")
    assert (completion.model, completion.object) == (CLAUDE_4_5, "chat.completion")


def test_parallel_calls() -> None:
    """Each call is one, arguments are JSON text, and an input of nothing is an object of nothing."""
    called = [
        {"toolUse": {"toolUseId": "tooluse_a", "name": "weather", "input": {"city": "Øsło", "days": 1}}},
        {"toolUse": {"toolUseId": "tooluse_b", "name": "now", "input": {}}},
    ]
    choice = answered(says({"text": "Let me see."}, *called, stop_reason="tool_use")).choices[0]
    assert choice.finish_reason == "tool_calls"
    made = [call.to_dict() for call in choice.message.tool_calls or ()]
    assert made == [
        {
            "id": "tooluse_a",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"Øsło","days":1}'},
        },
        {"id": "tooluse_b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]
    only = answered(says(*called, stop_reason="tool_use")).choices[0].message
    assert only.content is None


def test_a_tool_that_the_provider_ran_itself_is_no_call() -> None:
    """What Bedrock has done on its own is not the client's to do."""
    ran: list[Document] = [
        {"toolUse": {"toolUseId": "t", "name": "nova_grounding", "input": {}, "type": "server_tool_use"}},
        {"toolResult": {"toolUseId": "t", "content": [{"text": "found"}], "type": "nova_grounding_result"}},
        {"text": "Yes."},
    ]
    message = answered(says(*ran), NOVA).choices[0].message
    assert (message.content, message.tool_calls) == ("Yes.", None)


def test_a_structured_answer_through_a_tool_is_the_content() -> None:
    """Where a tool stood in for the format, its input is the text, and nobody called anything."""
    called = {"toolUse": {"toolUseId": "t", "name": "place", "input": {"city": "Oslo"}}}
    choice = answered(says(called, stop_reason="tool_use"), CLAUDE_4, response_format=FORMAT).choices[0]
    assert (choice.message.content, choice.finish_reason) == ('{"city":"Oslo"}', "stop")
    assert choice.message.tool_calls is None


def test_a_custom_tools_call_has_its_text() -> None:
    """A free-form tool is called with text, as it was offered."""
    called = {"toolUse": {"toolUseId": "t", "name": "run", "input": {"input": "ls -l"}}}
    tools = [{"type": "custom", "custom": {"name": "run"}}]
    message = answered(says(called, stop_reason="tool_use"), tools=tools).choices[0].message
    assert message.to_dict()["tool_calls"] == [
        {"id": "t", "type": "custom", "custom": {"name": "run", "input": "ls -l"}}
    ]


def test_thoughts_come_with_what_is_needed_to_send_them_back() -> None:
    """Thoughts are reasoning_content for all and thinking_blocks, signatures and all, for the next turn."""
    thoughts: list[Document] = [
        {"reasoningContent": {"reasoningText": {"text": "Hmm", "signature": "c2ln/+=="}}},
        {"reasoningContent": {"redactedContent": "aGlkZGVu"}},
        {"reasoningContent": {"reasoningText": {"text": " unsigned"}}},
    ]
    message = answered(says(*thoughts, {"text": "So."})).choices[0].message.to_dict()
    assert message["reasoning_content"] == "Hmm unsigned"
    assert message["thinking_blocks"] == [
        {"type": "thinking", "thinking": "Hmm", "signature": "c2ln/+=="},
        {"type": "redacted_thinking", "data": "aGlkZGVu"},
    ]


def test_citations_of_the_web_are_annotations() -> None:
    """Indices count characters of the joined text; citations without an address have no such form."""
    cited = {
        "citationsContent": {
            "content": [{"text": "It "}, {"text": "rains."}],
            "citations": [
                {"title": "Weather", "location": {"web": {"url": "https://example.org", "domain": "example.org"}}},
                {"title": "Mine", "location": {"documentPage": {"documentIndex": 0, "start": 1, "end": 2}}},
            ],
        }
    }
    message = answered(says({"text": "Ah! "}, cited)).choices[0].message
    assert message.content == "Ah! It rains."
    assert [annotation.to_dict() for annotation in message.annotations or ()] == [
        {
            "type": "url_citation",
            "url_citation": {"start_index": 4, "end_index": 13, "title": "Weather", "url": "https://example.org"},
        }
    ]


def test_an_image_is_a_data_url() -> None:
    """Images in the answer are given as parts."""
    message = answered(says({"image": {"format": "png", "source": {"bytes": "iVBORw=="}}})).choices[0].message
    assert message.to_dict()["images"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    ]


@pytest.mark.parametrize(
    ("stop_reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_model_output", "stop"),
    ],
)
def test_finish_reasons(stop_reason: str, expected: str) -> None:
    """Each reason has its counterpart, and the vendor's own word beside it."""
    choice = answered(says({"text": "x"}, stop_reason=stop_reason)).choices[0]
    assert (choice.finish_reason, choice.to_dict()["native_finish_reason"]) == (expected, stop_reason)


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"message": "Sorry."}},
        {"Output": {"__type": "com.amazon.coral.service#UnknownOperationException"}, "Version": "1.0"},
        {"message": "Sorry."},
        {},
    ],
)
def test_an_error_inside_a_200_is_an_error(document: Document) -> None:
    """Trap 22: whatever comes with status 200, what is no answer is an error."""
    with pytest.raises(UpstreamError):
        bedrock().answer(asked(CLAUDE_4_5), orjson.dumps(document), document)


@pytest.mark.parametrize("stop_reason", ["malformed_model_output", "malformed_tool_use"])
def test_a_malformed_answer_without_anything_in_it_is_a_failure(stop_reason: str) -> None:
    """The model failed, so another target may be asked."""
    with pytest.raises(UpstreamRefused) as raised:
        answered(says(stop_reason=stop_reason))
    assert (raised.value.failure, raised.value.http_status) == (Failure.BROKEN, 502)


def test_usage_counts_cached_input_apart() -> None:
    """Trap 14: Bedrock's input has no cached tokens in it, OpenAI's has; writes for an hour stay apart."""
    counted = {
        "inputTokens": 10,
        "outputTokens": 7,
        "totalTokens": 1017,
        "cacheReadInputTokens": 600,
        "cacheWriteInputTokens": 400,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 300}, {"ttl": "5m", "inputTokens": 100}],
    }
    completion = answered(says({"text": "x"}, usage=counted))
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (1010, 1017)
    assert completion.usage.prompt_tokens_details.cached_tokens == 600
    assert bedrock().usage(completion.to_dict()) == Usage(
        uncached_input_tokens=10,
        cache_read_input_tokens=600,
        cache_write_5m_input_tokens=100,
        cache_write_1h_input_tokens=300,
        text_output_tokens=7,
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_answers_of_any_form_are_read_or_refused(data: st.DataObject) -> None:
    """Whatever stands in place of any part of an answer, it is translated or an UpstreamError."""
    blocks: list[Any] = [
        {"text": "a"},
        {"toolUse": {"toolUseId": "t", "name": "weather", "input": {}}},
        {"reasoningContent": {"reasoningText": {"text": "Hmm", "signature": "s"}}},
        {"citationsContent": {"content": [{"text": "b"}], "citations": [{"location": {"web": {"url": "u"}}}]}},
        {"image": {"format": "png", "source": {"bytes": "iVBORw=="}}},
    ]
    response = says(*blocks, usage={"inputTokens": 1, "cacheDetails": [{"ttl": "1h", "inputTokens": 1}]})
    # That the answer is an object has been seen to before.
    spoiled = {name: _spoiled(value, data) for name, value in response.items()}
    try:
        body = bedrock().answer(asked(CLAUDE_4_5), orjson.dumps(spoiled), spoiled)
    except UpstreamError:
        return
    assert orjson.loads(body)["choices"][0]["finish_reason"] in ("stop", "tool_calls")


# The value is any part of an answer.
def _spoiled(value: Any, data: st.DataObject) -> Any:
    """The same with something else at one place in it."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(value)))
        return {**value, name: _spoiled(value[name], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], _spoiled(value[index], data), *value[index + 1 :]]
    return data.draw(JSON)


# Errors


@pytest.mark.parametrize(
    ("status", "name", "message", "expected"),
    [
        (429, "ThrottlingException", "Too many tokens, please wait.", (429, "rate_limit_exceeded", Failure.RATE_LIMIT)),
        (429, "ModelNotReadyException", "Model is not ready.", (429, "rate_limit_exceeded", Failure.RATE_LIMIT)),
        (400, "ValidationException", "Bad field.", (400, "invalid_request", Failure.INVALID_REQUEST)),
        (
            400,
            "ValidationException",
            "Input is too long for requested model.",
            (400, "context_length_exceeded", Failure.CONTEXT_LENGTH),
        ),
        (
            400,
            "ValidationException",
            "The provided model identifier is invalid.",
            (404, "model_not_found", Failure.MODEL),
        ),
        (
            400,
            "ValidationException",
            "Invocation of model ID x with on-demand throughput isn\u2019t supported.",
            (404, "model_not_found", Failure.MODEL),
        ),
        (400, "ServiceQuotaExceededException", "Over.", (429, "insufficient_quota", Failure.QUOTA)),
        (403, "AccessDeniedException", "Not allowed.", (502, "upstream_auth_error", Failure.AUTH)),
        (
            403,
            "AccessDeniedException",
            "You don't have access to the model with the specified model ID.",
            (404, "model_not_found", Failure.MODEL),
        ),
        (403, "ExpiredTokenException", "The security token is expired", (502, "upstream_auth_error", Failure.AUTH)),
        (404, "ResourceNotFoundException", "No such model.", (404, "model_not_found", Failure.MODEL)),
        (408, "ModelTimeoutException", "Too slow.", (504, "request_timeout", Failure.TIMEOUT)),
        (424, "ModelErrorException", "Broken.", (502, "server_error", Failure.BROKEN)),
        (500, "InternalServerException", "Oops.", (502, "server_error", Failure.BROKEN)),
        (503, "ServiceUnavailableException", "Busy.", (503, "service_unavailable", Failure.OVERLOADED)),
    ],
)
@pytest.mark.parametrize("member", ["message", "Message"])
def test_exceptions(status: int, name: str, message: str, expected: tuple[int, str, Failure], member: str) -> None:
    """Each exception is what its name, status and words say."""
    headers = CIMultiDict({"X-Amzn-ErrorType": f"{name}:http://internal.amazon.com/coral/"})
    error = bedrock().error(status, headers, orjson.dumps({member: message}))
    assert isinstance(error, UpstreamRefused)
    assert (error.http_status, error.error_code, error.failure) == expected
    if error.failure is not Failure.AUTH:
        assert (error.message, error.native_type) == (message, name)


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"[1]", b'{"message":5}', b"\xff"])
def test_errors_of_any_form_are_classified(body: bytes) -> None:
    """A proxy's page, or nothing at all, still is an error of its status."""
    for headers in ({}, {"x-amzn-errortype": "ServiceUnavailableException"}):
        error = bedrock().error(503, CIMultiDict(headers), body)
        assert error.failure is Failure.OVERLOADED
        assert "<" not in error.message


# Embeddings


def embed(model: str, given: Any, **members: Any) -> Document:
    """The body of a call for embeddings, which goes to a known address."""
    request = asked(model, operation=Operation.EMBEDDINGS, input=given, **members)
    sent = bedrock().prepare(request, Target("bedrock", model), CIMultiDict())
    assert sent.url.endswith("/invoke")
    body: Document = orjson.loads(sent.body)
    return body


def embedded(model: str, given: Any, answer: Document, **members: Any) -> Document:
    """An answer, translated."""
    request = asked(model, operation=Operation.EMBEDDINGS, input=given, **members)
    document: Document = orjson.loads(bedrock().answer(request, orjson.dumps(answer), answer))
    return document


def test_each_family_is_asked_in_its_own_form() -> None:
    """Titan and Nova take one text, Cohere many; the size is called three things."""
    assert embed(TITAN, ["a"], dimensions=256) == {"inputText": "a", "dimensions": 256}
    assert embed(COHERE, ["a", "b"], input_type="search_query", dimensions=256) == {
        "texts": ["a", "b"],
        "input_type": "search_query",
        "embedding_types": ["float"],
        "output_dimension": 256,
    }
    parameters = embed("amazon.nova-2-multimodal-embeddings-v1:0", "a", dimensions=256)["singleEmbeddingParams"]
    assert parameters == {
        "embeddingPurpose": "GENERIC_INDEX",
        "embeddingDimension": 256,
        "text": {"truncationMode": "NONE", "value": "a"},
    }


@pytest.mark.parametrize(("model", "most"), [(TITAN, 1), (COHERE, 96)])
def test_more_texts_than_a_call_takes_go_in_parts(model: str, most: int) -> None:
    """Each family takes so many."""
    parts = bedrock().split(asked(model, operation=Operation.EMBEDDINGS, input=["a"] * (most + 1)))
    assert [len(part.document["input"]) for part in parts] == [most, 1]


def test_embeddings_in_order_and_in_either_encoding() -> None:
    """Vectors keep their order, base64 is given when it is asked for, and a text is as good as a list of one."""
    both = embedded(COHERE, ["a", "b"], {"embeddings": {"float": [[1, 0.5], [0.25, 2]]}, "id": "x"})
    vectors = [Embedding.model_validate(each) for each in both["data"]]
    assert [(each.index, each.embedding) for each in vectors] == [(0, [1, 0.5]), (1, [0.25, 2])]
    older = embedded(COHERE, ["a"], {"embeddings": [[1.5]]}, encoding_format="base64")
    packed = base64.b64encode(struct.pack("<f", 1.5)).decode()
    assert older["data"][0]["embedding"] == packed
    titan = embedded(TITAN, "a", {"embedding": [1.5], "inputTextTokenCount": 3})
    assert titan["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    "answer", [{}, {"embeddings": [[1.0], [2.0]]}, {"embeddings": [["x"]]}, {"embeddings": {"float": 1}}]
)
def test_embeddings_that_are_not_there_are_an_error(answer: Document) -> None:
    """An answer without one vector of numbers for each text is broken."""
    with pytest.raises(UpstreamBroken):
        embedded(COHERE, "a", answer)


def test_models_without_embeddings_say_so() -> None:
    """A chat model is not asked for vectors, nor any model for legacy completions."""
    with pytest.raises(BadRequest) as raised:
        embed(CLAUDE_4_5, "a")
    assert raised.value.param == "model"
    with pytest.raises(BadRequest, match="text completion"):
        bedrock().prepare(asked(NOVA, operation=Operation.TEXT_COMPLETION), Target("bedrock", NOVA), CIMultiDict())
