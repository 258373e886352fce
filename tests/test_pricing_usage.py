"""Usage of every vendor: classes that add up to the vendor's own total, whatever numbers or garbage it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.dialects.chat_answer import AnswerIdentity, ChatAnswer, ChunkWriter
from llmproxy.dialects.openai_chat import usage_of
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.providers.anthropic.answer import message_usage
from llmproxy.providers.bedrock.answer import token_usage
from llmproxy.providers.cohere.answer import usage_of as cohere_usage
from llmproxy.providers.gemini.answer import usage_of as gemini_usage
from llmproxy.providers.responses.answer import response_usage
from llmproxy.service_tiers import possible_tiers, service_tier
from llmproxy.usage import TOKEN_CLASSES, UNIT_CLASSES, USAGE_CLASSES, Usage
from tests.providers import KINDS, provider

COUNTS = st.integers(0, 10**7)
GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = (
    *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens"),
    *("cache_creation_input_tokens", "cache_read_input_tokens", "inputTokens", "outputTokens", "promptTokenCount"),
    *("candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount", "totalTokenCount", "seconds", "type"),
)
HOLDERS = (
    *("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details"),
    *("cache_creation", "server_tool_use", "billed_units", "tokens", "cacheDetails", "promptTokensDetails"),
    *("cacheTokensDetails", "candidatesTokensDetails"),
)
DETAILS = (
    *("cached_tokens", "cached_audio_tokens", "audio_tokens", "image_tokens", "reasoning_tokens", "thinking_tokens"),
    *("cache_write_tokens", "cache_write_1h_tokens", "ephemeral_1h_input_tokens", "web_search_requests"),
    *("input_tokens", "output_tokens", "inputTokens", "ttl", "modality", "tokenCount"),
)
VALUES = COUNTS | st.sampled_from(["1h", "AUDIO", "IMAGE", "duration"]) | GARBAGE
ANY_DETAILS = st.dictionaries(st.sampled_from(DETAILS), VALUES, max_size=6)
ANY_USAGE = st.builds(
    lambda counts, details: {**counts, **details},
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8),
    st.dictionaries(st.sampled_from(HOLDERS), ANY_DETAILS | st.lists(ANY_DETAILS, max_size=3) | GARBAGE, max_size=5),
)
READERS: dict[str, Callable[[Any], Usage | None]] = {
    "openai": lambda usage: usage_of({"usage": usage}),
    "responses": lambda usage: response_usage({"usage": usage, "output": usage}),
    "anthropic": message_usage,
    "bedrock": lambda usage: token_usage({"usage": usage, "serviceTier": usage}),
    "cohere": cohere_usage,
    "gemini": lambda usage: gemini_usage(usage) if isinstance(usage, dict) else None,
}


def counts(usage: Usage) -> list[int]:
    """Every count of it."""
    return [getattr(usage, name) for name in USAGE_CLASSES]


@pytest.mark.parametrize("vendor", READERS)
@settings(max_examples=80, deadline=None)
@given(usage=ANY_USAGE | GARBAGE)
def test_garbage_is_no_usage_and_never_an_error(vendor: str, usage: Any) -> None:
    """Whatever stands where usage should be: nothing is raised, no count is negative, and sums are of their parts."""
    found = READERS[vendor](usage)
    if found is not None:
        assert min(counts(found)) >= 0
        assert found.total_tokens == sum(getattr(found, name) for name in TOKEN_CLASSES)


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=8, deadline=None)
@given(usage=ANY_USAGE, prompt=COUNTS, completion=COUNTS)
def test_every_compatible_vendors_classes_add_up(
    kind: str, usage: dict[str, Any], prompt: int, completion: int
) -> None:
    """Whatever stands inside them, prompt and completion are what is charged, plus reasoning where it stands beside."""
    usage |= {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    found = provider(kind).usage({"usage": usage})
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (prompt, completion)
    assert min(counts(found)) >= 0


@settings(max_examples=200, deadline=None)
@given(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), st.tuples(COUNTS, COUNTS), COUNTS)
def test_claudes_classes_add_up(sent: tuple[int, ...], received: tuple[int, int], searches: int) -> None:
    """Cached input stands beside the input, thinking inside the output."""
    fresh, read, five_minutes, hour = sent
    output, thought = received
    found = message_usage(
        {
            "input_tokens": fresh,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": five_minutes + hour,
            "cache_creation": {"ephemeral_5m_input_tokens": five_minutes, "ephemeral_1h_input_tokens": hour},
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": thought},
            "server_tool_use": {"web_search_requests": searches},
        }
    )
    assert found is not None
    assert (found.cache_write_5m_input_tokens, found.cache_write_1h_input_tokens) == (five_minutes, hour)
    assert found.total_tokens == sum(sent) + output
    assert found.web_searches == searches


@settings(max_examples=200, deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS, st.lists(st.tuples(st.sampled_from(["TEXT", "AUDIO", "IMAGE"]), COUNTS)))
def test_geminis_classes_add_up(
    prompt: int, cached: int, answered: int, thoughts: int, details: list[tuple[str, int]]
) -> None:
    """Cached tokens are inside the prompt, thoughts beside the answer, and what the details say never makes it more."""
    listed = [{"modality": modality, "tokenCount": count} for modality, count in details]
    found = gemini_usage(
        {
            "promptTokenCount": prompt,
            "cachedContentTokenCount": cached,
            "candidatesTokenCount": answered,
            "thoughtsTokenCount": thoughts,
            "totalTokenCount": prompt + answered + thoughts,
            **dict.fromkeys(("promptTokensDetails", "cacheTokensDetails", "candidatesTokensDetails"), listed),
        }
    )
    assert found.total_tokens == prompt + answered + thoughts
    assert min(counts(found)) >= 0


TRANSLATED = st.builds(
    Usage,
    **dict.fromkeys(TOKEN_CLASSES, COUNTS),
    web_searches=COUNTS,
    images=st.just(0),
    audio_seconds=st.just(0),
    characters=st.just(0),
    provenance=st.just("measured"),
    service_tier=st.sampled_from([None, "priority", "fast"]),
    region=st.sampled_from([None, "us"]),
)


@settings(max_examples=200, deadline=None)
@given(TRANSLATED)
def test_translation_loses_nothing_that_is_charged(usage: Usage) -> None:
    """What a vendor's usage says in the OpenAI format, whole or in a stream, is read back as what it was."""
    identity = AnswerIdentity("1", "m", 0)
    whole = orjson.loads(ChatAnswer(identity, text=["Hi"], usage=usage).encode())
    assert usage_of(whole) == usage
    facts = StreamFacts(hide_usage=False)
    facts.feed(ChunkWriter(identity).end(usage))
    assert facts.usage is not None
    assert usage_of(facts.usage) == usage


def test_a_stream_tells_its_tier() -> None:
    """The usage event of a stream names the tier that decides its price."""
    facts = StreamFacts(hide_usage=False)
    facts.feed(b'data: {"choices":[],"service_tier":"flex","usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n')
    assert usage_of(facts.usage or {}) == Usage(uncached_input_tokens=1, text_output_tokens=2, service_tier="flex")


@pytest.mark.parametrize(
    ("usage", "seconds"),
    [
        ({"type": "duration", "seconds": 61}, 61),
        ({"type": "duration", "seconds": 0.2}, 1),
        ({"type": "duration", "seconds": -3}, None),
        ({"type": "duration", "seconds": float("nan")}, None),
        ({"type": "tokens", "input_tokens": 3, "output_tokens": 1, "seconds": 9}, 0),
        ({"prompt_tokens": 3, "completion_tokens": 1, "prompt_audio_seconds": 15}, 15),
    ],
)
def test_audio_may_be_charged_by_its_length(usage: dict[str, Any], seconds: int | None) -> None:
    """Transcriptions tell seconds instead of tokens, some chats tell both; begun seconds count in full."""
    found = usage_of({"usage": usage})
    assert (found.audio_seconds if found else None) == seconds


def test_images_tell_their_tokens_under_newer_names() -> None:
    """What is newer than chat completions says input and output."""
    usage = {
        "input_tokens": 60,
        "output_tokens": 1056,
        "total_tokens": 1116,
        "input_tokens_details": {"image_tokens": 50, "text_tokens": 10},
        "output_tokens_details": {"image_tokens": 1056, "text_tokens": 0},
    }
    assert usage_of({"created": 1, "usage": usage}) == Usage(
        uncached_input_tokens=10, image_input_tokens=50, image_output_tokens=1056
    )


def test_units_are_no_tokens() -> None:
    """What is charged by the piece is in no sum of tokens."""
    usage = Usage(uncached_input_tokens=1, web_searches=7, images=7, audio_seconds=7, characters=7)
    assert all(getattr(usage, name) == 7 for name in UNIT_CLASSES)
    assert usage.total_tokens == 1


@pytest.mark.parametrize(
    ("name", "tier"),
    [("default", None), ("standard", None), ("AUTO", None), ("ON_DEMAND_FLEX", "flex"), ("priority", "priority")],
)
def test_tiers_have_one_name_for_all_vendors(name: str, tier: str | None) -> None:
    """The usual one is none, and Google's long names are the short ones of the others."""
    assert service_tier(name) == tier
    assert service_tier(3) is None


@pytest.mark.parametrize(
    ("asked", "speed", "possible"),
    [
        (None, None, (None, "priority")),
        ("auto", None, (None, "priority")),
        ("default", None, (None,)),
        ("flex", None, (None, "flex")),
        ("standard_only", "fast", (None, "fast")),
    ],
)
def test_an_answer_may_come_in_a_dearer_tier_than_was_asked_for(
    asked: str | None, speed: str | None, possible: tuple[str | None, ...]
) -> None:
    """An account may have priority for everything that does not ask for something else."""
    assert possible_tiers(asked, speed) == possible
