"""A whole answer of Converse as a chat completion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from llmproxy.dialects.chat_answer import (
    AnsweredCall,
    AnswerIdentity,
    ChatAnswer,
    FinishReason,
    model_failed,
    new_call_id,
    settled_reason,
    url_citation,
)
from llmproxy.dialects.openai_chat import token_count
from llmproxy.errors import UpstreamBroken, UpstreamRefused
from llmproxy.providers.anthropic.tools import AnswerPlan
from llmproxy.request import Document
from llmproxy.service_tiers import service_tier
from llmproxy.usage import Usage

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
# The model went astray: what there is of an answer may be no answer at all.
_FAILURES: Final = frozenset({"malformed_model_output", "malformed_tool_use"})


def chat_answer(response: Document, plan: AnswerPlan, identity: AnswerIdentity) -> ChatAnswer:
    """Translate a response. Raises UpstreamBroken when it is none, UpstreamRefused when the model failed."""
    message, stop_reason = _message(response), response.get("stopReason")
    if message is None or not isinstance(stop_reason, str):
        raise UpstreamBroken("The provider's answer is not a complete message.")
    answer = ChatAnswer(identity)
    for block in message:
        if isinstance(block, dict):
            _take(block, answer, plan)
    if stop_reason in _FAILURES and not (answer.text or answer.tool_calls):
        raise model_failure(stop_reason)
    answer.finish_reason = finish_reason(stop_reason, has_calls=bool(answer.tool_calls))
    answer.native_finish_reason = stop_reason
    answer.usage = token_usage(response)
    return answer


def finish_reason(stop_reason: str, *, has_calls: bool) -> FinishReason:
    """Why the answer ended, as OpenAI says it; a reason of the future is a stop."""
    return settled_reason(_FINISH_REASONS.get(stop_reason, "stop"), has_calls=has_calls)


def is_failure(stop_reason: str) -> bool:
    """Whether the model ended with something that is no answer."""
    return stop_reason in _FAILURES


def model_failure(stop_reason: str) -> UpstreamRefused:
    """The error for an answer that is none."""
    sentence = "The model produced an answer that the provider could not make sense of; try again."
    return model_failed(sentence, native_type=stop_reason)


def token_usage(holder: Document) -> Usage | None:
    """The usage of a response or of the event that ends one, in which cached input is counted apart."""
    usage, tier = holder.get("usage"), holder.get("serviceTier")
    if not isinstance(usage, dict):
        return None
    uncached, output = token_count(usage, "inputTokens"), token_count(usage, "outputTokens")
    if uncached is None and output is None:
        return None
    written = token_count(usage, "cacheWriteInputTokens") or 0
    written_1h = min(_kept_for_an_hour(usage.get("cacheDetails")), written)
    return Usage(
        uncached_input_tokens=uncached or 0,
        cache_read_input_tokens=token_count(usage, "cacheReadInputTokens") or 0,
        cache_write_5m_input_tokens=written - written_1h,
        cache_write_1h_input_tokens=written_1h,
        text_output_tokens=output or 0,
        service_tier=service_tier(tier.get("type")) if isinstance(tier, dict) else None,
    )


def _kept_for_an_hour(details: object) -> int:
    if not isinstance(details, list):
        return 0
    entries = [entry for entry in details if isinstance(entry, dict) and entry.get("ttl") == "1h"]
    return sum([token_count(entry, "inputTokens") or 0 for entry in entries])


def web_citation(citation: object, start: int, end: int) -> Iterator[Document]:
    """A citation of a page on the web; those of the client's own documents have no address to give."""
    match citation:
        case {"location": {"web": {"url": str(url)}}, **rest}:
            title = rest.get("title")
            yield url_citation(start, end, title if isinstance(title, str) else "", url)
        case _:
            pass


def thinking_block(text: str, signature: str) -> Document | None:
    """Signed thoughts as clients get them and send them back; None when nothing proves whose they are."""
    return {"type": "thinking", "thinking": text, "signature": signature} if signature else None


def image_part(block: Document) -> Document | None:
    """An image of the answer's as an `image_url` part; None when it is not in the answer itself."""
    match block:
        case {"format": str(kind), "source": {"bytes": str(data)}}:
            return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
        case _:
            return None


def _message(response: Document) -> list[Any] | None:  # blocks are whatever the provider sent
    match response.get("output"):
        case {"message": {"content": [*blocks]}}:
            return blocks
        case _:
            return None


def _take(block: Document, answer: ChatAnswer, plan: AnswerPlan) -> None:
    match block:
        case {"text": str(text)}:
            answer.text.append(text)
        case {"toolUse": dict(call)} if "type" not in call:
            _take_call(call, answer, plan)
        case {"reasoningContent": dict(thought)}:
            _take_thought(thought, answer)
        case {"citationsContent": dict(cited)}:
            _take_cited(cited, answer)
        case {"image": dict(image)} if (part := image_part(image)) is not None:
            answer.images.append(part)


def _take_call(call: Document, answer: ChatAnswer, plan: AnswerPlan) -> None:
    name, call_id = call.get("name"), call.get("toolUseId")
    if not isinstance(name, str):
        raise UpstreamBroken("The provider's answer calls a tool without a name.")
    arguments = orjson.dumps(call.get("input") or {}).decode()
    if name == plan.answer_tool:
        answer.text.append(arguments)
        return
    known_id = call_id if isinstance(call_id, str) and call_id else new_call_id()
    answer.tool_calls.append(AnsweredCall(known_id, name, arguments, is_custom=name in plan.custom_tools))


def _take_thought(thought: Document, answer: ChatAnswer) -> None:
    match thought:
        case {"reasoningText": {"text": str(text), **rest}}:
            answer.reasoning.append(text)
            block = thinking_block(text, str(rest.get("signature") or ""))
            answer.thinking_blocks += [block] if block else []
        case {"redactedContent": str(data)}:
            answer.thinking_blocks.append({"type": "redacted_thinking", "data": data})
        case _:
            pass


def _take_cited(cited: Document, answer: ChatAnswer) -> None:
    start = sum(map(len, answer.text))
    content, citations = cited.get("content"), cited.get("citations")
    for piece in content if isinstance(content, list) else ():
        if isinstance(piece, dict) and isinstance(piece.get("text"), str):
            answer.text.append(piece["text"])
    end = sum(map(len, answer.text))
    for citation in citations if isinstance(citations, list) else ():
        answer.annotations += web_citation(citation, start, end)
