"""Has a judge of the operator's own, or OpenAI's moderation, check requests, answers and streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import orjson

from llmproxy.api import (
    Answer,
    Attempt,
    BadRequest,
    ConfigError,
    Exchange,
    Operation,
    Services,
    StateKey,
    has_repeated_members,
    hookimpl,
)
from llmproxy.api import (
    Config as GatewayConfig,
)
from llmproxy_plugins.guard.config import AnswersConfig, GuardConfig, RequestsConfig
from llmproxy_plugins.guard.court import Court, PendingVerdict
from llmproxy_plugins.guard.judges import Inquiry, Judge, Moderation, Webhook
from llmproxy_plugins.guard.streams import GuardedStream
from llmproxy_plugins.guard.texts import Path, texts_in, with_texts, without_tokens

__all__ = ["Guard", "GuardConfig"]

# What the client has read so far, by place: a stream that goes on elsewhere is judged together with it.
_HEARD: Final = StateKey[dict[Path, str]]("guard.heard")
_PENDING: Final = StateKey[PendingVerdict]("guard.pending")
# They answer in place of a provider, and a stream that is there at once cannot wait for a verdict.
_CACHES: Final = frozenset({"caching", "semantic_cache"})


class Guard:
    """The plugin: requests on their way in, answers before anything of them goes out."""

    name = "guard"
    Config = GuardConfig
    # What may not leave the gateway is not for a judge's eyes either.
    after = ("redaction",)

    def __init__(self, config: GuardConfig, services: Services) -> None:
        self._config = config
        self._services = services
        self._court = Court(self.name, _judge(config, services), services, show_reason=config.show_reason)
        self._has_cache = False

    @hookimpl
    def register_providers(self, config: GatewayConfig) -> None:
        """Bring none; this is where the whole configuration is told."""
        self._has_cache = not _CACHES.isdisjoint(config.plugins)

    # Requests

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        """Have the request judged, or begin to. Raises Refused, BadRequest or Unavailable."""
        config = self._config.requests
        if config is None:
            return
        request = exchange.request
        if has_repeated_members(request.encode()):
            raise BadRequest("The request names a member of an object twice, so it cannot be checked; name each once.")
        inquiry = Inquiry(exchange, "request", texts_in(request.document))
        if self._may_wait(config, exchange):
            exchange.state[_PENDING] = PendingVerdict(self._court, inquiry, config.fail, self._services)
            return
        texts = await self._court.heard(inquiry, config.fail)
        if texts is None:
            return
        changed = with_texts(request.document, texts)
        for name, value in changed.items():
            if value is not request.document[name]:
                request.set(name, value)

    def _may_wait(self, config: RequestsConfig, exchange: Exchange) -> bool:
        return config.parallel and not (self._has_cache and exchange.request.is_stream)

    # Answers

    @hookimpl(tryfirst=True)
    async def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """Let through what may go out; before everybody else, so that nobody keeps what may not."""
        if pending := exchange.state.get(_PENDING):
            await pending.carried_out()
        config = self._config.answers
        if config is None or exchange.operation is Operation.EMBEDDINGS:
            return None
        if answer.stream is None:
            return await self._whole(exchange, answer, config)
        heard = exchange.state.get(_HEARD)
        if heard is None:
            heard = exchange.state[_HEARD] = {}
        ask = partial(self._window, exchange, config)
        stream = GuardedStream(answer.stream, ask, config.stream_window_characters, heard)
        await stream.begin()
        return replace(answer, stream=stream)

    async def _whole(self, exchange: Exchange, answer: Answer, config: AnswersConfig) -> Answer | None:
        document = orjson.loads(answer.body)
        choices = without_tokens(document.get("choices") or ())
        texts = await self._court.heard(Inquiry(exchange, "answer", texts_in(choices)), config.fail)
        if texts is None:
            return None
        return replace(answer, body=orjson.dumps({**document, "choices": with_texts(choices, texts)}))

    async def _window(
        self, exchange: Exchange, config: AnswersConfig, texts: Sequence[str], before: Sequence[str]
    ) -> Sequence[str] | None:
        return await self._court.heard(Inquiry(exchange, "stream", texts, before), config.fail)

    @hookimpl
    async def post_response(self, exchange: Exchange) -> None:
        """Wait for the verdict on a request that was answered by somebody else than a provider."""
        pending, answer = exchange.state.get(_PENDING), exchange.answer
        if pending is not None and answer is not None and answer.stream is None:
            await pending.carried_out()


def _judge(config: GuardConfig, services: Services) -> Judge:
    if config.webhook is not None:
        return Webhook(config.webhook, services.http)
    if config.moderation is not None:
        return Moderation(config.moderation, services.http)
    raise ConfigError("plugins.guard: nobody is there to judge; set webhook or moderation.")
