"""Answer questions that mean what was asked before, or first find out in the shadow how often that would be wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from llmproxy.api import (
    Answer,
    Attempt,
    Commands,
    Document,
    Exchange,
    LLMProxyError,
    Router,
    Services,
    StateKey,
    hookimpl,
)
from llmproxy_plugins.semantic_cache.answers import RecordedStream, collected, replayed, text_of
from llmproxy_plugins.semantic_cache.config import SemanticCacheConfig
from llmproxy_plugins.semantic_cache.operating import Operating, semantic_cache_commands
from llmproxy_plugins.semantic_cache.questions import Question, question_of
from llmproxy_plugins.semantic_cache.store import Entry, Nearest, Store
from llmproxy_plugins.semantic_cache.trials import Trials
from llmproxy_plugins.semantic_cache.vectors import Embedder, Vector

__all__ = ["SemanticCache", "SemanticCacheConfig"]

# What core sets for every attempt.
_CORES_OWN: Final = frozenset({"model", "stream_options"})


@dataclass(slots=True)
class _Call:
    """What is known of one request.

    Attributes:
        document: The request as it was when its question was read.
        vector: The question's embedding; None as long as there is none.
        search: Finds vector and nearest in the background; None when that is over.
        bodies: What its attempts have brought whole, by their numbers.
        streams: What they have brought as streams.
    """

    question: Question
    document: Document
    vector: Vector | None = None
    nearest: Nearest | None = None
    search: asyncio.Task[None] | None = None
    bodies: dict[int, bytes] = field(default_factory=dict)
    streams: dict[int, RecordedStream] = field(default_factory=dict)


_CALL: Final = StateKey[_Call]("semantic_cache.call")


class SemanticCache:
    """The plugin: looks questions up by what they mean, and keeps what is answered."""

    name = "semantic_cache"
    Config = SemanticCacheConfig
    # Whoever may refuse a request, or change it, has its say first; an exact hit is better and costs nothing.
    after = ("redaction", "guard", "rate_limits", "budgets", "caching")
    migrations = Path(__file__).parent / "migrations"
    commands = ("semantic-cache",)

    def __init__(self, config: SemanticCacheConfig, services: Services) -> None:
        self._config = config
        self._services = services
        self._store = Store(services.database, services.clock)
        self._embedder = Embedder(services.exchanges, origin=self.name, model=config.embeddings)
        self._trials = Trials(config.shadow, self._embedder, services.exchanges, services.log, origin=self.name)

    @hookimpl
    def register_routes(self, router: Router) -> None:
        """Report and purges, for the operator."""
        Operating(self._config, self._store, self._services.log).register(router)

    @hookimpl
    def register_commands(self, cli: Commands) -> None:
        """`llmproxy semantic-cache report` and `purge`."""
        cli.add_command(semantic_cache_commands(cli.gateway))

    # The way in

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> Answer | None:
        """Answer with what was answered to a question that means the same; in the shadow, only look for it."""
        question = self._question(exchange)
        if question is None:
            return None
        call = exchange.state[_CALL] = _Call(question, exchange.request.document)
        if self._config.mode == "shadow":
            call.search = self._services.tasks.start("semantic_cache", self._search(exchange, call))
            return None
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                await self._search(exchange, call)
        except TimeoutError:
            exchange.decide(self.name, "miss", "looking took too long")
        return None if "no-cache" in _directives(exchange) else self._hit(exchange, call)

    def _question(self, exchange: Exchange) -> Question | None:
        """The question to look for. What the gateway asks for itself is nobody's, and is left alone."""
        model = exchange.request.model
        is_meant = any(fnmatchcase(model, pattern) for pattern in self._config.models)
        if exchange.origin is not None or not is_meant or "no-store" in _directives(exchange):
            return None
        question = question_of(exchange, self._config.embeddings, self._config.vary_headers)
        is_short = question is not None and len(question.text) <= self._config.max_question_characters
        return question if is_short else None

    async def _search(self, exchange: Exchange, call: _Call) -> None:
        """Find the question's vector and the nearest question; what cannot be had is not there."""
        try:
            (call.vector,) = await self._embedder.vectors(exchange, [call.question.text])
            call.nearest = await self._store.nearest(exchange.principal.workspace, call.question, call.vector)
        except LLMProxyError as error:
            exchange.decide(self.name, "miss", f"looking failed ({error.error_code})")

    def _hit(self, exchange: Exchange, call: _Call) -> Answer | None:
        nearest, threshold = call.nearest, self._config.threshold_of(exchange.request.model)
        if nearest is None or nearest.similarity < threshold:
            return None
        entry = nearest.entry
        cost = "an unknown cost" if entry.cost_usd is None else f"{entry.cost_usd:f} USD"
        saving = f"saved {cost} and {entry.tokens} tokens of {entry.target}"
        exchange.decide(self.name, "hit", f"{saving}: similarity {nearest.similarity:.4f}, {threshold:g} is enough")
        return replayed(entry, exchange, (self._services.clock.now() - entry.created_at).total_seconds())

    # The way back

    @hookimpl
    def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> None:
        """Read along with what may be kept."""
        call = exchange.state.get(_CALL)
        if call is None:
            return
        if answer.cache is None and self._config.mode == "serve":
            answer.cache = "miss"
        if answer.status != 200 or exchange.answer is not None:
            # What follows on a cut is not all of an answer.
            return
        if reason := _reason_not_to_keep(exchange, attempt, call):
            exchange.decide(self.name, "not kept", reason)
            return
        if answer.stream is None:
            call.bodies[attempt.number] = answer.body
            return
        answer.stream = RecordedStream(answer.stream, self._config.max_entry_bytes)
        call.streams[attempt.number] = answer.stream

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Keep a whole answer, now that its cost is known."""
        call = exchange.state.get(_CALL)
        if call is None or attempt.error is not None:
            return
        body, stream = call.bodies.pop(attempt.number, None), call.streams.pop(attempt.number, None)
        if stream is not None and stream.recorded is not None:
            body = collected(stream.recorded, attempt)
        text = text_of(body) if body is not None and len(body) <= self._config.max_entry_bytes else None
        if body is not None and text is not None:
            entry = self._entry(attempt, body)
            self._services.tasks.start("semantic_cache", self._keep(exchange, call, entry, text))

    def _entry(self, attempt: Attempt, body: bytes) -> Entry:
        return Entry(
            body=body,
            provider=attempt.target.provider,
            target=attempt.target.name,
            tokens=attempt.usage.total_tokens if attempt.usage else 0,
            cost_usd=attempt.cost.amount_usd if attempt.cost else None,
            created_at=self._services.clock.now(),
        )

    async def _keep(self, exchange: Exchange, call: _Call, entry: Entry, text: str) -> None:
        if call.search is not None:
            await asyncio.wait([call.search])
        if call.vector is None:
            return
        workspace, model = exchange.principal.workspace, exchange.request.model
        try:
            await self._store.keep(
                *(workspace, model, call.question, call.vector, entry),
                asked_at=exchange.admitted_at,
                ttl_seconds=self._config.ttl_seconds,
                max_entries=self._config.max_entries,
            )
            if self._config.mode == "shadow":
                trial = await self._trials.trial(exchange, call.question.text, call.nearest, text)
                await self._store.note(workspace, trial, self._config.shadow.retention_days)
        except LLMProxyError as error:
            self._services.log.warning("semantic_cache_not_kept", request_id=exchange.id, error=error.message)


def _directives(exchange: Exchange) -> set[str]:
    """What the client says in `cache-control`, in small letters."""
    return {each.strip().lower() for each in exchange.headers.get("cache-control", "").split(",")}


def _reason_not_to_keep(exchange: Exchange, attempt: Attempt, call: _Call) -> str | None:
    """Why an answer is for this request alone; None when it may be kept."""
    if exchange.request.document is not call.document:
        return "a plugin behind the cache changed the request"
    if set(exchange.targets) != set(exchange.candidates):
        return "a plugin narrowed the targets down"
    if _counted(attempt.request.document) != _counted(call.document):
        return "a plugin changed what was sent"
    first = min(exchange.attempts, key=lambda each: each.number)
    return "a fallback answered" if attempt.target.name != first.target.name else None


def _counted(document: Document) -> Document:
    return {name: value for name, value in document.items() if name not in _CORES_OWN}
