"""What the OpenAI format says about an answer: its usage. Chat, text completions and embeddings alike."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, Final

from llmproxy.dialects.openai_errors import error_body, error_event, error_in, error_of
from llmproxy.request import Document
from llmproxy.service_tiers import service_tier
from llmproxy.usage import Usage

__all__ = ["error_body", "error_event", "error_in", "error_of", "reported_usage", "token_count", "usage_of"]

# No request has that many tokens: a larger number is a mistake, and would not fit a database's integers.
_MAX_TOKENS: Final = 10**12
# The first two are extensions of ours: which of the cached tokens are audio, and which writes are kept for an hour.
_INSIDE_PROMPT: Final = (
    *("cached_audio_tokens", "cache_write_1h_tokens"),
    *("cache_write_tokens", "audio_tokens", "image_tokens"),
)
_INSIDE_COMPLETION: Final = ("reasoning_tokens", "audio_tokens", "image_tokens")


def usage_of(document: Document) -> Usage | None:
    """An answer's usage in classes that add up to its prompt and completion tokens; None when it tells none.

    OpenAI counts cached, audio and image tokens inside `prompt_tokens`, and reasoning inside `completion_tokens`; what
    is newer than chat completions calls them `input_tokens` and `output_tokens`. A number that cannot be true never
    raises: it is left out, or cut down to what the sum leaves room for.
    """
    usage = reported_usage(document)
    if usage is None:
        return None
    prompt = token_count(usage, "prompt_tokens", "input_tokens")
    completion = token_count(usage, "completion_tokens", "output_tokens")
    total = token_count(usage, "total_tokens")
    seconds = _audio_seconds(usage)
    if prompt is None and completion is None and total is None and not seconds:
        return None
    if prompt is None:
        prompt = max((total or 0) - (completion or 0), 0)
    if completion is None:
        completion = max((total or 0) - prompt, 0)
    return _in_classes(prompt, completion, seconds, usage, service_tier(document.get("service_tier")))


def reported_usage(document: Document) -> Document | None:
    """The usage object as the provider wrote it, wherever it stands; None when there is none."""
    choices = document.get("choices")
    first_choice = choices[0] if isinstance(choices, list) and choices else None
    for holder in (document, document.get("x_groq"), first_choice):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict) and usage:
            return usage
    return None


def _in_classes(prompt: int, completion: int, audio_seconds: int, usage: Document, tier: str | None) -> Usage:
    inside_prompt = _details(usage, "prompt_tokens_details", "input_tokens_details")
    cached = token_count(inside_prompt, "cached_tokens")
    if cached is None:
        cached = token_count(usage, "prompt_cache_hit_tokens", "cached_tokens") or 0
    cached_audio, written_1h, written, audio_in, image_in = _counts(inside_prompt, _INSIDE_PROMPT)
    cached, written, audio_in, image_in, uncached = _shared_out(prompt, (cached, written, audio_in, image_in))
    inside_completion = _details(usage, "completion_tokens_details", "output_tokens_details")
    reasoning, audio_out, image_out, text = _shared_out(completion, _counts(inside_completion, _INSIDE_COMPLETION))
    searched, region = usage.get("server_tool_use"), usage.get("inference_geo")
    return Usage(
        uncached_input_tokens=uncached,
        cache_read_input_tokens=max(cached - cached_audio, 0),
        cache_write_5m_input_tokens=max(written - written_1h, 0),
        cache_write_1h_input_tokens=min(written, written_1h),
        audio_input_tokens=audio_in,
        cache_read_audio_input_tokens=min(cached, cached_audio),
        image_input_tokens=image_in,
        text_output_tokens=text,
        reasoning_output_tokens=reasoning,
        audio_output_tokens=audio_out,
        image_output_tokens=image_out,
        web_searches=_counts(searched, ("web_search_requests",))[0] if isinstance(searched, dict) else 0,
        audio_seconds=audio_seconds,
        service_tier=tier,
        region=region if isinstance(region, str) else None,
    )


def _audio_seconds(usage: Document) -> int:
    """How long the audio was that is charged by its length, in whole seconds, as vendors round it."""
    seconds = usage.get("seconds") if usage.get("type") == "duration" else usage.get("prompt_audio_seconds")
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _MAX_TOKENS:
        return 0
    return ceil(seconds)


def _shared_out(available: int, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Each count, as far as there is room for it, and at last what is left over."""
    left = available - sum(wanted)
    if left >= 0:
        return (*wanted, left)
    shares = []
    for count in wanted:
        shares.append(min(count, available))
        available -= shares[-1]
    return (*shares, available)


def _details(usage: Document, *names: str) -> Document:
    for name in names:
        details = usage.get(name)
        if isinstance(details, dict):
            return details
    return {}


# The values are whatever the provider sent.
def _counts(holder: Mapping[str, Any], names: tuple[str, ...]) -> tuple[int, ...]:
    """Believable numbers of tokens, 0 for none; most of the members that are asked for are not there, or are zero."""
    return tuple([(token_count(holder, name) or 0) if holder.get(name) else 0 for name in names])


# The values are whatever the provider sent.
def token_count(holder: Mapping[str, Any], *names: str) -> int | None:
    """The first of these members that is a believable number of tokens."""
    for name in names:
        value = holder.get(name)
        # A bool is no int here.
        if type(value) is int:
            if 0 <= value <= _MAX_TOKENS:
                return value
        elif isinstance(value, float) and 0 <= value <= _MAX_TOKENS and value == int(value):
            return int(value)
    return None
