"""One attempt: rebuild the request for a target, send it, and come back with an answer that is worth sending.

A stream is an answer once its first content is there; until then any failure is an UpstreamError like another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from llmproxy import upstream
from llmproxy.config import Timeouts
from llmproxy.dialects.chat_collect import ChunkCollector
from llmproxy.dialects.openai_errors import error_in
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import UpstreamBroken, UpstreamError
from llmproxy.exchange import Answer, Attempt, Document, Exchange, Headers, Operation, Request, Target
from llmproxy.providers import Provider, Transport
from llmproxy.services import Clock
from llmproxy.stream import UpstreamEvents
from llmproxy.upstream import TimedResponse

MAX_ANSWER_BYTES: Final = 67_108_864
_STREAM_TYPES: Final = ("text/event-stream", "application/vnd.amazon.eventstream")
_MAX_ERROR_BYTES: Final = 1_048_576
_RELAYED_PREFIXES: Final = ("x-ratelimit-", "anthropic-ratelimit-")
# Not openai-organization and openai-project: whose account pays is not the client's business.
_RELAYED: Final = frozenset(
    {"x-request-id", "request-id", "retry-after", "retry-after-ms", "openai-processing-ms", "openai-version"}
)
_REQUEST_IDS: Final = ("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id")


class Attempts:
    """Makes attempts at the configured providers.

    Args:
        timeouts: What holds for providers that set none of their own.
    """

    def __init__(
        self, providers: Mapping[str, Provider], transport: Transport, timeouts: Timeouts, clock: Clock
    ) -> None:
        self._providers = providers
        self._transport = transport
        self._timeouts = timeouts
        self._clock = clock

    def begin(self, exchange: Exchange, target: Target) -> Attempt:
        """A new attempt, its request rebuilt from the client's own."""
        return Attempt(
            number=len(exchange.attempts) + 1,
            target=target,
            request=request_for(exchange.request, target),
            started_at=self._clock.now(),
            started_monotonic=self._clock.monotonic(),
        )

    async def answer(self, exchange: Exchange, attempt: Attempt, total_seconds: float | None) -> Answer:
        """The provider's answer. Raises UpstreamError when there is none, BadRequest when it cannot be asked.

        Args:
            total_seconds: What the client will wait at most; None leaves it to the configuration.
        """
        provider = self._providers[attempt.target.provider]
        request = provider.prepare(attempt.request, attempt.target, exchange.headers)
        attempt.dropped = request.dropped
        timeouts = _limited(provider.config.timeouts or self._timeouts, total_seconds)
        attempt.is_sent = True
        response = await upstream.send(provider.transport or self._transport, request, timeouts)
        try:
            answer = await self._read(exchange, attempt, provider, response)
        except BaseException:
            response.close()
            raise
        attempt.first_chunk_seconds = self._clock.monotonic() - attempt.started_monotonic
        return answer

    async def _read(self, exchange: Exchange, attempt: Attempt, provider: Provider, response: TimedResponse) -> Answer:
        attempt.status = response.status
        attempt.headers = relayed_headers(response.headers)
        attempt.upstream_request_id = next(
            (response.headers[name] for name in _REQUEST_IDS if name in response.headers), None
        )
        if not 200 <= response.status < 300:
            raise await _refusal(provider, response)
        if attempt.request.is_stream:
            return await _stream(exchange, attempt, provider, response)
        return await _whole(attempt, provider, response)


def request_for(original: Request, target: Target) -> Request:
    """The client's request, addressed to a target: its model name, and usage asked for on streams."""
    request = original.copy()
    if request.model != target.model:
        request.set("model", target.model)
    if request.is_stream and not asks_for_usage(request):
        options = request.document.get("stream_options")
        request.set("stream_options", {**(options if isinstance(options, dict) else {}), "include_usage": True})
    return request


def asks_for_usage(request: Request) -> bool:
    """Whether a streaming client wants the usage event for itself."""
    options = request.document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def choice_count(document: Document) -> int:
    """How many choices the answer to a request will have: `n`, for each of its prompts."""
    choices, prompts = document.get("n"), document.get("prompt")
    # A list of numbers is one prompt, as tokens.
    is_batch = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    return (choices if isinstance(choices, int) else 1) * (len(prompts or ()) if is_batch else 1)


async def _refusal(provider: Provider, response: TimedResponse) -> UpstreamError:
    if response.status < 400:
        return UpstreamBroken("The provider answered with a redirect, which is not followed.")
    body = await upstream.read_all(response, _MAX_ERROR_BYTES)
    return provider.error(response.status, response.headers, body)


async def _stream(exchange: Exchange, attempt: Attempt, provider: Provider, response: TimedResponse) -> Answer:
    decoder = provider.stream_decoder(attempt.request)
    if decoder is None and response.headers.get("content-type", "").startswith("application/json"):
        raise await _not_a_stream(exchange.operation, response)
    facts = StreamFacts(
        hide_usage=not asks_for_usage(exchange.request), choices=choice_count(exchange.request.document)
    )
    attempt.progress = facts
    events = UpstreamEvents(response, decoder, facts)
    await events.commit()
    return Answer(200, attempt.headers, stream=events)


async def _not_a_stream(operation: Operation, response: TimedResponse) -> UpstreamError:
    document = _object(await upstream.read_all(response, MAX_ANSWER_BYTES))
    return error_in(document, operation) or UpstreamBroken("The provider sent a whole answer where a stream was asked.")


async def _whole(attempt: Attempt, provider: Provider, response: TimedResponse) -> Answer:
    if response.headers.get("content-type", "").startswith(_STREAM_TYPES):
        body = await _collected(attempt.request, provider, response)
        document = _object(body)
    else:
        body = await upstream.read_all(response, MAX_ANSWER_BYTES)
        document = _object(body)
        translated = provider.answer(attempt.request, body, document)
        if translated is not body:
            body, document = translated, _object(translated)
    response.close()
    attempt.usage = provider.usage(document)
    attempt.finish_reasons = finish_reasons(document)
    return Answer(response.status, (("content-type", "application/json"), *attempt.headers), body)


async def _collected(request: Request, provider: Provider, response: TimedResponse) -> bytes:
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


def relayed_headers(headers: Mapping[str, str]) -> Headers:
    """The provider's headers that clients may rely on: rate limits and request ids, as they came.

    A value that could not be sent on, for its control characters or bytes that are no text, is left out.
    """
    sendable = ((name.lower(), value) for name, value in headers.items() if value.isprintable())
    return tuple((name, value) for name, value in sendable if name in _RELAYED or name.startswith(_RELAYED_PREFIXES))


def _object(body: bytes) -> Document:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UpstreamBroken("The provider's answer is not valid JSON.") from error
    if not isinstance(document, dict):
        raise UpstreamBroken("The provider's answer is not a JSON object.")
    return document


def _limited(timeouts: Timeouts, total_seconds: float | None) -> Timeouts:
    if total_seconds is None or (timeouts.total_seconds is not None and timeouts.total_seconds <= total_seconds):
        return timeouts
    return timeouts.model_copy(update={"total_seconds": total_seconds})
