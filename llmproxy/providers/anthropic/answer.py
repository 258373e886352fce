"""A whole answer in the Messages format as a chat completion."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from llmproxy.dialects.chat_answer import (
    AnsweredCall,
    AnswerIdentity,
    ChatAnswer,
    FinishReason,
    new_call_id,
    settled_reason,
    url_citation,
)
from llmproxy.dialects.openai_chat import token_count
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.errors import UpstreamBroken
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
    "pause_turn": "length",
    "compaction": "length",
    "refusal": "content_filter",
}
# What `inference_geo` says of an answer that may have been computed anywhere.
_ANYWHERE: Final = ("global", "not_available", "")
_REFUSED: Final = "The model refused to answer this request."


def chat_answer(message: Document, plan: AnswerPlan, model: str, created: int) -> ChatAnswer:
    """Translate a message.

    Args:
        model: Stands in where the message names none.
        created: Unix seconds.

    Raises UpstreamRefused when it is an error, UpstreamBroken when it is no message.
    """
    if error := stated_error(message):
        raise error
    content, stop_reason = message.get("content"), message.get("stop_reason")
    if not isinstance(content, list) or not isinstance(stop_reason, str):
        raise UpstreamBroken("The provider's answer is not a complete message.")
    answer = ChatAnswer(answer_identity(message, model, created))
    for block in content:
        if isinstance(block, dict):
            _take(block, answer, plan)
    answer.finish_reason = finish_reason(stop_reason, has_calls=bool(answer.tool_calls))
    answer.native_finish_reason = stop_reason
    answer.refusal = refusal(message) if stop_reason == "refusal" else None
    answer.usage = message_usage(message.get("usage"))
    return answer


def answer_identity(message: Document, model: str, created: int) -> AnswerIdentity:
    """What the answer is known by; the vendor's own id stays readable in it."""
    native_id, native_model = message.get("id"), message.get("model")
    name = native_id if isinstance(native_id, str) and native_id else secrets.token_hex(12)
    has_model = isinstance(native_model, str) and native_model
    return AnswerIdentity(f"chatcmpl-{name}", str(native_model) if has_model else model, created)


def finish_reason(stop_reason: str, *, has_calls: bool) -> FinishReason:
    """Why the answer ended, as OpenAI says it; a reason of the future is a stop."""
    return settled_reason(_FINISH_REASONS.get(stop_reason, "stop"), has_calls=has_calls)


def refusal(message: Document) -> str:
    """The words of a refusal, from a message or from the delta that ends one."""
    details = message.get("stop_details")
    explanation = details.get("explanation") if isinstance(details, dict) else None
    return explanation if isinstance(explanation, str) and explanation else _REFUSED


# The value is whatever the provider sent.
def message_usage(usage: Any) -> Usage | None:
    """Usage, in which Claude counts cached input apart and thinking inside the output.

    It says itself which of the things that change the price were so: the tier, fast mode, and where it computed.
    """
    if not isinstance(usage, dict):
        return None
    uncached, output = token_count(usage, "input_tokens"), token_count(usage, "output_tokens")
    if uncached is None and output is None:
        return None
    parts = usage.get("cache_creation")
    kept_for_an_hour = token_count(parts, "ephemeral_1h_input_tokens") or 0 if isinstance(parts, dict) else 0
    written = token_count(usage, "cache_creation_input_tokens")
    if written is None and isinstance(parts, dict):
        written = kept_for_an_hour + (token_count(parts, "ephemeral_5m_input_tokens") or 0)
    written_1h = min(kept_for_an_hour, written or 0)
    details = usage.get("output_tokens_details")
    thought = token_count(details, "thinking_tokens") or 0 if isinstance(details, dict) else 0
    return Usage(
        uncached_input_tokens=uncached or 0,
        cache_read_input_tokens=token_count(usage, "cache_read_input_tokens") or 0,
        cache_write_5m_input_tokens=(written or 0) - written_1h,
        cache_write_1h_input_tokens=written_1h,
        text_output_tokens=max((output or 0) - thought, 0),
        reasoning_output_tokens=min(thought, output or 0),
        web_searches=_web_searches(usage.get("server_tool_use")),
        service_tier="fast" if usage.get("speed") == "fast" else service_tier(usage.get("service_tier")),
        region=_region(usage.get("inference_geo")),
    )


def _web_searches(server_tools: object) -> int:
    return token_count(server_tools, "web_search_requests") or 0 if isinstance(server_tools, dict) else 0


def _region(inference_geo: object) -> str | None:
    return inference_geo if isinstance(inference_geo, str) and inference_geo not in _ANYWHERE else None


# The value is whatever the provider sent.
def citations(cited: Any, start: int, end: int) -> Iterator[Document]:
    """A block's citations of pages on the web; those of the client's own documents have no address to give."""
    for citation in cited if isinstance(cited, list) else ():
        url = citation.get("url") if isinstance(citation, dict) else None
        if isinstance(url, str):
            title = citation.get("title")
            yield url_citation(start, end, title if isinstance(title, str) else "", url)


def thinking_block(block: Document) -> Document | None:
    """Claude's reasoning as clients get it and send it back; None when the block is something else."""
    match block:
        case {"type": "thinking", "thinking": str(thinking), "signature": str(signature)}:
            return {"type": "thinking", "thinking": thinking, "signature": signature}
        case {"type": "redacted_thinking", "data": str(data)}:
            return {"type": "redacted_thinking", "data": data}
        case _:
            return None


def tool_name(block: Document) -> str:
    """The name in a tool call. Raises UpstreamBroken when there is none."""
    name = block.get("name")
    if not isinstance(name, str):
        raise UpstreamBroken("The provider's answer calls a tool without a name.")
    return name


def tool_call_id(block: Document) -> str:
    """The id of a tool call, a new one when the block has none."""
    call_id = block.get("id")
    return call_id if isinstance(call_id, str) and call_id else new_call_id()


def tool_input(block: Document) -> str:
    """The arguments of a tool call as JSON text. Raises UpstreamBroken when they are nested too deep."""
    try:
        return orjson.dumps(block.get("input") or {}).decode()
    except orjson.JSONEncodeError as error:
        raise UpstreamBroken("The provider's answer calls a tool with arguments that are nested too deep.") from error


def _take(block: Document, answer: ChatAnswer, plan: AnswerPlan) -> None:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        if cited := block.get("citations"):
            start = _length(answer.text)
            answer.annotations += citations(cited, start, start + len(block["text"]))
        answer.text.append(block["text"])
    elif kind == "tool_use":
        _take_call(block, answer, plan)
    elif (thought := thinking_block(block)) is not None:
        answer.thinking_blocks.append(thought)
        if thought.get("thinking"):
            answer.reasoning.append(thought["thinking"])


def _take_call(block: Document, answer: ChatAnswer, plan: AnswerPlan) -> None:
    name, arguments = tool_name(block), tool_input(block)
    if name == plan.answer_tool:
        answer.text.append(arguments)
    else:
        is_custom = name in plan.custom_tools
        answer.tool_calls.append(AnsweredCall(tool_call_id(block), name, arguments, is_custom=is_custom))


def _length(pieces: Sequence[str]) -> int:
    return sum(map(len, pieces))
