"""What the OpenAI format says of usage and errors, whichever vendor wrote it."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_chat import usage_of
from llmproxy.dialects.openai_errors import error_body, error_event, error_in, error_of
from llmproxy.dialects.refusals import failure_of, masked
from llmproxy.dialects.retry_after import retry_after_seconds
from llmproxy.errors import BadRequest, BudgetExceeded, Failure, LLMProxyError, UpstreamTimeout
from llmproxy.request import Document, Operation
from llmproxy.usage import TOKEN_CLASSES, Usage

# What a provider could put where a number belongs.
HOSTILE: st.SearchStrategy[object] = st.one_of(
    st.integers(-10, 1000),
    st.floats(),
    st.sampled_from([None, True, "7", [], {}, -1, 10**30, 1e300, 2.5, 12.0]),
)
DETAILS = st.one_of(
    HOSTILE,
    st.dictionaries(
        st.sampled_from(["cached_tokens", "audio_tokens", "cache_write_tokens", "reasoning_tokens"]), HOSTILE
    ),
)
HOSTILE_USAGE = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": HOSTILE,
        "completion_tokens": HOSTILE,
        "total_tokens": HOSTILE,
        "prompt_cache_hit_tokens": HOSTILE,
        "prompt_tokens_details": DETAILS,
        "completion_tokens_details": DETAILS,
    },
)
KNOWN_NAMES = [
    *("error", "errors", "detail", "details", "metadata", "innererror", "base_resp", "violations", "choices"),
    *("message", "code", "type", "param", "status", "loc", "status_code", "object", "retryDelay"),
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 600), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(KNOWN_NAMES),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


def is_count(value: object) -> bool:
    """Whether a value can be a number of tokens."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 10**12 and value % 1 == 0


@given(HOSTILE_USAGE)
def test_usage_survives_hostile_numbers(reported: Document) -> None:
    """No number raises, no class is negative, and the classes add up to what prompt and completion say."""
    usage = usage_of({"usage": reported})
    if usage is None:
        assert not any(is_count(reported.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
        return
    values = [getattr(usage, name) for name in TOKEN_CLASSES]
    assert all(type(value) is int and value >= 0 for value in values)
    assert sum(values) == usage.total_tokens
    for name, total in (("prompt_tokens", usage.input_tokens), ("completion_tokens", usage.output_tokens)):
        if is_count(reported.get(name)):
            assert total == reported[name]


OPENAI_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 10, "cache_write_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 5, "accepted_prediction_tokens": 3},
}
OPENAI_CLASSES = Usage(
    uncached_input_tokens=25,
    cache_read_input_tokens=60,
    cache_write_5m_input_tokens=5,
    audio_input_tokens=10,
    text_output_tokens=15,
    reasoning_output_tokens=30,
    audio_output_tokens=5,
)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"usage": OPENAI_USAGE}, OPENAI_CLASSES),
        ({"x_groq": {"usage": OPENAI_USAGE}}, OPENAI_CLASSES),
        ({"usage": None, "choices": [{"usage": OPENAI_USAGE}]}, OPENAI_CLASSES),
        (
            {"usage": {"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 8}},
            Usage(uncached_input_tokens=2, cache_read_input_tokens=8, text_output_tokens=2),
        ),
        ({"usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(uncached_input_tokens=8)),
        ({"usage": {"total_tokens": 8}}, Usage(uncached_input_tokens=8)),
        ({"usage": {"prompt_tokens": 3, "total_tokens": 8}}, Usage(uncached_input_tokens=3, text_output_tokens=5)),
        ({"usage": {}}, None),
        ({"usage": "many"}, None),
        ({"choices": []}, None),
        ({}, None),
    ],
)
def test_usage_is_read_where_vendors_put_it(document: Document, expected: Usage | None) -> None:
    """Tokens end up in disjoint classes, from each place that a vendor is known to put them in."""
    assert usage_of(document) == expected


def refusal(status: int, body: object, **headers: str) -> tuple[int, str, Failure, str]:
    """What becomes of an error response: status, code, class and message."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = error_of(status, named, body if isinstance(body, bytes) else orjson.dumps(body))
    assert error.upstream_status == status
    return error.http_status, error.error_code, error.failure, error.message


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        ({"error": {"message": "m", "code": "c"}}, "m", "c"),
        ({"error": "m"}, "m", "invalid_request"),
        ({"error": {"message": "m", "code": 400}}, "m", "400"),
        ({"error": {"message": "m", "code": None}}, "m", "invalid_request"),
        ([{"error": {"message": "m", "code": 400, "status": "INVALID_ARGUMENT"}}], "m", "400"),
        ({"detail": "m"}, "m", "invalid_request"),
        ({"detail": [{"loc": ["body", "n"], "msg": "m", "type": "missing"}]}, "m", "invalid_request"),
        ({"message": "m", "id": "1"}, "m", "invalid_request"),
        ({"Message": "m"}, "m", "invalid_request"),
        ({"object": "error", "message": "m", "code": 3}, "m", "3"),
        ({"errors": [{"code": 7003, "message": "m"}], "success": False}, "m", "7003"),
        ({"error_code": "BAD", "message": "m"}, "m", "BAD"),
        ({"type": "error", "error": {"type": "t", "message": "m", "details": {"error_code": "c"}}}, "m", "c"),
        (b"plain words", "plain words", "invalid_request"),
        (b"<html>Bad gateway</html>", "The provider answered with an error and gave no reason.", "invalid_request"),
        (b"", "The provider answered with an error and gave no reason.", "invalid_request"),
        (b"[]", "The provider answered with an error and gave no reason.", "invalid_request"),
    ],
)
def test_error_is_read_from_any_shape(body: object, message: str, code: str) -> None:
    """The vendor's message and its own code, as text, are found in every shape that vendors use."""
    assert refusal(400, body) == (400, code, Failure.INVALID_REQUEST, message)


def test_error_names_the_field_at_fault() -> None:
    """The field at fault is kept, also as a validator's path, and so is the vendor's type."""
    assert error_of(422, {}, b'{"detail":[{"loc":["body","messages",0],"msg":"m"}]}').param == "messages.0"
    error = error_of(400, {}, b'{"error":{"message":"m","type":"odd_error","param":"n"}}')
    assert (error.param, error.native_type) == ("n", "odd_error")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, {}, (502, "upstream_auth_error", Failure.AUTH)),
        (403, {}, (502, "upstream_auth_error", Failure.AUTH)),
        (400, {"error": {"message": "API key not valid."}}, (502, "upstream_auth_error", Failure.AUTH)),
        (402, {}, (429, "insufficient_quota", Failure.QUOTA)),
        (403, {"error": {"code": "model_not_found"}}, (404, "model_not_found", Failure.MODEL)),
        (404, {}, (404, "model_not_found", Failure.MODEL)),
        (408, {}, (504, "request_timeout", Failure.TIMEOUT)),
        (409, {}, (503, "service_unavailable", Failure.OVERLOADED)),
        (413, {}, (413, "request_too_large", Failure.INVALID_REQUEST)),
        (422, {}, (400, "invalid_request", Failure.INVALID_REQUEST)),
        (424, {}, (502, "server_error", Failure.BROKEN)),
        (429, {}, (429, "rate_limit_exceeded", Failure.RATE_LIMIT)),
        (429, {"error": {"code": "insufficient_quota"}}, (429, "insufficient_quota", Failure.QUOTA)),
        (498, {}, (503, "service_unavailable", Failure.OVERLOADED)),
        (500, {}, (502, "server_error", Failure.BROKEN)),
        (503, {}, (503, "service_unavailable", Failure.OVERLOADED)),
        (504, {}, (504, "request_timeout", Failure.TIMEOUT)),
        (520, {}, (502, "server_error", Failure.BROKEN)),
        (529, {}, (503, "service_unavailable", Failure.OVERLOADED)),
    ],
)
def test_error_status_reaches_the_client_as(status: int, body: Document, expected: tuple[int, str, Failure]) -> None:
    """Each status of a provider has one status, code and class; faults of our own key are not the client's."""
    assert refusal(status, body)[:3] == expected


@pytest.mark.parametrize(
    ("status", "words", "failure"),
    [
        (400, "context_length_exceeded", Failure.CONTEXT_LENGTH),
        (400, "This model's maximum context length is 8192 tokens", Failure.CONTEXT_LENGTH),
        (400, "prompt is too long: 210000 tokens > 200000 maximum", Failure.CONTEXT_LENGTH),
        (400, "input length and `max_tokens` exceed context limit: 1 + 2 > 2", Failure.CONTEXT_LENGTH),
        (400, "The input token count exceeds the maximum number of tokens allowed (1)", Failure.CONTEXT_LENGTH),
        (400, "Input is too long for requested model.", Failure.CONTEXT_LENGTH),
        (400, "too many tokens: size limit exceeded", Failure.CONTEXT_LENGTH),
        (400, "Please reduce the length of the messages or completion.", Failure.CONTEXT_LENGTH),
        (400, "is longer than the model's context length", Failure.CONTEXT_LENGTH),
        (400, "Current length is 9000 while limit is 8192", Failure.CONTEXT_LENGTH),
        (400, "This model's maximum prompt length is 131072", Failure.CONTEXT_LENGTH),
        (400, "exceed_context_size_error", Failure.CONTEXT_LENGTH),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 2048", Failure.CONTEXT_LENGTH),
        (400, "Input tokens exceed the configured limit of 272000 tokens", Failure.CONTEXT_LENGTH),
        (400, "string_above_max_length: maximum context length", Failure.INVALID_REQUEST),
        (413, "Request too large: reduce the length of the messages", Failure.INVALID_REQUEST),
        (429, "too many tokens per minute", Failure.RATE_LIMIT),
        (400, "content_policy_violation", Failure.CONTENT_POLICY),
        (400, "invalid_prompt", Failure.CONTENT_POLICY),
        (400, "Output blocked by content filtering policy", Failure.CONTENT_POLICY),
        (400, "data_inspection_failed", Failure.CONTENT_POLICY),
        (400, "Your credit balance is too low to access the API.", Failure.QUOTA),
        (429, "workspace_spend_limit_reached", Failure.QUOTA),
        (429, "exceeded_current_quota_error", Failure.QUOTA),
        (400, "ServiceQuotaExceeded", Failure.QUOTA),
    ],
)
def test_failure_is_told_by_its_words(status: int, words: str, failure: Failure) -> None:
    """The words vendors use for a class are recognised, and those that only sound like it are not."""
    assert failure_of(status, words) is failure


@pytest.mark.parametrize(
    ("status", "error", "failure"),
    [
        (400, {"code": "3051", "message": "Prompt is too large for model with 32768 tokens"}, Failure.CONTEXT_LENGTH),
        (400, {"code": "3051", "message": "reasoning_effort='low' is not supported"}, Failure.INVALID_REQUEST),
        (400, {"code": "1301"}, Failure.CONTENT_POLICY),
        (429, {"code": "1113"}, Failure.QUOTA),
        (400, {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, Failure.CONTENT_POLICY),
        (403, {"message": "m", "metadata": {"reasons": ["x"], "flagged_input": "y"}}, Failure.CONTENT_POLICY),
        (400, {"message": "m", "metadata": {"raw": '{"code":"context_length_exceeded"}'}}, Failure.CONTEXT_LENGTH),
        (429, {"details": [{"violations": [{"quotaId": "RequestsPerDayPerProject"}]}]}, Failure.QUOTA),
        (429, {"details": [{"violations": [{"quotaId": "RequestsPerMinute"}]}]}, Failure.RATE_LIMIT),
    ],
)
def test_failure_is_told_by_what_stands_beside_the_message(status: int, error: Document, failure: Failure) -> None:
    """Codes, inner errors, metadata and details count as much as the message."""
    assert refusal(status, {"error": error})[2] is failure


@given(st.integers(100, 999), st.one_of(st.binary(max_size=30), JSON.map(orjson.dumps)))
def test_any_error_body_is_an_error(status: int, body: bytes) -> None:
    """Whatever a provider answers, reading its error gives an error with a message and a status to send."""
    error = error_of(status, {}, body)
    assert 400 <= error.http_status < 600
    assert error.message
    assert orjson.loads(error_body(error, "r"))["error"]["code"] == error.error_code


def test_our_credentials_stay_ours() -> None:
    """What a provider says about our key is not passed on: neither its words, nor its code, nor its type."""
    body = b'{"error":{"message":"Incorrect API key provided: hunter2","type":"t","code":"invalid_api_key"}}'
    error = error_of(401, {}, body)
    shown = error_body(error, "r")
    assert (error.http_status, orjson.loads(shown)["error"]["type"]) == (502, "server_error")
    assert b"hunter2" not in shown
    assert b"invalid_api_key" not in shown


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abc_DEF123456",
        "sk-ant-api03-xyz",
        "sk-ab***************yz12",
        "gsk_0123456789ab",
        "AIzaSyA1234567890abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "Bearer abcdefgh1234",
        "hf_abcdefghij",
        "0123456789abcdef0123456789abcdef",
    ],
)
def test_keys_are_masked(key: str) -> None:
    """Anything that looks like a key is masked wherever it stands; the words around it stay."""
    assert masked(f"The key ({key}) is wrong.") == "The key ([masked]) is wrong."
    assert masked(f"{'x ' * 994}{key}").count(key[:14]) == 0


def test_messages_are_bounded_and_otherwise_left_alone() -> None:
    """Model names, ids and words pass unmasked; a message that never ends is cut."""
    plain = "model claude-sonnet-4-5-20250929 (req_011CSHoEeqs5C35K2UUqR7Fy): risk-averse task-switching"
    assert masked(plain) == plain
    assert len(masked("word " * 100_000)) == 2000


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "3"}, {}, 3),
        ({"retry-after": "1.5"}, {}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, {}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, 30),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, {}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, {}, None),
        ({"retry-after": "-5"}, {}, None),
        ({"retry-after": "99999999"}, {}, None),
        ({"retry-after": "soon"}, {}, None),
        ({"retry-after": "nan"}, {}, None),
        ({}, {"error": {"details": [{"@type": "x"}, {"retryDelay": "14s"}]}}, 14),
        ({}, {"error": {"message": "Rate limit reached. Please try again in 1.2s. Visit"}}, 1.2),
        ({}, {"error": {"message": "Please try again in 6m0s."}}, 360),
        ({}, {"error": {"message": "try again in 120ms"}}, 0.12),
        ({}, {"error": {"message": "Please retry after 20 s"}}, 20),
        ({"retry-after": "-1"}, {"error": {"message": "try again in 2s"}}, 2),
        ({}, {"error": {"message": "try again later"}}, None),
    ],
)
def test_pause_is_read_however_it_is_said(headers: dict[str, str], body: Document, seconds: float | None) -> None:
    """Milliseconds, seconds, dates, durations and plain words are understood; nonsense is no pause."""
    assert error_of(429, headers, orjson.dumps(body)).retry_after_seconds == pytest.approx(seconds)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_any_pause_is_believable(header: str, delay: str, message: str) -> None:
    """No text raises, and a pause is never negative nor longer than a day."""
    headers = {"retry-after": header, "date": "Wed, 21 Oct 2026 07:28:00 GMT"}
    seconds = retry_after_seconds(headers, delay=delay, message=f"try again in {message}")
    assert seconds is None or 0 <= seconds <= 86_400


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"error": {"message": "slow down", "code": 429}}, (429, "429", Failure.RATE_LIMIT)),
        ({"error": {"message": "m", "code": "502"}}, (502, "502", Failure.BROKEN)),
        (
            {"error": {"message": "m", "type": "invalid_request_error"}},
            (400, "invalid_request", Failure.INVALID_REQUEST),
        ),
        ({"error": {"message": "m", "type": "overloaded_error"}}, (503, "service_unavailable", Failure.OVERLOADED)),
        ({"error": "m"}, (502, "server_error", Failure.BROKEN)),
        ({"error": {"code": "rate_limit_exceeded"}}, (429, "rate_limit_exceeded", Failure.RATE_LIMIT)),
        ({"object": "error", "message": "m", "code": 404}, (404, "404", Failure.MODEL)),
        ({"base_resp": {"status_code": 1000, "status_msg": "m"}, "choices": [1]}, (502, "1000", Failure.BROKEN)),
        ({"choices": []}, (502, "server_error", Failure.BROKEN)),
        ({"choices": None}, (502, "server_error", Failure.BROKEN)),
        ({}, (502, "server_error", Failure.BROKEN)),
    ],
)
def test_error_inside_a_200_is_found(document: Document, expected: tuple[int, str, Failure]) -> None:
    """An error that came with status 200 is classified like any other, and no choices are no answer."""
    error = error_in(document, Operation.CHAT)
    assert error is not None
    assert (error.http_status, error.error_code, error.failure) == expected
    assert error.upstream_status == 200


@pytest.mark.parametrize(
    ("document", "operation"),
    [
        ({"choices": [{}], "error": None}, Operation.CHAT),
        ({"choices": [{}], "error": {}}, Operation.TEXT_COMPLETION),
        ({"choices": [{}], "base_resp": {"status_code": 0, "status_msg": ""}}, Operation.CHAT),
        ({"data": [], "object": "list"}, Operation.EMBEDDINGS),
    ],
)
def test_answers_are_not_errors(document: Document, operation: Operation) -> None:
    """An empty error, or one that says it is none, leaves an answer an answer."""
    assert error_in(document, operation) is None


@pytest.mark.parametrize(
    ("error", "content"),
    [
        (
            BadRequest("Send n.", param="n"),
            {"message": "Send n.", "type": "invalid_request_error", "param": "n", "code": "bad_request"},
        ),
        (
            BudgetExceeded("No money is left."),
            {
                "message": "No money is left.",
                "type": "insufficient_quota",
                "param": None,
                "code": "budget_exceeded",
            },
        ),
        (
            error_of(429, {}, b'{"error":{"message":"m","type":"tokens","code":"rate_limit_exceeded"}}'),
            {"message": "m", "type": "tokens", "param": None, "code": "rate_limit_exceeded"},
        ),
        (
            error_of(413, {}, b"{}"),
            {
                "message": "The provider answered with an error and gave no reason.",
                "type": "invalid_request_error",
                "param": None,
                "code": "request_too_large",
            },
        ),
    ],
)
def test_error_body_has_the_openai_shape(error: LLMProxyError, content: Document) -> None:
    """Clients get message, type, param and code, the vendor's own where it gave them, and our reason beside them."""
    body = orjson.loads(error_body(error, "req_1"))
    assert body["error"].pop("llmproxy")["request_id"] == "req_1"
    assert body == {"error": content}


def test_error_body_gives_the_reason_that_failover_decides_by() -> None:
    """The reason is the class of an upstream's failure, and the code of an error of our own."""
    reasons = [
        orjson.loads(error_body(error, None))["error"]["llmproxy"]["reason"]
        for error in (UpstreamTimeout("m", phase="idle"), error_of(402, {}, b""), BadRequest("m"))
    ]
    assert reasons == ["timeout", "quota", "bad_request"]


def test_error_body_stands_bytes_that_are_no_text() -> None:
    """A message that quotes undecodable bytes still makes a body."""
    assert orjson.loads(error_body(BadRequest("no \udcff text"), None))["error"]["message"] == "no ? text"


def test_error_event_is_one_event() -> None:
    """In a stream an error is one data event, with no end mark after it."""
    event = error_event(BadRequest("m"), "req_1")
    assert re.fullmatch(rb"data: (\{[^\n]*\})\n\n", event)
    assert orjson.loads(event[6:]) == orjson.loads(error_body(BadRequest("m"), "req_1"))
