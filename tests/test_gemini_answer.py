"""Google's answers as chat completions: made with Google's types, read with OpenAI's."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from llmproxy.dialects.openai_chat import usage_of as openai_usage
from llmproxy.errors import Failure, UpstreamBroken, UpstreamError
from llmproxy.providers.gemini import errors
from llmproxy.providers.gemini.answer import translate_answer, usage_of
from llmproxy.usage import Usage
from tests.gemini import IDENTITY, USER, candidate, chat, gemini, response, translated

CALL = {"function_call": {"name": "weather", "args": {"city": "Rome"}}}


def completion(document: dict[str, Any], customs: frozenset[str] = frozenset()) -> ChatCompletion:
    """The translated answer, as OpenAI's own type reads it."""
    return ChatCompletion.model_validate_json(translate_answer(document, IDENTITY, "gemini", customs))


def message(*parts: dict[str, Any], **members: Any) -> Any:
    """The first choice's message."""
    return completion(response(candidates=[candidate(*parts, **members)])).choices[0].message


def test_text_is_joined_and_thoughts_stand_beside_it() -> None:
    """Parts are joined with nothing between them; thought parts become reasoning_content."""
    said = message({"text": "Let me see.", "thought": True}, {"text": "Hel"}, {"text": "lo"})
    assert said.content == "Hello"
    assert said.reasoning_content == "Let me see."


def test_the_answer_says_who_it_is() -> None:
    """Google's response id and model version become id and model."""
    document = response(candidates=[candidate({"text": "Hi"})], response_id="r1", model_version="gemini-2.5-flash-001")
    request = chat({"model": "gemini-2.5-flash", "messages": [USER]})
    answer = ChatCompletion.model_validate_json(gemini().answer(request, orjson.dumps(document), document))
    assert (answer.id, answer.model, answer.object) == ("chatcmpl-r1", "gemini-2.5-flash-001", "chat.completion")


def test_trap_4_a_turn_with_calls_ends_with_tool_calls() -> None:
    """Google says STOP whether or not functions are called; clients must be told the difference."""
    choice = completion(response(candidates=[candidate({"text": "One moment."}, CALL)])).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert choice.message.tool_calls is not None
    [called] = choice.message.tool_calls
    assert called.type == "function"
    assert orjson.loads(called.function.arguments) == {"city": "Rome"}


def test_trap_6_calls_without_ids_get_distinct_ones() -> None:
    """Two calls to one function in one turn can be told apart, also when the provider repeats an id."""
    calls = message(CALL, CALL).tool_calls
    assert len({call.id for call in calls}) == 2
    calls = message(*({"function_call": {**CALL["function_call"], "id": "same"}} for _ in range(2))).tool_calls
    assert calls[0].id == "same"
    assert calls[1].id != "same"


def test_a_call_without_arguments_has_an_empty_object() -> None:
    """Arguments are JSON text, never empty and never null."""
    [call] = message({"function_call": {"name": "now"}}).tool_calls
    assert call.function.arguments == "{}"


def test_trap_34_arguments_keep_their_numbers() -> None:
    """64-bit integers, 1.0 and non-ASCII come out as they went in."""
    raw = b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"n":9223372036854775807,"x":1.0,"s":"\xc3\xa9"}}}]},"finishReason":"STOP"}]}'  # noqa: E501 - one value
    answer = orjson.loads(translate_answer(orjson.loads(raw), IDENTITY, "gemini"))
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"n":9223372036854775807,"x":1.0,"s":"é"}'


def test_trap_5_signatures_are_given_to_the_client_to_keep() -> None:
    """A call's signature stands in its extra_content, a text's in the message's, each with its issuer."""
    [call] = message({**CALL, "thought_signature": b"signed"}).tool_calls
    assert call.extra_content == {"google": {"thought_signature": "c2lnbmVk", "issuer": "gemini"}}
    said = message({"text": "Hi"}, {"text": "", "thought_signature": b"signed"})
    assert said.extra_content == {"google": {"thought_signature": "c2lnbmVk", "issuer": "gemini"}}


def test_trap_5_a_turn_with_tools_survives_the_sdk() -> None:
    """What the answer gave, sent back as OpenAI's SDK dumps it, is the turn that Google wrote."""
    calls = (
        {"function_call": {"id": "a", "name": "weather", "args": {"city": "Rome"}}, "thought_signature": b"signed"},
        {"function_call": {"id": "b", "name": "weather", "args": {"city": "Oslo"}}},
    )
    written = response(candidates=[candidate({"text": "Both."}, *calls)])
    said = completion(written).choices[0].message.model_dump()
    results = [{"role": "tool", "tool_call_id": call, "content": "sunny"} for call in ("b", "a")]
    body = translated(USER, said, *results, model="gemini-3-pro-preview")
    assert body["contents"][1] == written["candidates"][0]["content"]
    assert [part["functionResponse"]["id"] for part in body["contents"][2]["parts"]] == ["a", "b"]


def test_a_custom_tools_call_is_unwrapped() -> None:
    """A free-form tool's one text comes back as its input."""
    document = response(candidates=[candidate({"function_call": {"name": "shell", "args": {"input": "ls"}}})])
    calls = completion(document, frozenset({"shell"})).choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "custom"
    assert (calls[0].custom.name, calls[0].custom.input) == ("shell", "ls")


def test_images_are_data_urls() -> None:
    """An image in the answer stands in `images`, as OpenRouter's clients know it."""
    said = message({"text": "Here:"}, {"inline_data": {"mime_type": "image/png", "data": b"png"}})
    assert said.content == "Here:"
    assert said.images == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}]


def test_candidates_are_choices() -> None:
    """Several candidates are several choices, each with its own finish reason."""
    answer = completion(response(candidates=[candidate({"text": "a"}), candidate({"text": "b"}, finish="MAX_TOKENS")]))
    assert [(choice.index, choice.message.content, choice.finish_reason) for choice in answer.choices] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]


ERROR_REASONS = {
    *("MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL"),
    *("TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE"),
}
FINISH_REASONS = {
    "length": {"MAX_TOKENS", "CONTINUATION"},
    "content_filter": {
        *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR"),
        *("IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION"),
    },
}


@pytest.mark.parametrize("native", [reason.value for reason in types.FinishReason])
def test_every_finish_reason_has_its_counterpart(native: str) -> None:
    """All reasons that Google's SDK knows are mapped, and the native one stands beside."""
    expected = next((reason for reason, names in FINISH_REASONS.items() if native in names), "stop")
    choice = completion(response(candidates=[candidate({"text": "Hi"}, finish=native)])).choices[0]
    assert choice.finish_reason == expected
    assert choice.native_finish_reason == native  # type: ignore[attr-defined]


@pytest.mark.parametrize("native", sorted(ERROR_REASONS))
def test_unusable_output_is_an_error(native: str) -> None:
    """An answer that came to nothing lets another target try."""
    with pytest.raises(UpstreamBroken, match=native):
        completion(response(candidates=[candidate(finish=native)]))


def test_an_unknown_finish_reason_is_a_stop() -> None:
    """What Google invents tomorrow does not break clients today."""
    answer = completion({"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "NEW"}]})
    assert answer.choices[0].finish_reason == "stop"


def test_a_filtered_answer_without_content_is_an_answer() -> None:
    """A candidate stopped by a filter is no error of the provider."""
    choice = completion(response(candidates=[candidate(finish="SAFETY")])).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "content_filter")


def test_a_blocked_prompt_is_a_refusal() -> None:
    """No candidates and a block reason: one choice, no content, a refusal, content_filter."""
    document = response(prompt_feedback={"block_reason": "SAFETY"}, usage_metadata={"prompt_token_count": 5})
    choice = completion(document).choices[0]
    assert choice.message.content is None
    assert choice.message.refusal == "The provider blocked the prompt: SAFETY."
    assert choice.finish_reason == "content_filter"
    assert choice.native_finish_reason == "SAFETY"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"candidates": []},
        {"candidates": [{}]},
        {"candidates": [{"content": {"parts": []}}]},
        {"candidates": "no"},
        {"promptFeedback": {}},
    ],
)
def test_an_answer_without_an_answer_is_an_error(document: dict[str, Any]) -> None:
    """What holds neither content nor a finish reason is not passed off as an empty answer."""
    with pytest.raises(UpstreamBroken):
        completion(document)


# Citations


def test_grounding_is_cited_in_characters() -> None:
    """Google counts UTF-8 bytes within a part, clients characters within the whole text."""
    text = "Ünïcödé 🎉 was written in 1991."
    start, end = text.index("🎉"), len(text)
    grounding = {
        "grounding_chunks": [
            {"web": {"uri": "https://a.example", "title": "A"}},
            {"web": {"uri": "https://b.example"}},
        ],
        "grounding_supports": [
            {
                "segment": {
                    "part_index": 2,
                    "start_index": len(text[:start].encode()),
                    "end_index": len(text[:end].encode()),
                },
                "grounding_chunk_indices": [0, 1, 7],
            },
            {"segment": {"end_index": 2}, "grounding_chunk_indices": [0]},
        ],
    }
    said = message(
        {"text": "thinking…", "thought": True}, {"text": "Sö: "}, {"text": text}, grounding_metadata=grounding
    )
    cited = [annotation.url_citation for annotation in said.annotations]
    assert [(c.start_index, c.end_index, c.title, c.url) for c in cited] == [
        (4 + start, 4 + end, "A", "https://a.example"),
        (4 + start, 4 + end, "https://b.example", "https://b.example"),
        (0, 0, "A", "https://a.example"),
    ]
    assert said.content[cited[0].start_index : cited[0].end_index] == text[start:end]


def test_recitations_are_cited() -> None:
    """Sources of recited text are citations too."""
    citations = {"citations": [{"start_index": 2, "end_index": 4, "uri": "https://a.example", "title": "A"}, {}]}
    [annotation] = message({"text": "éabc"}, citation_metadata=citations).annotations
    assert (annotation.url_citation.start_index, annotation.url_citation.end_index) == (1, 3)


def test_logprobs_have_openais_form() -> None:
    """Chosen and alternative tokens with their log probabilities."""
    result = {
        "chosen_candidates": [{"token": "é", "log_probability": -0.5}, {"token": "!", "log_probability": -1}],
        "top_candidates": [{"candidates": [{"token": "é", "log_probability": -0.5}]}],
    }
    document = response(candidates=[candidate({"text": "é!"}, logprobs_result=result)])
    logprobs = completion(document).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first, second = logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("é", -0.5, [0xC3, 0xA9])
    assert (len(first.top_logprobs), len(second.top_logprobs)) == (1, 0)


# Usage


def metadata(**members: Any) -> dict[str, Any]:
    """Usage as Google's type writes it."""
    return dict(response(usage_metadata=members)["usageMetadata"])


def test_traps_14_and_15_classes_of_tokens_add_up() -> None:
    """Cached tokens are inside the prompt, thoughts are added to the answer, and audio is told apart."""
    usage = usage_of(
        metadata(
            prompt_token_count=100,
            tool_use_prompt_token_count=10,
            cached_content_token_count=40,
            candidates_token_count=20,
            thoughts_token_count=30,
            total_token_count=160,
            prompt_tokens_details=[{"modality": "TEXT", "token_count": 75}, {"modality": "AUDIO", "token_count": 25}],
            cache_tokens_details=[{"modality": "AUDIO", "token_count": 5}],
            candidates_tokens_details=[{"modality": "AUDIO", "token_count": 8}],
        )
    )
    assert usage == Usage(
        uncached_input_tokens=50,
        cache_read_input_tokens=35,
        audio_input_tokens=20,
        cache_read_audio_input_tokens=5,
        text_output_tokens=12,
        reasoning_output_tokens=30,
        audio_output_tokens=8,
    )
    assert usage.total_tokens == 160


def test_thoughts_that_are_counted_inside_the_answer_are_not_added_twice() -> None:
    """Where prompt and answer make up the total, the thoughts are inside."""
    usage = usage_of(
        metadata(prompt_token_count=10, candidates_token_count=50, thoughts_token_count=30, total_token_count=60)
    )
    assert (usage.text_output_tokens, usage.reasoning_output_tokens, usage.total_tokens) == (20, 30, 60)


COUNTS = st.integers(0, 10**6)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            (
                *("promptTokenCount", "toolUsePromptTokenCount", "cachedContentTokenCount"),
                *("candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount"),
            ),
            COUNTS,
        ),
    ),
    COUNTS,
    COUNTS,
)
def test_usage_survives_openais_form(counts: dict[str, int], audio_in: int, audio_out: int) -> None:
    """What is read back from the translated answer is what Google told, class by class."""
    told = {
        **counts,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": audio_in}],
        "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": audio_out}],
    }
    document = {**response(candidates=[candidate({"text": "Hi"})]), "usageMetadata": told}
    answer = orjson.loads(translate_answer(document, IDENTITY, "gemini"))
    assert openai_usage(answer) == usage_of(told)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_usage_that_tells_nothing_is_none() -> None:
    """Zeros are no measurement: the gateway estimates instead of charging nothing."""
    assert gemini().usage({"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}) is None
    assert gemini().usage({"usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}}) is not None


# Errors


def google_error(code: int, status: str, text: str = "No.", *details: dict[str, Any]) -> dict[str, Any]:
    """An error as Google states it."""
    return {"error": {"code": code, "message": text, "status": status, "details": list(details)}}


def reason(word: str) -> dict[str, Any]:
    """The ErrorInfo of an error."""
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": word, "domain": "googleapis.com"}


QUOTA = "type.googleapis.com/google.rpc.QuotaFailure"
PER_DAY = {"@type": QUOTA, "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "14.5s"}
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
CASES = [
    (google_error(400, "INVALID_ARGUMENT"), Failure.INVALID_REQUEST, 400, "invalid_request"),
    (google_error(400, "INVALID_ARGUMENT", TOO_LONG), Failure.CONTEXT_LENGTH, 400, "context_length_exceeded"),
    (
        google_error(400, "INVALID_ARGUMENT", "API key expired.", reason("API_KEY_INVALID")),
        Failure.AUTH,
        502,
        "upstream_auth_error",
    ),
    (google_error(401, "UNAUTHENTICATED"), Failure.AUTH, 502, "upstream_auth_error"),
    (google_error(403, "PERMISSION_DENIED"), Failure.AUTH, 502, "upstream_auth_error"),
    (google_error(404, "NOT_FOUND"), Failure.MODEL, 404, "model_not_found"),
    (google_error(429, "RESOURCE_EXHAUSTED", "Slow.", RETRY), Failure.RATE_LIMIT, 429, "rate_limit_exceeded"),
    (google_error(429, "RESOURCE_EXHAUSTED", "Enough.", PER_DAY), Failure.QUOTA, 429, "insufficient_quota"),
    (google_error(500, "INTERNAL"), Failure.BROKEN, 502, "server_error"),
    (google_error(503, "UNAVAILABLE"), Failure.OVERLOADED, 503, "service_unavailable"),
    (google_error(504, "DEADLINE_EXCEEDED"), Failure.TIMEOUT, 504, "request_timeout"),
]


@pytest.mark.parametrize(("document", "failure", "status", "code"), CASES)
@pytest.mark.parametrize("is_listed", [False, True])
def test_errors_are_classified(
    document: dict[str, Any], failure: Failure, status: int, code: str, *, is_listed: bool
) -> None:
    """By status and by words, whether the error stands alone or in a list of one."""
    upstream_status = document["error"]["code"]
    body = orjson.dumps([document] if is_listed else document)
    error = gemini().error(upstream_status, {}, body)
    assert (error.failure, error.http_status, error.error_code) == (failure, status, code)
    assert error.upstream_status == upstream_status


def test_trap_39_googles_retry_delay_is_read() -> None:
    """The delay stands in the details of the error."""
    error = gemini().error(429, {}, orjson.dumps(google_error(429, "RESOURCE_EXHAUSTED", "Slow.", RETRY)))
    assert error.retry_after_seconds == 14.5


def test_googles_word_is_the_errors_type() -> None:
    """RESOURCE_EXHAUSTED and its like reach the client; the code that only repeats the status does not."""
    error = errors.refused(429, {}, orjson.dumps(google_error(429, "RESOURCE_EXHAUSTED")))
    assert (error.native_type, error.error_code) == ("RESOURCE_EXHAUSTED", "rate_limit_exceeded")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"error":"no"}', b'{"error":{"code":"x"}}', b"3"])
def test_an_error_of_any_shape_is_an_error(body: bytes) -> None:
    """Whatever a proxy on the way makes of it."""
    assert gemini().error(503, {}, body).failure is Failure.OVERLOADED


def test_trap_22_an_error_inside_200_is_an_error() -> None:
    """A whole answer that holds an error is none."""
    document = google_error(503, "UNAVAILABLE", "The model is overloaded.")
    request = chat({"model": "gemini-2.5-flash", "messages": [USER]})
    with pytest.raises(UpstreamError, match="overloaded") as caught:
        gemini().answer(request, orjson.dumps(document), document)
    assert caught.value.failure is Failure.OVERLOADED


# Garbage

WHOLE = response(
    candidates=[
        candidate(
            {"text": "é", "thought_signature": b"s"},
            {**CALL, "thought_signature": b"s"},
            {"inline_data": {"mime_type": "image/png", "data": b"png"}},
            grounding_metadata={
                "grounding_chunks": [{"web": {"uri": "https://a.example", "title": "A"}}],
                "grounding_supports": [{"segment": {"end_index": 1}, "grounding_chunk_indices": [0]}],
            },
            logprobs_result={"chosen_candidates": [{"token": "é", "log_probability": -1}]},
            citation_metadata={"citations": [{"uri": "https://a.example", "end_index": 1}]},
        )
    ],
    prompt_feedback={"block_reason": "SAFETY"},
    usage_metadata={"prompt_token_count": 1, "prompt_tokens_details": [{"modality": "AUDIO", "token_count": 1}]},
    response_id="r",
    model_version="m",
)
# Whoever decodes JSON refuses the others.
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), FINITE, st.text(max_size=3),
    st.sampled_from([[], {}, [None], [[]], {"a": None}, "STOP"]),
)  # fmt: skip


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with each key in it."""
    if not isinstance(node, dict | list):
        return []
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


@given(st.data())
def test_mutated_answers_are_translated_or_refused(data: st.DataObject) -> None:
    """Whatever stands in whatever place, there is a chat completion or an UpstreamError."""
    document = copy.deepcopy(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        node, key = data.draw(st.sampled_from(places(document)))
        node[key] = copy.deepcopy(data.draw(JUNK))
    try:
        ChatCompletion.model_validate_json(translate_answer(document, IDENTITY, "gemini", frozenset({"weather"})))
    except UpstreamError as error:
        assert error.message  # noqa: PT017 - either way is fine
