"""What `generateContent` answers, as a chat completion; and what whole and streamed answers share.

The values are whatever the provider sent, so every member is looked at before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from llmproxy.dialects.chat_answer import (
    AnsweredCall,
    AnswerIdentity,
    ChatAnswer,
    FinishReason,
    encode_choices,
    new_answer_id,
    new_call_id,
    settled_reason,
)
from llmproxy.dialects.objects import objects_in
from llmproxy.errors import UpstreamBroken
from llmproxy.providers.gemini.citations import citations_of
from llmproxy.providers.gemini.content import Issuer
from llmproxy.request import Document
from llmproxy.service_tiers import service_tier
from llmproxy.usage import Usage

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "ESCALATION": "content_filter",
}
_FAILURES: Final = frozenset(
    {
        *("MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL"),
        *("TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE"),
    }
)
# No answer has that many tokens; larger numbers are mistakes.
_MAX_TOKENS: Final = 10**12


def translate_answer(
    document: Document, identity: AnswerIdentity, issuer: Issuer, customs: frozenset[str] = frozenset()
) -> bytes:
    """The chat completion object.

    Args:
        customs: Names of the tools whose calls are to look like a custom tool's.

    Raises UpstreamBroken when there is no answer in it.
    """
    refusal, candidates = prompt_refusal(document), objects_in(document.get("candidates"))
    if refusal is not None:
        answers = [_refused(identity, *refusal)]
    else:
        answers = [_answer(candidate, identity, issuer, customs) for candidate in candidates]
    if not answers:
        raise UpstreamBroken("The provider's answer holds no candidates.")
    metadata = document.get("usageMetadata")
    if isinstance(metadata, dict):
        searches = [searches_of(candidate, identity.model) for candidate in candidates]
        answers[0].usage = usage_of(metadata, sum(searches))
    return encode_choices(answers)


def _refused(identity: AnswerIdentity, reason: str, message: str) -> ChatAnswer:
    return ChatAnswer(identity, "content_filter", refusal=message, native_finish_reason=reason)


def _answer(candidate: Document, identity: AnswerIdentity, issuer: Issuer, customs: frozenset[str]) -> ChatAnswer:
    answer = ChatAnswer(identity)
    parts = parts_of(candidate)
    for part in parts:
        _add_part(answer, part, issuer, customs)
    stated = candidate.get("finishReason")
    native = stated if isinstance(stated, str) else None
    has_output = bool(answer.text or answer.tool_calls or answer.images)
    if not has_output and (native is None or is_failure(native)):
        raise failed(native)
    answer.finish_reason = finish_reason(native, has_calls=bool(answer.tool_calls))
    answer.native_finish_reason = native
    if "groundingMetadata" in candidate or "citationMetadata" in candidate:
        answer.annotations = citations_of(candidate, [_shown(part) for part in parts])
    if "logprobsResult" in candidate:
        answer.logprobs = logprobs_of(candidate)
    return answer


def _add_part(answer: ChatAnswer, part: Document, issuer: Issuer, customs: frozenset[str]) -> None:
    call = None
    if "functionCall" in part:
        call = call_of(part, issuer, customs, {call.id for call in answer.tool_calls})
    if call is not None:
        answer.tool_calls.append(call)
    elif (image := image_of(part)) is not None:
        answer.images.append(image)
    elif part.get("thought") is True:
        answer.reasoning.append(text_of(part))
    elif text := text_of(part):
        answer.text.append(text)
    if call is None and (kept := signature_of(part, issuer)):
        answer.extra_content = kept


# What streams share


def identified(document: Document, model: str, created: int, known_id: str | None = None) -> AnswerIdentity:
    """What the answer is known by: what Google says of it, and the rest as it is given."""
    own_id, own_model = document.get("responseId"), document.get("modelVersion")
    name = f"chatcmpl-{own_id}" if isinstance(own_id, str) and own_id else known_id or new_answer_id()
    return AnswerIdentity(name, own_model if isinstance(own_model, str) and own_model else model, created)


def prompt_refusal(document: Document) -> tuple[str, str] | None:
    """Why the prompt was blocked, in Google's word and as a sentence; None when it was not."""
    feedback = document.get("promptFeedback")
    reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
    if not isinstance(feedback, dict) or not isinstance(reason, str) or objects_in(document.get("candidates")):
        return None
    message = feedback.get("blockReasonMessage")
    stated = message if isinstance(message, str) and message else f"The provider blocked the prompt: {reason}."
    return reason, stated


def finish_reason(native: str | None, *, has_calls: bool) -> FinishReason:
    """The finish reason; Google ends a turn that calls functions like any other."""
    return settled_reason(_FINISH_REASONS.get(native or "", "stop"), has_calls=has_calls)


def is_failure(native: str) -> bool:
    """Whether a finish reason says that the model's output was not usable."""
    return native in _FAILURES


def failed(native: str | None) -> UpstreamBroken:
    """The error for an answer that came to nothing."""
    reason = (native or "no reason given")[:100]
    return UpstreamBroken(f"The model's answer could not be used ({reason}); ask again.")


def parts_of(candidate: Document) -> Sequence[Document]:
    """The parts of a candidate's content."""
    content = candidate.get("content")
    return objects_in(content.get("parts")) if isinstance(content, dict) else []


def text_of(part: Document) -> str:
    """A part's text, "" when it has none."""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _shown(part: Document) -> str:
    return "" if part.get("thought") is True else text_of(part)


def call_of(part: Document, issuer: Issuer, customs: frozenset[str], taken: set[str]) -> AnsweredCall | None:
    """The function call of a part; `taken` are ids that other calls of the answer have."""
    call = part.get("functionCall")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    native_id = call.get("id")
    is_usable = isinstance(native_id, str) and native_id and native_id not in taken
    return AnsweredCall(
        str(native_id) if is_usable else new_call_id(),
        call["name"],
        _arguments(call.get("args")),
        is_custom=call["name"] in customs,
        extra_content=signature_of(part, issuer),
    )


def _arguments(arguments: object) -> str:
    try:
        return orjson.dumps(arguments if isinstance(arguments, dict) else {}).decode()
    except orjson.JSONEncodeError as error:
        raise UpstreamBroken("The model's answer holds arguments that are nested too deep.") from error


def signature_of(part: Document, issuer: Issuer) -> Document:
    """The part's thought signature as `extra_content`, and whose it is; empty when it has none."""
    signature = part.get("thoughtSignature")
    if not isinstance(signature, str) or not signature:
        return {}
    return {"google": {"thought_signature": signature, "issuer": issuer}}


def image_of(part: Document) -> Document | None:
    """The image of a part, as a content part with a data URL."""
    data = part.get("inlineData")
    if part.get("thought") is True or not isinstance(data, dict) or not isinstance(data.get("data"), str):
        return None
    url = f"data:{data.get('mimeType') or 'image/png'};base64,{data['data']}"
    return {"type": "image_url", "image_url": {"url": url}}


def logprobs_of(candidate: Document) -> Document | None:
    """Log probabilities in OpenAI's form; None when there are none."""
    result = candidate.get("logprobsResult")
    chosen = objects_in(result.get("chosenCandidates")) if isinstance(result, dict) else []
    if not chosen or not isinstance(result, dict):
        return None
    tops = [objects_in(step.get("candidates")) for step in objects_in(result.get("topCandidates"))]
    tops.extend([] for _ in chosen[len(tops) :])
    content = [
        {**_token(token), "top_logprobs": [_token(other) for other in others]}
        for token, others in zip(chosen, tops, strict=False)
    ]
    return {"content": content, "refusal": None}


def _token(token: Mapping[str, Any]) -> Document:  # as the provider sent it
    text, logprob = token.get("token"), token.get("logProbability")
    text = text if isinstance(text, str) else ""
    number = logprob if isinstance(logprob, int | float) else 0.0
    return {"token": text, "logprob": number, "bytes": list(text.encode(errors="replace"))}


# Usage


def usage_of(metadata: Document, searches: int = 0) -> Usage:
    """Usage in classes that add up. Google counts cached tokens inside the prompt, and thoughts beside the answer."""
    prompt = _count(metadata, "promptTokenCount") + _count(metadata, "toolUsePromptTokenCount")
    cached = min(_count(metadata, "cachedContentTokenCount"), prompt)
    sent, kept = _media(metadata, "promptTokensDetails"), _media(metadata, "cacheTokensDetails")
    audio_cached = min(kept.audio, cached)
    audio_in = min(max(sent.audio - audio_cached, 0), prompt - cached)
    image_in = min(max(sent.image - kept.image, 0), prompt - cached - audio_in)
    thoughts, answered = _count(metadata, "thoughtsTokenCount"), _count(metadata, "candidatesTokenCount")
    # Some models count their thoughts inside the answer; the total tells.
    if thoughts and _count(metadata, "totalTokenCount") == prompt + answered:
        answered = max(answered - thoughts, 0)
    made = _media(metadata, "candidatesTokensDetails")
    audio_out = min(made.audio, answered)
    image_out = min(made.image, answered - audio_out)
    return Usage(
        uncached_input_tokens=prompt - cached - audio_in - image_in,
        cache_read_input_tokens=cached - audio_cached,
        audio_input_tokens=audio_in,
        cache_read_audio_input_tokens=audio_cached,
        image_input_tokens=image_in,
        text_output_tokens=answered - audio_out - image_out,
        reasoning_output_tokens=thoughts,
        audio_output_tokens=audio_out,
        image_output_tokens=image_out,
        web_searches=searches,
        service_tier=service_tier(metadata.get("serviceTier") or metadata.get("trafficType")),
    )


def searches_of(candidate: Document, model: str) -> int:
    """How many searches a candidate is charged for: each query, or with Gemini 2 any number of them as one."""
    grounding = candidate.get("groundingMetadata")
    queries = grounding.get("webSearchQueries") if isinstance(grounding, dict) else None
    if not isinstance(queries, list):
        return 0
    return min(len(queries), 1) if "gemini-2" in model else len(queries)


class _MediaTokens(NamedTuple):
    """What of a number of tokens was not text."""

    audio: int
    image: int


_ALL_TEXT: Final = _MediaTokens(0, 0)


def _media(metadata: Document, name: str) -> _MediaTokens:
    if name not in metadata:
        return _ALL_TEXT
    audio = image = 0
    for entry in objects_in(metadata[name]):
        modality = entry.get("modality")
        if modality == "AUDIO":
            audio += _count(entry, "tokenCount")
        elif modality == "IMAGE":
            image += _count(entry, "tokenCount")
    return _MediaTokens(audio, image)


def _count(holder: Document, name: str) -> int:
    value = holder.get(name)
    # A bool is no int here.
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else 0
