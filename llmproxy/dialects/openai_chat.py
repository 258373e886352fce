"""What the OpenAI format says about an answer: its usage. Chat, text completions and embeddings alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmproxy.dialects.openai_errors import error_body, error_event, error_in, error_of
from llmproxy.exchange import Document, Usage

__all__ = ["error_body", "error_event", "error_in", "error_of", "reported_usage", "token_count", "usage_of"]

# No request has that many tokens: a larger number is a mistake, and would not fit a database's integers.
_MAX_TOKENS: Final = 10**12


def usage_of(document: Document) -> Usage | None:
    """An answer's usage in classes that add up to its prompt and completion tokens; None when it tells none.

    OpenAI counts cached and audio tokens inside `prompt_tokens`, and reasoning inside `completion_tokens`. A number
    that cannot be true never raises: it is left out, or cut down to what the sum leaves room for.
    """
    usage = reported_usage(document)
    if usage is None:
        return None
    prompt = token_count(usage, "prompt_tokens")
    completion = token_count(usage, "completion_tokens")
    total = token_count(usage, "total_tokens")
    if prompt is None and completion is None and total is None:
        return None
    if prompt is None:
        prompt = max((total or 0) - (completion or 0), 0)
    if completion is None:
        completion = max((total or 0) - prompt, 0)
    return _in_classes(prompt, completion, usage)


def reported_usage(document: Document) -> Document | None:
    """The usage object as the provider wrote it, wherever it stands; None when there is none."""
    choices = document.get("choices")
    first_choice = choices[0] if isinstance(choices, list) and choices else None
    for holder in (document, document.get("x_groq"), first_choice):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict) and usage:
            return usage
    return None


def _in_classes(prompt: int, completion: int, usage: Document) -> Usage:
    inside_prompt = _details(usage, "prompt_tokens_details")
    cached = token_count(inside_prompt, "cached_tokens")
    if cached is None:
        cached = token_count(usage, "prompt_cache_hit_tokens", "cached_tokens") or 0
    written = token_count(inside_prompt, "cache_write_tokens") or 0
    # An extension of ours: which of the writes are kept for an hour.
    written_1h = token_count(inside_prompt, "cache_write_1h_tokens") or 0
    audio_in = token_count(inside_prompt, "audio_tokens") or 0
    inside_completion = _details(usage, "completion_tokens_details")
    reasoning = token_count(inside_completion, "reasoning_tokens") or 0
    audio_out = token_count(inside_completion, "audio_tokens") or 0
    cached, written, audio_in, uncached = _shared_out(prompt, cached, written, audio_in)
    reasoning, audio_out, text = _shared_out(completion, reasoning, audio_out)
    return Usage(
        uncached_input_tokens=uncached,
        cache_read_input_tokens=cached,
        cache_write_5m_input_tokens=max(written - written_1h, 0),
        cache_write_1h_input_tokens=min(written, written_1h),
        audio_input_tokens=audio_in,
        text_output_tokens=text,
        reasoning_output_tokens=reasoning,
        audio_output_tokens=audio_out,
    )


def _shared_out(available: int, *wanted: int) -> tuple[int, ...]:
    """Each count, as far as there is room for it, and at last what is left over."""
    shares = []
    for count in wanted:
        shares.append(min(count, available))
        available -= shares[-1]
    return (*shares, available)


def _details(usage: Document, name: str) -> Document:
    details = usage.get(name)
    return details if isinstance(details, dict) else {}


# The values are whatever the provider sent.
def token_count(holder: Mapping[str, Any], *names: str) -> int | None:
    """The first of these members that is a believable number of tokens."""
    for name in names:
        value = holder.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if 0 <= value <= _MAX_TOKENS and value == int(value):
            return int(value)
    return None
