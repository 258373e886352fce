"""One attempt: rebuild the request for a target, send it, and come back with an answer that is worth sending.

A stream is an answer once its first content is there; until then any failure is an UpstreamError like another's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Final

import orjson

from llmproxy import upstream
from llmproxy.answers import finish_reasons, refusal, stream_decoder, whole_answer
from llmproxy.concurrency import map_together
from llmproxy.config import Timeouts
from llmproxy.dialects.chat_events import WholeEvents, completion_events
from llmproxy.dialects.embeddings import merge_embeddings, summed_usage
from llmproxy.dialects.media import with_images
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import BadRequest, LLMProxyError, UpstreamTimeout, UpstreamUnsupported
from llmproxy.exchange import Answer, Attempt, Exchange, StateKey, Target
from llmproxy.lockstep import in_step
from llmproxy.providers import Endpoints, Provider, Transport
from llmproxy.remote_images import RemoteImages
from llmproxy.request import Document, Headers, Request
from llmproxy.services import Clock, UpstreamRequest, UpstreamResponse
from llmproxy.stream import UpstreamEvents
from llmproxy.timers import timed_out, within

_RELAYED_PREFIXES: Final = ("x-ratelimit-", "anthropic-ratelimit-")
# Not openai-organization and openai-project: whose account pays is not the client's business.
_RELAYED: Final = frozenset(
    {"x-request-id", "request-id", "retry-after", "retry-after-ms", "openai-processing-ms", "openai-version"}
)
# Parts of a batch that are under way at a time: enough to be quick, too few to look like an attack.
_PARTS_AT_ONCE: Final = 4
# Images as data URLs, by address: fetched once, however many attempts need them.
_IMAGES: Final = StateKey[Mapping[str, str]]("remote_images")
_REQUEST_IDS: Final = ("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id")


class Attempts:
    """Makes attempts at the configured providers.

    Args:
        endpoints: The configured providers, once for each of their keys.
        timeouts: What holds for providers that set none of their own.
        images: Fetches what providers want fetched; without it, nothing is.
        before_sending: Called before anything leaves for a provider; what it raises keeps it from leaving.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        transport: Transport,
        timeouts: Timeouts,
        clock: Clock,
        *,
        images: RemoteImages | None = None,
        before_sending: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoints = endpoints
        self._transport = transport
        self._timeouts = timeouts
        self._clock = clock
        self._images = images
        self._before_sending = before_sending

    def begin(self, exchange: Exchange, request: Request, target: Target) -> Attempt:
        """A new attempt, its request rebuilt from the client's own, or from what is left to ask of it."""
        return Attempt(
            number=len(exchange.attempts) + 1,
            target=target,
            request=request_for(request, target),
            started_at=self._clock.now(),
            started_monotonic=self._clock.monotonic(),
        )

    async def answer(self, exchange: Exchange, attempt: Attempt) -> Answer:
        """The provider's answer. Raises UpstreamError when there is none."""
        provider = self._endpoints[attempt.target.provider, attempt.target.credential]
        timeouts = self._limited(provider.config.timeouts or self._timeouts, exchange.expires_monotonic)
        request = attempt.request
        if self._images is not None and (addresses := provider.remote_images(request)):
            began = self._clock.monotonic()
            request = await self._with_images(exchange, request, addresses, timeouts.total_seconds)
            timeouts = _shortened(timeouts, self._clock.monotonic() - began)
        asking = self._ask(exchange, attempt, provider, request, timeouts)
        answer = await within(attempt.timeout_seconds, asking, _slow_start)
        attempt.first_chunk_seconds = self._clock.monotonic() - attempt.started_monotonic
        return answer

    def _ask(
        self, exchange: Exchange, attempt: Attempt, provider: Provider, request: Request, timeouts: Timeouts
    ) -> Awaitable[Answer]:
        parts = provider.split(request)
        if len(parts) == 1:
            return self._in_one(exchange, attempt, provider, parts[0], timeouts)
        return self._in_parts(exchange, attempt, provider, parts, timeouts)

    def _limited(self, timeouts: Timeouts, expires_monotonic: float) -> Timeouts:
        if expires_monotonic == inf:
            return timeouts
        left_seconds = max(expires_monotonic - self._clock.monotonic(), 0)
        if timeouts.total_seconds is not None and timeouts.total_seconds <= left_seconds:
            return timeouts
        return timeouts.model_copy(update={"total_seconds": left_seconds})

    async def _in_one(
        self, exchange: Exchange, attempt: Attempt, provider: Provider, request: Request, timeouts: Timeouts
    ) -> Answer:
        response = await self._send(exchange, attempt, provider, request, timeouts)
        try:
            if request.is_stream:
                return await _stream(exchange, attempt, provider, request, response)
            body, document = await whole_answer(provider, request, response)
        except BaseException:
            response.close()
            raise
        response.close()
        return _whole(attempt, provider, body, document)

    async def _in_parts(
        self, exchange: Exchange, attempt: Attempt, provider: Provider, parts: Sequence[Request], timeouts: Timeouts
    ) -> Answer:
        """One answer out of those to the parts, all within the time of the one attempt."""
        answered: dict[int, Document] = {}

        async def ask(number: int) -> None:
            response = await self._send(exchange, attempt, provider, parts[number], timeouts)
            try:
                _, answered[number] = await whole_answer(provider, parts[number], response)
            finally:
                response.close()

        try:
            async with asyncio.timeout(timeouts.total_seconds):
                await map_together(ask, range(len(parts)), at_once=_PARTS_AT_ONCE)
        except (LLMProxyError, TimeoutError) as error:
            if answered:
                # The parts that were answered are paid for, whatever became of the others.
                attempt.usage = provider.usage(summed_usage(answered.values()))
            if isinstance(error, LLMProxyError):
                raise
            raise timed_out("total", timeouts.total_seconds) from error
        merged = merge_embeddings([answered[number] for number in range(len(parts))])
        return _whole(attempt, provider, orjson.dumps(merged), merged)

    async def _send(
        self, exchange: Exchange, attempt: Attempt, provider: Provider, request: Request, timeouts: Timeouts
    ) -> UpstreamResponse:
        """The response of the provider that has taken the request. Raises an UpstreamError when it has not."""
        prepared = _prepared(provider, request, attempt.target, exchange.headers)
        attempt.dropped = prepared.dropped
        await in_step()
        self._before_sending()
        attempt.is_sent = True
        response = await upstream.send(provider.transport or self._transport, prepared, timeouts)
        attempt.status = response.status
        attempt.headers = relayed_headers(response.headers)
        attempt.upstream_request_id = next(filter(None, map(response.headers.get, _REQUEST_IDS)), None)
        if 200 <= response.status < 300:
            return response
        try:
            raise await refusal(provider, response)
        finally:
            response.close()

    async def _with_images(
        self, exchange: Exchange, request: Request, addresses: Mapping[str, str], most_seconds: float | None
    ) -> Request:
        """The request with images in place of their addresses; what an earlier attempt has fetched is used again."""
        known = exchange.state.get(_IMAGES) or {}
        missing = {address: path for address, path in addresses.items() if address not in known}
        if missing and self._images is not None:
            exchange.decide("core", f"fetched {len(missing)} images", "the provider takes no addresses, only the bytes")
            known = {**known, **await self._images.fetch(missing, most_seconds)}
            exchange.state[_IMAGES] = known
        complete = request.copy()
        complete.set("messages", with_images(request.document, known))
        return complete


def _slow_start(seconds: float) -> UpstreamTimeout:
    sentence = f"The provider had not begun to answer after {seconds:g} seconds."
    return UpstreamTimeout(sentence, phase="first_byte")


def _prepared(provider: Provider, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
    """What to send. Raises UpstreamUnsupported, with the provider's own words, when it cannot do what is asked."""
    try:
        return provider.prepare(request, target, headers)
    except BadRequest as error:
        raise UpstreamUnsupported(error.message, code=error.error_code, param=error.param) from error


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


async def _stream(
    exchange: Exchange, attempt: Attempt, provider: Provider, request: Request, response: UpstreamResponse
) -> Answer:
    show_usage = asks_for_usage(exchange.request)
    if response.headers.get("content-type", "").startswith("application/json"):
        return await _as_stream(attempt, provider, request, response, show_usage=show_usage)
    facts = StreamFacts(hide_usage=not show_usage, choices=choice_count(exchange.request.document))
    attempt.progress = facts
    events = UpstreamEvents(response, stream_decoder(provider, request), facts)
    await events.commit()
    return Answer(200, attempt.headers, stream=events)


async def _as_stream(
    attempt: Attempt, provider: Provider, request: Request, response: UpstreamResponse, *, show_usage: bool
) -> Answer:
    """A provider that knows no streams has answered whole: the client gets its stream all the same."""
    body, document = await whole_answer(provider, request, response)
    response.close()
    answer = _whole(attempt, provider, body, document)
    events = list(completion_events(document, show_usage=show_usage))
    return Answer(answer.status, attempt.headers, stream=WholeEvents(events))


def _whole(attempt: Attempt, provider: Provider, body: bytes, document: Document) -> Answer:
    attempt.usage = provider.usage(document)
    attempt.finish_reasons = finish_reasons(document)
    return Answer(attempt.status or 200, (("content-type", "application/json"), *attempt.headers), body)


def relayed_headers(headers: Mapping[str, str]) -> Headers:
    """The provider's headers that clients may rely on: rate limits and request ids, as they came.

    A value that could not be sent on, for its control characters or bytes that are no text, is left out.
    """
    named = [(name.lower(), value) for name, value in headers.items()]
    return tuple(
        (name, value)
        for name, value in named
        if (name in _RELAYED or name.startswith(_RELAYED_PREFIXES)) and value.isprintable()
    )


def _shortened(timeouts: Timeouts, passed_seconds: float) -> Timeouts:
    """What is left of them when some of the attempt's time has passed."""
    total = timeouts.total_seconds
    return timeouts if total is None else timeouts.model_copy(update={"total_seconds": max(total - passed_seconds, 0)})
