"""Serve what was asked before from a cache, and have identical requests in flight share one call."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from llmproxy.api import (
    Answer,
    Attempt,
    ClientError,
    Commands,
    ConfigError,
    Exchange,
    Outcome,
    Router,
    Services,
    hookimpl,
)
from llmproxy_plugins.caching.calls import CALL, Call, not_to_be_kept, not_to_be_shared
from llmproxy_plugins.caching.coalescing import Coalescing
from llmproxy_plugins.caching.commands import cache_commands
from llmproxy_plugins.caching.config import CachingConfig, Policy, Terms
from llmproxy_plugins.caching.directives import Directives, directives_in
from llmproxy_plugins.caching.entries import Entry, collected, shows_usage, unfit
from llmproxy_plugins.caching.keys import is_deterministic, key_of
from llmproxy_plugins.caching.memory import LRUCache
from llmproxy_plugins.caching.purging import Generations, PurgeEndpoint
from llmproxy_plugins.caching.stores import MemoryStore, Store
from llmproxy_plugins.caching.tape import RecordedStream, Tape

PURGE_PATH: Final = "/admin/v1/cache/purge"


class Caching:
    """The plugin: looks a request up, keeps what is answered, and lets one call answer many."""

    name = "caching"
    Config = CachingConfig
    # Whoever may refuse a request, or change it, has its say before an answer to it is looked for.
    after = ("redaction", "guard", "runaway", "rate_limits", "budgets")
    migrations = Path(__file__).parent / "migrations"
    commands = ("cache",)

    def __init__(self, config: CachingConfig, services: Services) -> None:
        self._config = config
        self._services = services
        self._policy = Policy(config)
        self._store = _store(config, services)
        self._coalescing = Coalescing(self._store, services.exchanges, services.clock, services.tasks)
        self._generations = Generations(services, self._store)

    @hookimpl
    async def startup(self) -> None:
        """Learn what was purged."""
        await self._generations.startup()

    @hookimpl
    async def shutdown(self) -> None:
        """Let go of the store."""
        self._generations.shutdown()
        await self._store.close()

    @hookimpl
    def register_routes(self, router: Router) -> None:
        """Purges, for the operator."""
        router.add("POST", PURGE_PATH, PurgeEndpoint(self._generations, self._policy.tenant, self._services.log))

    @hookimpl
    def register_commands(self, cli: Commands) -> None:
        """`llmproxy cache purge`."""
        cli.add_command(cache_commands(cli.gateway, PURGE_PATH, is_shared=self._store.is_shared))

    # The way in

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> Answer | None:
        """Answer from the cache, or from a request in flight that is the same."""
        directives = directives_in(exchange.headers)
        call = exchange.state[CALL] = self._call(exchange, directives)
        key = call.stored_key
        if key is not None and call.status == "miss" and (answer := await self._kept(exchange, call, key)):
            return answer
        if directives.only_if_cached:
            # Asking again changes nothing, whatever SDKs think of a 504.
            exchange.response_headers.append(("x-should-retry", "false"))
            raise ClientError("No answer to this request is in the cache.", status=504, code="not_cached")
        if key is not None and call.status == "miss" and self._config.coalesce:
            return await self._coalescing.join(exchange, call, key)
        return None

    def _call(self, exchange: Exchange, directives: Directives) -> Call:
        """What may be done for a request."""
        document, principal = exchange.request.document, exchange.principal
        keys = (principal.key_id, principal.key_name)
        terms = self._policy.terms(exchange.request.model, principal.workspace, keys)
        call = Call("bypass", document)
        reason = _reason_to_bypass(exchange, directives, terms)
        if reason is not None:
            exchange.decide(self.name, "bypass", reason)
            return call
        tenant = self._policy.tenant(principal.workspace)
        namespace = (principal.key_id if self._config.per_key else "", directives.namespace)
        key = key_of(exchange, tenant, namespace, self._config.vary_headers)
        call.stored_key = self._generations.stored_key(key) if key else None
        if key is None or call.stored_key is None:
            exchange.decide(self.name, "bypass", "purges are unknown" if key else "the request is ambiguous")
            return call
        exchange.response_headers.append(("x-llmproxy-cache-key", key.digest))
        asked_seconds = terms.ttl_seconds if directives.ttl_seconds is None else directives.ttl_seconds
        call.ttl_seconds = min(asked_seconds, self._config.max_ttl_seconds)
        call.max_age_seconds, call.min_fresh_seconds = directives.max_age_seconds, directives.min_fresh_seconds
        if not directives.no_cache:
            call.status = "miss"
        return call

    async def _kept(self, exchange: Exchange, call: Call, key: str) -> Answer | None:
        data = await self._store.get(key)
        entry = Entry.decoded(data) if data else None
        if entry is None:
            return None
        age_seconds = entry.age_seconds(self._now())
        left_seconds = entry.ttl_seconds - age_seconds
        if left_seconds <= 0 or left_seconds < call.min_fresh_seconds or age_seconds > call.max_age_seconds:
            return None
        exchange.decide(self.name, "hit", f"{entry.saving}, which answered {age_seconds:.0f} s ago")
        return entry.answer(exchange, age_seconds)

    # The way back

    @hookimpl
    def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> None:
        """Say that the cache had none, and read along with what is to be kept or shared."""
        call = exchange.state.get(CALL)
        if call is None:
            return
        answer.cache = call.status
        if call.stored_key is None or answer.status != 200:
            return
        if exchange.answer is not None:
            # The rest of an answer that was cut: for those who listen, but not to be taken for all of it.
            if answer.stream is not None and call.live is not None:
                answer.stream = RecordedStream(answer.stream, call.live, lambda _: None)
        elif reason := not_to_be_shared(exchange, attempt, call):
            self._give_up(exchange, call, reason)
        elif answer.stream is None:
            call.bodies[attempt.number] = answer.body
        else:
            tape = call.tapes[attempt.number] = Tape(self._config.max_entry_bytes)
            answer.stream = RecordedStream(answer.stream, tape, partial(self._begin, exchange, call))

    def _begin(self, exchange: Exchange, call: Call, tape: Tape) -> None:
        call.live = tape
        if call.flight is not None:
            call.flight.streams(tape, shows_usage=shows_usage(exchange))

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Keep a whole answer, now that its cost is known, and hand it to those who wait for it."""
        call = exchange.state.get(CALL)
        if call is None or call.stored_key is None or attempt.error is not None:
            return
        body, tape = call.bodies.pop(attempt.number, None), call.tapes.pop(attempt.number, None)
        if tape is not None and tape.has_ended:
            body = collected(tape.recorded, attempt) if tape.is_whole else None
            if body is None:
                self._give_up(exchange, call, "the stream is too large, or cannot be told as a whole answer")
        if body is not None:
            self._land(exchange, call, attempt, body)

    def _land(self, exchange: Exchange, call: Call, attempt: Attempt, body: bytes) -> None:
        entry = Entry.of(body, attempt, self._now(), call.ttl_seconds)
        reason = unfit(body, call.document, exchange.operation) or not_to_be_kept(exchange, attempt)
        if len(body) > self._config.max_entry_bytes:
            reason = "the answer is too large"
        elif call.ttl_seconds <= 0:
            reason = "the client gave it no time to live"
        # Good enough or not to be kept: those who asked the same at the same time would have had no other.
        if call.flight is not None:
            call.flight.land(entry)
        if reason is not None:
            self._give_up(exchange, call, reason)
        else:
            call.is_being_kept = True
            self._services.tasks.start("cache", self._keep(call, entry))

    def _give_up(self, exchange: Exchange, call: Call, reason: str) -> None:
        exchange.decide(self.name, "not kept", reason)
        self._coalescing.end(call, has_failed=True)

    async def _keep(self, call: Call, entry: Entry) -> None:
        try:
            if call.stored_key is not None:
                await self._store.put(call.stored_key, entry.encode(), entry.ttl_seconds)
        finally:
            # Not before it can be found in the store: whoever asks meanwhile follows.
            self._coalescing.end(call, has_failed=False)

    @hookimpl
    def on_complete(self, exchange: Exchange) -> None:
        """Leave nobody waiting for an exchange that has ended without an answer."""
        call = exchange.state.get(CALL)
        if call is None:
            return
        if call.live is not None:
            call.live.cut()
        if not call.is_being_kept:
            self._coalescing.end(call, has_failed=exchange.outcome is not Outcome.DISCONNECTED)

    def _now(self) -> float:
        return self._services.clock.now().timestamp()


def _reason_to_bypass(exchange: Exchange, directives: Directives, terms: Terms) -> str | None:
    """Why the cache has no part in a request; None when it has."""
    document = exchange.request.document
    if directives.no_store:
        return "the client asked for no-store"
    if terms.when == "never":
        return "the configuration says never"
    if document.get("store") is True:
        return "the client has the vendor store the answer"
    if terms.when == "deterministic" and not is_deterministic(exchange.operation, document):
        return "asking again may give another answer"
    return None


def _store(config: CachingConfig, services: Services) -> Store:
    if config.backend == "memory":
        return MemoryStore(LRUCache(config.max_bytes, services.clock.monotonic))
    try:
        # Half a second to import, for those alone who have it configured.
        from llmproxy_plugins.caching.redis_store import RedisStore  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("plugins.caching.backend: for redis, install it: pip install 'llmproxy[redis]'") from error
    return RedisStore(
        url=config.url.get_secret_value() if config.url is not None else "",
        key_prefix=config.key_prefix,
        connections=config.connections,
        timeout_seconds=config.timeout_seconds,
        clock=services.clock,
        log=services.log,
    )
