"""Answers from Cohere's v2 API as chat completions and lists of embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llmproxy.dialects.chat_answer import (
    AnsweredCall,
    AnswerIdentity,
    ChatAnswer,
    FinishReason,
    model_failed,
    new_call_id,
    url_citation,
)
from llmproxy.dialects.embeddings import encode_embeddings
from llmproxy.dialects.openai_chat import token_count
from llmproxy.errors import Failure, UpstreamBroken, UpstreamRefused
from llmproxy.request import Document
from llmproxy.usage import Usage

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "ERROR_LIMIT": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR_TOXIC": "content_filter",
}
_FAILURES: Final = ("ERROR", "TIMEOUT")


def translated_answer(document: Document, identity: AnswerIdentity, custom_tools: frozenset[str]) -> ChatAnswer:
    """A whole answer. Raises UpstreamBroken when it is none, UpstreamRefused when the model failed."""
    message = document.get("message")
    if not isinstance(message, dict):
        raise UpstreamBroken("The provider's answer holds no message.")
    answer = ChatAnswer(identity)
    plan, content = text_of(message, "tool_plan"), objects(message.get("content"))
    # What the model means to do before it calls tools is what it says to the user then.
    answer.text = [plan, *[text_of(chunk, "text") for chunk in content]]
    answer.reasoning = [thought for chunk in content if (thought := text_of(chunk, "thinking"))]
    answer.tool_calls = list(_calls(message, custom_tools))
    if citations := objects(message.get("citations")):
        starts = text_starts(content, len(plan))
        answer.annotations = [annotation for citation in citations for annotation in cited(citation, starts)]
    native = document.get("finish_reason")
    if native in _FAILURES and not (any(answer.text) or answer.tool_calls):
        raise failed(native)
    answer.finish_reason, answer.native_finish_reason = finish_reason(native, has_tools=bool(answer.tool_calls))
    if items := objects(document.get("logprobs")):
        answer.logprobs = logprobs(items)
    answer.usage = usage_of(document.get("usage"))
    return answer


def _calls(message: Document, custom_tools: frozenset[str]) -> Iterator[AnsweredCall]:
    for call in objects(message.get("tool_calls")):
        function = inner(call, "function")
        name = text_of(function, "name")
        arguments = text_of(function, "arguments") or "{}"
        yield AnsweredCall(text_of(call, "id") or new_call_id(), name, arguments, name in custom_tools)


def finish_reason(native: object, *, has_tools: bool) -> tuple[FinishReason, str | None]:
    """OpenAI's word for why the model stopped, and Cohere's where that says more."""
    known = _FINISH_REASONS.get(native) if isinstance(native, str) else None
    if known is None or known == "stop":
        lost = native if known is None and isinstance(native, str) else None
        return "tool_calls" if has_tools else "stop", lost
    return known, None


def failed(native: object, message: str = "") -> UpstreamRefused:
    """The error for an answer that ends in one."""
    if native != "TIMEOUT":
        return model_failed(message) if message else model_failed()
    return UpstreamRefused(
        message or "The model took too long to answer; try again.",
        failure=Failure.TIMEOUT,
        upstream_status=200,
        status=504,
        code="request_timeout",
    )


def is_failure(native: object) -> bool:
    """Whether a finish reason means that the model failed."""
    return native in _FAILURES


# Citations


def text_starts(content: Sequence[Document], first: int = 0) -> Mapping[int, int]:
    """Where the text of each chunk starts in the joined text, which has `first` characters before it."""
    starts, position = {}, first
    for index, chunk in enumerate(content):
        starts[index] = position
        position += len(text_of(chunk, "text"))
    return starts


def cited(citation: Document, starts: Mapping[int, int]) -> Iterator[Document]:
    """A citation of the text, once for each of its sources; those of thoughts and plans have no place in it."""
    begin, end = citation.get("start"), citation.get("end")
    if citation.get("type") not in (None, "TEXT_CONTENT") or not isinstance(begin, int) or not isinstance(end, int):
        return
    index = citation.get("content_index")
    # Without an index it is the last chunk: all that comes before the answer is thought.
    shift = starts.get(index if isinstance(index, int) else max(starts, default=0), 0)
    for source in objects(citation.get("sources")):
        original = inner(source, "document") or inner(source, "tool_output")
        title = text_of(original, "title") or text_of(source, "id")
        yield url_citation(begin + shift, end + shift, title, text_of(original, "url"))


def logprobs(items: Sequence[Document]) -> Document:
    """Log probabilities in OpenAI's form; one entry for each piece of text that has any."""
    content = []
    for item in items:
        values = item.get("logprobs")
        if isinstance(values, list) and values and all(isinstance(value, int | float) for value in values):
            text = text_of(item, "text")
            bytes_ = list(text.encode("utf-8", "replace"))
            content.append({"token": text, "logprob": sum(values), "bytes": bytes_, "top_logprobs": []})
    return {"content": content, "refusal": None}


# Usage


def usage_of(usage: object) -> Usage | None:
    """What Cohere bills for, where it says so, else the tokens it counted; None when it tells nothing.

    The tokens counted hold those of Cohere's own instructions, which nobody pays for.
    """
    if not isinstance(usage, dict):
        return None
    counted = inner(usage, "billed_units") or inner(usage, "tokens")
    sent, received = token_count(counted, "input_tokens"), token_count(counted, "output_tokens")
    if sent is None and received is None:
        return None
    cached = min(token_count(usage, "cached_tokens") or 0, sent or 0)
    return Usage(
        uncached_input_tokens=(sent or 0) - cached,
        cache_read_input_tokens=cached,
        text_output_tokens=received or 0,
    )


# Embeddings


def translated_embeddings(document: Document, model: str, count: int, *, is_base64: bool) -> bytes:
    """The list of embeddings. Raises UpstreamBroken when there is not one for each text."""
    vectors = inner(document, "embeddings").get("float")
    if not isinstance(vectors, list) or len(vectors) != count or not all(map(_is_vector, vectors)):
        raise UpstreamBroken("The provider's answer does not hold an embedding for each text.")
    tokens = token_count(inner(inner(document, "meta"), "billed_units"), "input_tokens")
    return encode_embeddings(vectors, model, tokens, is_base64=is_base64)


def _is_vector(vector: object) -> bool:
    return isinstance(vector, list) and all(isinstance(value, int | float) for value in vector)


# What follows reads whatever the vendor sent.


def objects(value: Any) -> Sequence[Document]:  # see above
    """The objects of a list; an object alone counts as a list of one."""
    if value is None:
        return ()
    listed = value if isinstance(value, list) else [value]
    return [item for item in listed if isinstance(item, dict)]


def inner(holder: Document, name: str) -> Document:
    """An object inside another; an empty one when it is not there."""
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def text_of(holder: Document, name: str) -> str:
    """A member that is text; "" when it is not."""
    value = holder.get(name)
    return value if isinstance(value, str) else ""
