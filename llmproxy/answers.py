"""What comes back from a provider as an answer in OpenAI's form, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from llmproxy import upstream
from llmproxy.dialects.chat_collect import ChunkCollector
from llmproxy.dialects.legacy_functions import function_call_events, uses_functions, with_function_calls
from llmproxy.dialects.upstream_events import decode_object
from llmproxy.errors import UpstreamBroken, UpstreamError
from llmproxy.providers import Provider, StreamDecoder
from llmproxy.request import Document, Request
from llmproxy.services import UpstreamResponse

MAX_ANSWER_BYTES: Final = 67_108_864
_MAX_ERROR_BYTES: Final = 1_048_576
_STREAM_TYPES: Final = ("text/event-stream", "application/vnd.amazon.eventstream")


async def refusal(provider: Provider, response: UpstreamResponse) -> UpstreamError:
    """The error that a response with another status than a success is."""
    if response.status < 400:
        return UpstreamBroken("The provider answered with a redirect, which is not followed.")
    body = await upstream.read_all(response, _MAX_ERROR_BYTES)
    return provider.error(response.status, response.headers, body)


def stream_decoder(provider: Provider, request: Request) -> StreamDecoder | None:
    """What turns a streamed answer into OpenAI's events; None when it consists of them."""
    decoder = provider.stream_decoder(request)
    return _FunctionCalls(decoder) if decoder is not None and uses_functions(request.document) else decoder


class _FunctionCalls:
    """A decoder's events for a client that knows no tools."""

    def __init__(self, decoder: StreamDecoder) -> None:
        self._decoder = decoder

    def feed(self, data: bytes) -> Iterable[bytes]:
        return function_call_events(self._decoder.feed(data))

    def finish(self) -> Iterable[bytes]:
        return function_call_events(self._decoder.finish())


async def whole_answer(provider: Provider, request: Request, response: UpstreamResponse) -> tuple[bytes, Document]:
    """The whole answer in OpenAI's form, and decoded."""
    if response.headers.get("content-type", "").startswith(_STREAM_TYPES):
        body = await _collected(request, provider, response)
        document = decode_object(body, "an answer")
    else:
        body = await upstream.read_all(response, MAX_ANSWER_BYTES)
        document = decode_object(body, "an answer")
        translated = provider.answer(request, body, document)
        if translated is not body:
            body, document = translated, decode_object(translated, "an answer")
    if uses_functions(request.document) and (turned := with_function_calls(document)) is not document:
        return orjson.dumps(turned), turned
    return body, document


async def _collected(request: Request, provider: Provider, response: UpstreamResponse) -> bytes:
    """The answer to a request that was streamed for its length alone: `prepare` asked for it, the client did not."""
    decoder, collector, size_bytes = provider.stream_decoder(request), ChunkCollector(), 0
    while data := await response.read():
        size_bytes += len(data)
        if size_bytes > MAX_ANSWER_BYTES:
            raise UpstreamBroken(f"The provider's answer is larger than {MAX_ANSWER_BYTES} bytes.")
        collector.feed(b"".join(decoder.feed(data)) if decoder else data)
    collector.feed(b"".join(decoder.finish()) if decoder else b"")
    return collector.finish()


def finish_reasons(document: Document) -> tuple[str, ...]:
    """Each choice's finish reason, in order."""
    choices = document.get("choices")
    if not isinstance(choices, list):
        return ()
    reasons = [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
    return tuple(reason for reason in reasons if isinstance(reason, str))
