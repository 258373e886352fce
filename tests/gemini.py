"""What the tests of Google's two kinds share: prepared requests, judged by Google's own types."""

from __future__ import annotations

from typing import Any

import orjson
from google.genai import types
from multidict import CIMultiDict
from pydantic import TypeAdapter

from llmproxy.dialects.chat_answer import AnswerIdentity
from llmproxy.exchange import Target
from llmproxy.providers import Provider
from llmproxy.providers.gemini import Gemini, GeminiConfig
from llmproxy.providers.gemini.content import Issuer
from llmproxy.providers.gemini.models import load_models
from llmproxy.providers.gemini.request import generate_body
from llmproxy.providers.gemini.stream import GeminiStream
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Operation, Request
from llmproxy.services import UpstreamRequest
from tests.providers import services

MODELS = load_models()
IDENTITY = AnswerIdentity("chatcmpl-1", "gemini-2.5-flash", 1_700_000_000)
USER = {"role": "user", "content": "Hi"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def gemini(**section: Any) -> Gemini:
    """A provider with a key."""
    return Gemini("gemini", GeminiConfig.model_validate({"api_key": "AIza-key", **section}), services())


def chat(document: dict[str, Any]) -> Request:
    """A chat request."""
    return Request(Operation.CHAT, orjson.dumps(document), document)


def prepare(provider: Provider, request: Request, client_headers: dict[str, str] | None = None) -> UpstreamRequest:
    """What the provider would send."""
    target = Target(provider.name, request.model)
    return provider.prepare(request, target, CIMultiDict(client_headers or {}))


def translated(
    *messages: dict[str, Any],
    model: str = "gemini-2.5-flash",
    issuer: Issuer = "gemini",
    omissions: Omissions | None = None,
    **members: Any,
) -> dict[str, Any]:
    """The body for a request, once Google's types have accepted it."""
    document = {"model": model, "messages": list(messages) or [USER], **members}
    body = orjson.loads(generate_body(document, MODELS, issuer, omissions or Omissions()))
    judge(body)
    return dict(body)


def dropped(model: str = "gemini-2.5-flash", **members: Any) -> tuple[str, ...]:
    """What the translation of a request leaves out."""
    omissions = Omissions()
    translated(model=model, omissions=omissions, **members)
    return omissions.names


def judge(body: dict[str, Any]) -> None:
    """Assert that a body holds nothing but what Google's API has, in the form it has it."""
    known: dict[str, Any] = {  # what TypeAdapter takes
        "contents": list[types.Content],
        "systemInstruction": types.Content,
        "tools": list[types.Tool],
        "toolConfig": types.ToolConfig,
        "generationConfig": types.GenerationConfig,
        "safetySettings": list[types.SafetySetting],
        "serviceTier": types.ServiceTier,
        "cachedContent": str,
    }
    assert body.keys() <= known.keys()
    for name, value in body.items():
        adapter = TypeAdapter[Any](known[name])
        adapter.validate_json(orjson.dumps(value), strict=False)


def response(**members: Any) -> dict[str, Any]:
    """A response as Google's own type writes it."""
    made = types.GenerateContentResponse.model_validate(members)
    return dict(orjson.loads(made.model_dump_json(by_alias=True, exclude_none=True)))


def candidate(*parts: dict[str, Any], finish: str | None = "STOP", **members: Any) -> dict[str, Any]:
    """A candidate with these parts."""
    return {"content": {"role": "model", "parts": list(parts)}, "finish_reason": finish, **members}


def sse(*documents: dict[str, Any]) -> bytes:
    """A stream as Google sends it."""
    return b"".join(b"data: " + orjson.dumps(document) + b"\r\n\r\n" for document in documents)


def decode(data: bytes, customs: frozenset[str] = frozenset(), step: int | None = None) -> bytes:
    """A whole stream, decoded in pieces of `step` bytes."""
    stream = GeminiStream(IDENTITY, "gemini", customs)
    size = step or max(len(data), 1)
    events = [event for start in range(0, len(data), size) for event in stream.feed(data[start : start + size])]
    return b"".join([*events, *stream.finish()])


def documents(events: bytes) -> list[dict[str, Any]]:
    """The chunks of a decoded stream, which must end as OpenAI's do."""
    *chunks, done, rest = events.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [orjson.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]
