"""Answers of the Responses API as chat completions: every kind of output, every end, every class of usage."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.dialects.openai_chat import usage_of
from llmproxy.errors import Failure, UpstreamBroken, UpstreamError, UpstreamRefused
from llmproxy.usage import Usage
from tests.responses_api import (
    CREATED,
    ISSUER,
    JSON,
    MODEL,
    SETTINGS,
    call,
    custom_call,
    message,
    mutate,
    native,
    reasoning,
    response,
    text,
    whole,
    whole_bytes,
)

CITED = {"type": "url_citation", "start_index": 1, "end_index": 3, "title": "T", "url": "https://e.com"}
OWN_FILE = {"type": "file_citation", "file_id": "file-1", "filename": "a", "index": 0}
LOGPROB = {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": []}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
REFUSAL = {"type": "refusal", "refusal": "I cannot help with that."}
FULL = response(
    reasoning("Let me see.", "The weather."),
    SEARCH,
    message(text("Äh 🎉 "), text("one", annotations=[CITED, OWN_FILE], logprobs=[LOGPROB]), phase="commentary"),
    reasoning(number=2, encrypted="gBBB"),
    call("weather", '{"city": "Köln", "n": 1.0}'),
    call("now", "", number=2),
    custom_call("sql", "SELECT 'ü'", number=3),
    service_tier="priority",
)


def test_an_answer_of_everything() -> None:
    """Text, reasoning, calls and citations come out as the SDK reads them; what is the vendor's own is passed over."""
    completion = whole(FULL)
    assert (completion.id, completion.model, completion.created) == ("chatcmpl-resp_1", MODEL, CREATED)
    assert completion.service_tier == "priority"
    [choice] = completion.choices
    said = choice.message
    assert (said.content, said.refusal, choice.finish_reason) == ("Äh 🎉 one", None, "tool_calls")
    assert [
        (made.id, made.type, made.function.name, made.function.arguments)
        for made in said.tool_calls or ()
        if made.type == "function"
    ] == [("call_1", "function", "weather", '{"city": "Köln", "n": 1.0}'), ("call_2", "function", "now", "{}")]
    custom = (said.tool_calls or [])[2]
    assert custom.type == "custom"
    assert (custom.id, custom.custom.name, custom.custom.input) == ("call_3", "sql", "SELECT 'ü'")
    assert said.annotations is not None
    [noted] = said.annotations
    assert (noted.url_citation.start_index, noted.url_citation.end_index) == (6, 8)
    assert choice.logprobs is not None
    assert [entry.token for entry in choice.logprobs.content or ()] == ["é"]
    extra = said.model_extra or {}
    assert extra["reasoning_content"] == "Let me see.\n\nThe weather."
    assert extra["extra_content"] == {"openai": {"phase": "commentary"}}
    assert [block["position"] for block in extra["thinking_blocks"]] == [0, 2]


def test_an_answer_that_is_sent_back_is_what_it_was() -> None:
    """Trap 7: what a client keeps and returns becomes the vendor's own items again, encrypted reasoning to the byte."""
    said = orjson.loads(whole_bytes(FULL))["choices"][0]["message"]
    again = native(messages=[said])["input"]
    kinds = ["reasoning", "message", "reasoning", "function_call", "function_call", "custom_tool_call"]
    assert [item["type"] for item in again] == kinds
    assert [again[0], again[2]] == [FULL["output"][0], FULL["output"][3]]
    assert [item.get("call_id") for item in again[3:]] == ["call_1", "call_2", "call_3"]
    assert again[1]["phase"] == "commentary"


def test_reasoning_without_its_cipher_is_not_for_the_way_back() -> None:
    """A summary alone is shown, but nothing is kept that the vendor would not know again."""
    said = whole(response(reasoning("Hm.", encrypted=None), message(text("Yes")))).choices[0].message
    assert said.model_extra == {"reasoning_content": "Hm."}


def test_a_refusal_is_no_content() -> None:
    """A refusal stands in its own member, and content is null."""
    [choice] = whole(response(message(REFUSAL))).choices
    assert (choice.message.refusal, choice.message.content) == (REFUSAL["refusal"], None)
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("output", "members", "expected"),
    [
        ([message(text("Hi"))], {}, ("stop", None)),
        ([call("now")], {}, ("tool_calls", None)),
        ([], {}, ("stop", None)),
        (
            [message(text("H"))],
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            ("length", "max_output_tokens"),
        ),
        (
            [call("now", '{"a')],
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            ("length", "max_output_tokens"),
        ),
        (
            [],
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            ("content_filter", "content_filter"),
        ),
        ([], {"status": "incomplete"}, ("length", "incomplete")),
    ],
)
def test_how_answers_end(output: list[Any], members: dict[str, Any], expected: tuple[str, str | None]) -> None:
    """Each status is a finish reason, with the vendor's word beside it where an answer was cut short."""
    choice = orjson.loads(whole_bytes(response(*output, **members)))["choices"][0]
    assert (choice["finish_reason"], choice.get("native_finish_reason")) == expected
    assert choice["message"]["content"] is not None or choice["message"]["tool_calls"]


def test_classes_of_usage_add_up() -> None:
    """Trap 14: cached, written and reasoning tokens are inside the totals, and stay told apart."""
    usage = usage_of(orjson.loads(whole_bytes(response(message(text("Hi"))))))
    assert usage == Usage(
        uncached_input_tokens=10,
        cache_read_input_tokens=60,
        cache_write_5m_input_tokens=30,
        text_output_tokens=30,
        reasoning_output_tokens=20,
    )
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (100, 50)


def test_an_answer_without_usage_makes_none_up() -> None:
    """Where the vendor counts nothing, the answer says nothing."""
    assert whole(response(message(text("Hi")), usage=None)).usage is None


def test_moderation_has_the_form_of_chat_completions() -> None:
    """The one result of either side is a list of one."""
    result = {
        "type": "moderation_result",
        "model": "omni",
        "flagged": False,
        "categories": {},
        "category_scores": {},
        "category_applied_input_types": {},
    }
    failed = {"type": "error", "code": "x", "message": "y"}
    moderation = whole(response(message(text("Hi")), moderation={"input": result, "output": failed})).moderation
    assert moderation is not None
    assert moderation.input.to_dict() == {"type": "moderation_results", "model": "omni", "results": [result]}
    assert moderation.output.to_dict() == failed


# Failures


@pytest.mark.parametrize(
    ("code", "failure", "status"),
    [
        ("server_error", Failure.BROKEN, 502),
        ("rate_limit_exceeded", Failure.RATE_LIMIT, 429),
        ("invalid_prompt", Failure.CONTENT_POLICY, 400),
        ("bio_policy", Failure.CONTENT_POLICY, 400),
        ("image_content_policy_violation", Failure.CONTENT_POLICY, 400),
        ("invalid_image_url", Failure.INVALID_REQUEST, 400),
        ("image_too_large", Failure.INVALID_REQUEST, 400),
        ("failed_to_download_image", Failure.INVALID_REQUEST, 400),
    ],
)
def test_a_failed_answer_is_an_error(code: str, failure: Failure, status: int) -> None:
    """Trap 22: a failure inside a 200 has its own class and keeps the vendor's code."""
    failed = response(status="failed", error={"code": code, "message": "It failed."})
    with pytest.raises(UpstreamRefused) as caught:
        whole_bytes(failed)
    assert (caught.value.failure, caught.value.http_status) == (failure, status)
    assert (caught.value.error_code, caught.value.message) == (code, "It failed.")


@pytest.mark.parametrize("status", ["failed", "cancelled", "queued", "in_progress"])
def test_an_unfinished_answer_is_none(status: str) -> None:
    """What is neither whole nor cut short in good order is an error, never an empty answer."""
    with pytest.raises(UpstreamBroken):
        whole_bytes(response(message(text("Hi")), status=status))


@pytest.mark.parametrize(
    "document", [{}, {"status": "completed"}, {"choices": []}, {"status": "completed", "output": 1}]
)
def test_what_is_no_answer_is_an_error(document: dict[str, Any]) -> None:
    """A document of another kind is told from an answer."""
    with pytest.raises(UpstreamBroken):
        whole_bytes(document)


def test_a_call_without_a_name_is_an_error() -> None:
    """A call that the client could not make is not passed on."""
    with pytest.raises(UpstreamBroken, match="without a name"):
        whole_bytes(response(call("x")) | {"output": [{"type": "function_call", "call_id": "c"}]})


def test_missing_ids_are_made_up() -> None:
    """A call and an answer without ids get some, as clients need them."""
    bare = response() | {
        "output": [{"type": "function_call", "name": "now"}],
        "id": None,
        "created_at": "x",
        "model": "",
    }
    completion = whole(bare)
    assert completion.id.startswith("chatcmpl-")
    assert (completion.created, completion.model) == (1, MODEL)
    assert (completion.choices[0].message.tool_calls or [])[0].id.startswith("call_")


@SETTINGS
@given(st.integers(1, 130), JSON)
def test_no_answer_breaks_the_translation(place: int, new: Any) -> None:
    """Whatever stands in any place of an answer, a completion comes out, or an error of the provider's."""
    try:
        completion = orjson.loads(whole_bytes(mutate(FULL, place, new)))
    except UpstreamError:
        return
    assert completion["choices"][0]["finish_reason"] in ("stop", "tool_calls", "length", "content_filter")


def test_the_issuer_is_named_in_what_the_client_keeps() -> None:
    """Reasoning says who can read it again."""
    said = orjson.loads(whole_bytes(FULL))["choices"][0]["message"]
    assert {block["issuer"] for block in said["thinking_blocks"]} == {ISSUER}
