"""A whole answer of the Responses API as a chat completion, and what whole and streamed answers share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Final

import orjson

from llmproxy.dialects.chat_answer import (
    AnsweredCall,
    AnswerIdentity,
    ChatAnswer,
    FinishReason,
    new_call_id,
    url_citation,
)
from llmproxy.dialects.objects import objects_in
from llmproxy.dialects.openai_chat import usage_of
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.errors import UpstreamBroken, UpstreamError
from llmproxy.providers.responses.reasoning import reasoning_texts, thinking_block
from llmproxy.request import Document
from llmproxy.usage import Usage

_INCOMPLETE: Final[Mapping[str, FinishReason]] = {"content_filter": "content_filter"}
# Between one thought and the next.
PARAGRAPH: Final = "\n\n"
# Failures of an answer that are the request's fault, by how their codes begin; all others are the vendor's own.
_CLIENTS_FAULT: Final = ("invalid_", "image_", "unsupported_", "empty_", "failed_to_download_")


def chat_answer(response: Document, issuer: str, model: str, created: int) -> ChatAnswer:
    """Translate an answer.

    Args:
        issuer: Who can read the answer's reasoning again.
        model: Stands in where the answer names none.
        created: Unix seconds, which stand in likewise.

    Raises UpstreamRefused when it is an error, UpstreamBroken when it is no answer, or not a finished one.
    """
    if error := failure(response):
        raise error
    if not isinstance(response.get("output"), list):
        raise UpstreamBroken("The provider's answer holds no output.")
    answer = ChatAnswer(answer_identity(response, model, created))
    for item in objects_in(response["output"]):
        _take(item, answer, issuer)
    answer.finish_reason, answer.native_finish_reason = finish_reason(response, has_calls=bool(answer.tool_calls))
    answer.usage = response_usage(response)
    answer.extra = dict(members_of_the_whole(response))
    return answer


def failure(response: Document) -> UpstreamError | None:
    """The error that stands in the place of an answer; None when the answer is one, whole or cut short."""
    error = response.get("error")
    if isinstance(error, dict):
        return stated_failure(error)
    if stated := stated_error(response):
        return stated
    return None if response.get("status") in ("completed", "incomplete") else _unfinished()


def stated_failure(error: Document) -> UpstreamError:
    """The error that an answer or an event states, which has a code and at times no type."""
    code = error.get("code")
    is_clients = isinstance(code, str) and code.startswith(_CLIENTS_FAULT)
    kind = error.get("type") or ("invalid_request_error" if is_clients else None)
    return stated_error({"error": {**error, "type": kind}}) or _unfinished()


def answer_identity(response: Document, model: str, created: int) -> AnswerIdentity:
    """What the answer is known by; the vendor's own id stays readable in it."""
    native_id, native_model, native_created = (response.get(name) for name in ("id", "model", "created_at"))
    name = native_id if isinstance(native_id, str) and native_id else secrets.token_hex(12)
    return AnswerIdentity(
        f"chatcmpl-{name}",
        native_model if isinstance(native_model, str) and native_model else model,
        int(native_created) if isinstance(native_created, int | float) and 0 < native_created < 1 << 40 else created,
    )


def finish_reason(response: Document, *, has_calls: bool) -> tuple[FinishReason, str | None]:
    """Why the answer ended, as chat completions say it, and in the Responses API's own word where it has one."""
    if response.get("status") == "completed":
        return "tool_calls" if has_calls else "stop", None
    details = response.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    native = reason if isinstance(reason, str) else "incomplete"
    return _INCOMPLETE.get(native, "length"), native


def response_usage(response: Document) -> Usage | None:
    """Usage, with the searches of the web that its output shows."""
    usage = usage_of(response)
    searches = sum(_is_search(item) for item in objects_in(response.get("output")))
    return usage._replace(web_searches=searches) if usage and searches else usage


def _is_search(item: Document) -> bool:
    """Whether an item is charged as a search: opening a page that was found is not."""
    action = item.get("action")
    kind = action.get("type") if isinstance(action, dict) else "search"
    return item.get("type") == "web_search_call" and kind == "search"


def members_of_the_whole(response: Document) -> Iterator[tuple[str, object]]:
    """What a chat completion says beside its choices."""
    if isinstance(response.get("service_tier"), str):
        yield "service_tier", response["service_tier"]
    moderation = response.get("moderation")
    if isinstance(moderation, dict):
        yield "moderation", {name: _moderation(each) for name, each in moderation.items() if isinstance(each, dict)}


def citations(part: Document, start: int) -> Iterator[Document]:
    """The citations of pages on the web in a text that starts at `start` of the joined text."""
    for annotation in objects_in(part.get("annotations")):
        match annotation:
            case {"type": "url_citation", "start_index": int(first), "end_index": int(last), "url": str(url)}:
                title = annotation.get("title")
                yield url_citation(start + first, start + last, title if isinstance(title, str) else "", url)
            case _:
                # Citations of the vendor's own files have no form in a chat completion.
                continue


def logprobs(part: Document) -> Document | None:
    """A text's log probabilities, which both APIs write alike; None when there are none."""
    found = objects_in(part.get("logprobs"))
    return {"content": found, "refusal": None} if found else None


def phase(item: Document) -> Document | None:
    """What a client sends back of a message: whether it was the answer or on the way to it."""
    named = item.get("phase")
    return {"openai": {"phase": named}} if isinstance(named, str) else None


def call_name(item: Document) -> str:
    """The name in a tool call. Raises UpstreamBroken when there is none."""
    name = item.get("name")
    if not isinstance(name, str):
        raise UpstreamBroken("The provider's answer calls a tool without a name.")
    return name


def call_id(item: Document) -> str:
    """What a call's result will name: not the item's own id."""
    name = item.get("call_id")
    return name if isinstance(name, str) and name else new_call_id()


def text_of(holder: Document, name: str) -> str:
    """A member that is text; "" when it is something else."""
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def _unfinished() -> UpstreamError:
    return UpstreamBroken("The provider's answer was not finished, and it gave no reason.")


def _take(item: Document, answer: ChatAnswer, issuer: str) -> None:
    match item.get("type"):
        case "message":
            _take_message(item, answer)
        case "reasoning":
            for _, _, text in reasoning_texts(item):
                answer.reasoning += [PARAGRAPH, text] if answer.reasoning else [text]
            if block := thinking_block(item, issuer, _position(answer)):
                answer.thinking_blocks.append(block)
        case "function_call":
            answer.tool_calls.append(AnsweredCall(call_id(item), call_name(item), text_of(item, "arguments") or "{}"))
        case "custom_tool_call":
            arguments = orjson.dumps({"input": text_of(item, "input")}).decode()
            answer.tool_calls.append(AnsweredCall(call_id(item), call_name(item), arguments, is_custom=True))
        case _:
            # What the vendor's own tools did on the way.
            return


def _take_message(item: Document, answer: ChatAnswer) -> None:
    answer.extra_content = phase(item) or answer.extra_content
    for part in objects_in(item.get("content")):
        if part.get("type") == "refusal":
            answer.refusal = (answer.refusal or "") + text_of(part, "refusal")
        elif part.get("type") == "output_text":
            answer.annotations += citations(part, sum(map(len, answer.text)))
            answer.text.append(text_of(part, "text"))
            if found := logprobs(part):
                earlier = answer.logprobs["content"] if answer.logprobs else []
                answer.logprobs = {**found, "content": [*earlier, *found["content"]]}


def _position(answer: ChatAnswer) -> int:
    """How many items of the turn stand before the next one, as the client will send them back."""
    has_spoken = any(answer.text) or answer.refusal is not None
    return has_spoken + len(answer.tool_calls) + len(answer.thinking_blocks)


def _moderation(result: Document) -> Document:
    """Chat completions have a list of results, and this API one."""
    if result.get("type") != "moderation_result":
        return result
    return {"type": "moderation_results", "model": result.get("model"), "results": [result]}
