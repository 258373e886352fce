"""One answer in every vendor's own format, whole and as a stream, made with what the tests of each vendor judge by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from llmproxy.testing import Reply, document, events, fail
from llmproxy.testing.chat import ChatAnswer, ToolCall, tokens
from llmproxy.testing.replies import event_message, json_message
from tests import anthropic_messages as claude
from tests import bedrock, gemini, test_cohere_answer, test_mistral_answer
from tests.test_gemini_answer import google_error
from tests.vendor_streams import sse

Finish = Literal["stop", "tool_calls", "length", "content_filter"]

INPUT_TOKENS, OUTPUT_TOKENS = 10, 5
_CITIES: Final = ("Oslo", "Rome")


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said, in no vendor's words; texts come in two pieces when they are streamed."""

    text: tuple[str, ...] = ()
    thinking: tuple[str, ...] = ()
    cities: tuple[str, ...] = ()
    finish: Finish = "stop"


SAID: Final[Mapping[str, Said]] = {
    "text": Said(text=("Grüße, ", "Rom 🎉.")),
    "parallel tools": Said(cities=_CITIES, finish="tool_calls"),
    "text and tools": Said(text=("Let me ", "look."), cities=_CITIES, finish="tool_calls"),
    "structured output": Said(text=('{"city":', '"Rome"}')),
    "thinking": Said(thinking=("Hm, ", "so."), text=("Yes", ".")),
    "length": Said(text=("Once upon ", "a"), finish="length"),
    "refusal": Said(finish="content_filter"),
}


@dataclass(frozen=True, slots=True)
class Vendor:
    """How to be a vendor.

    Attributes:
        errors: Its own words for each kind of failure, as replies.
        own_codes: Where those have a code, which clients get as it is.
        thinks: Whether it ever tells its thoughts.
        refuses: Whether it has a word for an answer that was held back.
    """

    kind: str
    model: str
    whole: Callable[[Said], Reply]
    streamed: Callable[[Said], Reply]
    errors: Mapping[str, Reply]
    section: Mapping[str, Any] = field(default_factory=dict)
    own_codes: Mapping[str, str] = field(default_factory=dict)
    thinks: bool = True
    refuses: bool = True

    @property
    def name(self) -> str:
        """What clients call the model."""
        return f"{self.kind}/{self.model}"

    def can_say(self, said: Said) -> Said:
        """As much of this as the vendor has words for."""
        thinking = said.thinking if self.thinks else ()
        finish = "stop" if said.finish == "content_filter" and not self.refuses else said.finish
        return replace(said, thinking=thinking, finish=finish)


# Anthropic, also on Vertex AI


def _message(said: Said) -> dict[str, Any]:
    thinking = [{**claude.SIGNED, "thinking": "".join(said.thinking)}] if said.thinking else []
    texts = [claude.text("".join(said.text))] if said.text else []
    calls = [
        {"type": "tool_use", "id": f"toolu_{city}", "name": "weather", "input": {"city": city}} for city in said.cities
    ]
    reasons = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "content_filter": "refusal"}
    return claude.message(*thinking, *texts, *calls, stop_reason=reasons[said.finish])


def _claude_error(status: int, kind: str, text: str) -> Reply:
    return document({"type": "error", "error": {"type": kind, "message": text}}, status=status)


_CLAUDE_ERRORS: Final = {
    "rate limit": _claude_error(429, "rate_limit_error", "slow down"),
    "context length": _claude_error(400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"),
    "wrong key": _claude_error(401, "authentication_error", "invalid x-api-key"),
    "overload": _claude_error(529, "overloaded_error", "Overloaded"),
}


def _claude(kind: str, model: str, **section: Any) -> Vendor:
    return Vendor(
        kind,
        model,
        whole=lambda said: document(_message(said)),
        streamed=lambda said: events(*_pieces(claude.sse(claude.events_of(_message(said))))),
        errors=_CLAUDE_ERRORS,
        section=section,
    )


# Google


def _google_finish(said: Said) -> str:
    # A turn that calls ends with STOP there.
    return {"length": "MAX_TOKENS", "content_filter": "SAFETY"}.get(said.finish, "STOP")


def _google(parts: Sequence[dict[str, Any]], finish: str | None) -> dict[str, Any]:
    usage = {"prompt_token_count": INPUT_TOKENS, "candidates_token_count": OUTPUT_TOKENS, "total_token_count": 15}
    made = gemini.candidate(*parts, finish=finish)
    return gemini.response(candidates=[made], response_id="r1", usage_metadata=usage)


def _google_parts(said: Said) -> list[dict[str, Any]]:
    thoughts = [{"text": text, "thought": True} for text in said.thinking]
    calls = [{"function_call": {"name": "weather", "args": {"city": city}}} for city in said.cities]
    return [*thoughts, *({"text": text} for text in said.text), *calls]


def _google_stream(said: Said) -> Reply:
    made = [_google([part], None) for part in _google_parts(said)]
    return events(*_pieces(gemini.sse(*made, _google([], _google_finish(said)))))


_GOOGLE_ERRORS: Final = {
    "rate limit": document(google_error(429, "RESOURCE_EXHAUSTED", "Quota exceeded."), status=429),
    "context length": document(
        google_error(
            400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum number of tokens allowed (8)."
        ),
        status=400,
    ),
    "wrong key": document(google_error(403, "PERMISSION_DENIED", "The caller lacks permission."), status=403),
    "overload": document(google_error(503, "UNAVAILABLE", "The model is overloaded."), status=503),
}


# Bedrock


def _blocks(said: Said) -> list[dict[str, Any]]:
    signed = {"reasoningText": {"text": "".join(said.thinking), "signature": "c2lnbmVk"}}
    thinking = [{"reasoningContent": signed}] if said.thinking else []
    texts = [{"text": "".join(said.text)}] if said.text else []
    calls = [
        {"toolUse": {"toolUseId": f"tooluse_{city}", "name": "weather", "input": {"city": city}}}
        for city in said.cities
    ]
    return [*thinking, *texts, *calls]


_CONVERSE_REASONS: Final = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "guardrail_intervened",
}


def _converse(said: Said) -> Reply:
    usage = {"inputTokens": INPUT_TOKENS, "outputTokens": OUTPUT_TOKENS, "totalTokens": 15}
    reason = _CONVERSE_REASONS[said.finish]
    return document(bedrock.says(*_blocks(said), stop_reason=reason, usage=usage, metrics={"latencyMs": 1}))


def _converse_stream(said: Said) -> Reply:
    frames = [bedrock.role()]
    if said.thinking:
        frames += [bedrock.delta(0, reasoningContent={"text": text}) for text in said.thinking]
        frames += [bedrock.delta(0, reasoningContent={"signature": "c2lnbmVk"}), bedrock.stop(0)]
    if said.text:
        frames += [*(bedrock.delta(1, text=text) for text in said.text), bedrock.stop(1)]
    for index, city in enumerate(said.cities, 2):
        frames.append(bedrock.start(index, toolUse={"toolUseId": f"tooluse_{city}", "name": "weather"}))
        halves = ('{"city":', f'"{city}"}}')
        frames += [*(bedrock.delta(index, toolUse={"input": half}) for half in halves), bedrock.stop(index)]
    frames.append(bedrock.ending(_CONVERSE_REASONS[said.finish]))
    return events(*frames, content_type="application/vnd.amazon.eventstream")


def _aws_error(status: int, name: str, text: str) -> Reply:
    return document({"message": text}, status=status, headers=(("x-amzn-ErrorType", name),))


_AWS_ERRORS: Final = {
    "rate limit": _aws_error(429, "ThrottlingException", "Too many requests, please wait."),
    "context length": _aws_error(400, "ValidationException", "Input is too long for requested model."),
    "wrong key": _aws_error(403, "UnrecognizedClientException", "The security token is invalid."),
    "overload": _aws_error(503, "ServiceUnavailableException", "The service is temporarily unavailable."),
}


# Mistral


def _mistral_thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _mistral_calls(said: Said) -> list[dict[str, Any]]:
    return [
        test_mistral_answer.call(
            id=f"{city}00000", function={"name": "weather", "arguments": f'{{"city":"{city}"}}'}, index=index
        )
        for index, city in enumerate(said.cities)
    ]


def _mistral(said: Said) -> Reply:
    text = "".join(said.text)
    thinking = [_mistral_thinking("".join(said.thinking))] if said.thinking else []
    content = [*thinking, {"type": "text", "text": text}] if thinking else text
    calls = {"tool_calls": _mistral_calls(said)} if said.cities else {}
    return document(test_mistral_answer.native({"content": content, **calls}, said.finish))


def _mistral_stream(said: Said) -> Reply:
    chunk = test_mistral_answer.event
    made = [chunk({"content": [_mistral_thinking(text)]}) for text in said.thinking]
    made += [chunk({"content": text}) for text in said.text]
    made += [chunk({"tool_calls": _mistral_calls(said)})] if said.cities else []
    last = chunk({"content": ""}, said.finish, usage=test_mistral_answer.USAGE)
    return events(*_pieces(sse(test_mistral_answer.OPENING, *made, last)))


_MISTRAL_ERRORS: Final = {
    "rate limit": document({"object": "error", "message": "Rate limit exceeded", "type": "rate_limited"}, status=429),
    "context length": document(
        {"object": "error", "message": test_mistral_answer.TOO_LONG, "type": "invalid_request_error", "code": "3051"},
        status=400,
    ),
    "wrong key": document({"detail": "Unauthorized"}, status=401),
    "overload": document({"object": "error", "message": "Overloaded", "type": "internal_server_error"}, status=503),
}


# Cohere


def _cohere_calls(said: Said) -> list[dict[str, Any]]:
    return [test_cohere_answer.call(city, arguments=f'{{"city":"{city}"}}') for city in said.cities]


_COHERE_REASONS: Final = {
    "stop": "COMPLETE",
    "tool_calls": "TOOL_CALL",
    "length": "MAX_TOKENS",
    "content_filter": "ERROR_TOXIC",
}


def _cohere(said: Said) -> Reply:
    thinking = [{"type": "thinking", "thinking": "".join(said.thinking)}] if said.thinking else []
    texts = [{"type": "text", "text": "".join(said.text)}] if said.text and not said.cities else []
    message: dict[str, Any] = {"content": [*thinking, *texts]}
    if said.cities:
        # What is said before a call is called a plan there.
        message |= {"tool_calls": _cohere_calls(said), "tool_plan": "".join(said.text)}
    return document(test_cohere_answer.native(message, _COHERE_REASONS[said.finish]))


def _cohere_stream(said: Said) -> Reply:
    event = test_cohere_answer.event
    made = [test_cohere_answer.START, *_cohere_content(0, "thinking", said.thinking)]
    if said.cities:
        made += [event("tool-plan-delta", {"tool_plan": text}) for text in said.text]
    else:
        made += _cohere_content(1, "text", said.text)
    for index, call in enumerate(_cohere_calls(said)):
        arguments = call["function"]["arguments"]
        made.append(event("tool-call-start", {"tool_calls": test_cohere_answer.call(call["id"], arguments="")}, index))
        made.append(event("tool-call-delta", {"tool_calls": {"function": {"arguments": arguments}}}, index))
        made.append(event("tool-call-end", index=index))
    made.append(test_cohere_answer.end(_COHERE_REASONS[said.finish]))
    return events(*_pieces(sse(*made, done=False)))


def _cohere_content(index: int, kind: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    if not texts:
        return []
    event = test_cohere_answer.event
    deltas = [event("content-delta", {"content": {kind: text}}, index) for text in texts]
    start = event("content-start", {"content": {"type": kind, kind: ""}}, index)
    return [start, *deltas, event("content-end", index=index)]


_COHERE_ERRORS: Final = {
    "rate limit": document({"message": "trial token rate limit exceeded"}, status=429),
    "context length": document({"message": "too many tokens: size limit exceeded by 9 tokens"}, status=400),
    "wrong key": document({"message": "invalid api token"}, status=401),
    "overload": document({"message": "internal server error"}, status=503),
}


# Azure, which speaks OpenAI's own format


def _openai(said: Said) -> ChatAnswer:
    return ChatAnswer(
        texts=said.text,
        tool_calls=[ToolCall("weather", f'{{"city":"{city}"}}') for city in said.cities],
        model=None,
        usage=tokens(INPUT_TOKENS, OUTPUT_TOKENS),
        finish_reason=said.finish,
    )


_AZURE_ERRORS: Final = {
    "rate limit": fail(429, code="rate_limit_exceeded", retry_after=1),
    "context length": fail(400, code="context_length_exceeded", param="messages"),
    "wrong key": fail(401, code="401", message="Access denied due to invalid subscription key."),
    "overload": fail(503, code="server_is_overloaded"),
}


def _pieces(stream: bytes) -> list[bytes]:
    """A stream in pieces that end anywhere, within characters too."""
    return [stream[start : start + 97] for start in range(0, len(stream), 97)]


def _google_whole(said: Said) -> Reply:
    return document(_google(_google_parts(said), _google_finish(said)))


def _azure(said: Said) -> Reply:
    return Reply(lambda request: json_message(request, _openai(said).document(request)))


def _azure_stream(said: Said) -> Reply:
    return Reply(lambda request: event_message(request, _openai(said).events(request)))


VENDORS: Final = (
    _claude("anthropic", "claude-opus-4-8"),
    Vendor("gemini", "gemini-2.5-flash", _google_whole, _google_stream, _GOOGLE_ERRORS),
    Vendor("vertex", "gemini-2.5-flash", _google_whole, _google_stream, _GOOGLE_ERRORS, {"project": "acme"}),
    _claude("vertex", "claude-opus-4-8", project="acme"),
    Vendor("bedrock", bedrock.CLAUDE_4_5, _converse, _converse_stream, _AWS_ERRORS, {"region": "eu-west-1"}),
    Vendor("azure", "my-deployment", _azure, _azure_stream, _AZURE_ERRORS, thinks=False),
    Vendor(
        "mistral",
        "magistral-medium-latest",
        _mistral,
        _mistral_stream,
        _MISTRAL_ERRORS,
        own_codes={"context length": "3051"},
        refuses=False,
    ),
    Vendor("cohere", "command-a-reasoning-08-2025", _cohere, _cohere_stream, _COHERE_ERRORS),
)
