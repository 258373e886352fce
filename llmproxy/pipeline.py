"""The walk: the one place that knows in which order an exchange meets the hooks.

bytes → principal → request → candidates → (answer | target → attempt)+ → answer → usage → cost → row
"""

from __future__ import annotations

import asyncio
from typing import Final

import orjson

from llmproxy import records
from llmproxy.accounting import Accounting
from llmproxy.attribution import attribution_of, timeout_seconds
from llmproxy.body_cipher import body_cipher
from llmproxy.candidates import candidates
from llmproxy.catalogue import Catalogue, check_model_name
from llmproxy.config import AuditConfig
from llmproxy.dialects.openai_errors import error_body, error_event
from llmproxy.endings import Ending, Endings
from llmproxy.errors import (
    ClientDisconnected,
    ClientError,
    LLMProxyError,
    PluginError,
    Refused,
    UpstreamError,
    UpstreamUnsupported,
    UpstreamWithheld,
)
from llmproxy.exchange import Answer, AnswerStream, Exchange, Outcome, Principal, StateKey
from llmproxy.failover import Failover
from llmproxy.heads import answer_head, cost_header, refusal_head
from llmproxy.holdings import Holdings
from llmproxy.hooks import Hooks
from llmproxy.journal import Journal
from llmproxy.keys import KeyRing
from llmproxy.lockstep import assemble, in_step
from llmproxy.occupancy import Occupancy
from llmproxy.quotas import Quotas
from llmproxy.records import Bodies
from llmproxy.request import Document, Request
from llmproxy.services import Clock, Log, Tasks
from llmproxy.splice import decode_object
from llmproxy.stream import BodyCapture, Client, relay

_HEAD_IS_TOLD: Final = StateKey[bool]("head_is_told")
_NO_BODIES: Final = Bodies()


class Pipeline:
    """Carries exchanges through one configuration's hooks, providers and models."""

    def __init__(
        self,
        *,
        hooks: Hooks,
        keys: KeyRing,
        catalogue: Catalogue,
        holdings: Holdings | None,
        failover: Failover,
        accounting: Accounting,
        journal: Journal,
        quotas: Quotas,
        audit: AuditConfig,
        clock: Clock,
        tasks: Tasks,
        log: Log,
    ) -> None:
        self._hooks = hooks
        self._keys = keys
        self._catalogue = catalogue
        self._holdings = holdings
        self._failover = failover
        self._accounting = accounting
        self._journal = journal
        self._quotas = quotas
        self._audit = audit
        self._body_cipher = body_cipher(audit)
        self._clock = clock
        self._log = log
        self._exchanges = Occupancy()
        self._endings = Endings(
            hooks=hooks,
            journal=journal,
            quotas=quotas,
            holdings=holdings,
            occupancy=self._exchanges,
            tasks=tasks,
            log=log,
            on_failure=self._log_failure,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no exchange is on its way, `on_complete` included."""
        return self._exchanges.is_empty

    async def idle(self) -> None:
        """Wait until no exchange is on its way, `on_complete` included."""
        await self._exchanges.empty()

    async def handle(self, exchange: Exchange, client: Client) -> None:
        """Carry one exchange from the client's request to its record; every one let in leaves exactly one."""
        with self._exchanges:
            try:
                await assemble()
                facts = await self._let_in(exchange, client)
            except LLMProxyError as error:
                return await self._refuse(exchange, client, error)
            return await self._carry(exchange, client, facts)

    async def handle_own(self, exchange: Exchange, document: Document, client: Client) -> None:
        """Carry one exchange of the gateway's own, whose principal and attribution are known already."""
        with self._exchanges:
            check_model_name(document.get("model"))
            facts = self._admit(exchange, orjson.dumps(document), document)
            await self._carry(exchange, client, facts)

    async def _carry(self, exchange: Exchange, client: Client, facts: Document) -> None:
        """From the journal's first word on an exchange to its last."""
        bodies = self._bodies(exchange)
        try:
            exchange.answer = await self._answer(exchange)
            await assemble()
            if not any(attempt.is_sent for attempt in exchange.attempts):
                # What is sent to a provider is written before; so is what is answered without one.
                self._journal.flush()
            await self._deliver(exchange, client, bodies)
            exchange.outcome = Outcome.SUCCEEDED
        except asyncio.CancelledError:
            self._ended_by(exchange, ClientDisconnected("The connection was closed before the answer was complete."))
            raise
        except ClientDisconnected as error:
            self._ended_by(exchange, error)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the client is told and the row is written
            known = error if isinstance(error, LLMProxyError) else self._internal(exchange, error)
            self._ended_by(exchange, known)
            self._journal.recover()
            self._tell_head(exchange)
            await self._refuse(exchange, client, known)
        finally:
            self._record(exchange, client, facts, bodies)

    # The way in

    async def authenticate(self, exchange: Exchange) -> Principal:
        """Who is asking, from the headers alone. Raises Unauthenticated."""
        principal = await self._hooks.authenticate(exchange) if self._hooks.authenticate else None
        return principal or self._keys.authenticate(exchange.headers)

    async def _let_in(self, exchange: Exchange, client: Client) -> Document:
        """Everything that must be right before there is a row to write: the key, the request, the journal."""
        exchange.principal = await self.authenticate(exchange)
        exchange.attribution = attribution_of(exchange.headers, exchange.principal)
        body = await client.read_body()
        document = decode_object(body)
        check_model_name(document.get("model"))
        if (patience_seconds := timeout_seconds(exchange.headers)) is not None:
            exchange.expires_monotonic = exchange.deadline_monotonic = exchange.started_monotonic + patience_seconds
        await in_step()
        facts = self._admit(exchange, body, document)
        if exchange.request.is_stream:
            client.expect_stream([("x-llmproxy-request-id", exchange.id)])
        return facts

    def _admit(self, exchange: Exchange, body: bytes, document: Document) -> Document:
        """From here on there is a row to write, which begins with these facts."""
        exchange.request = Request(exchange.operation, body, document)
        facts = records.facts_of(exchange)
        admission = records.admission(exchange, facts, holds_attempts=self._quotas.holds_attempts)
        self._journal.begin(exchange.id, admission)
        return facts

    async def _answer(self, exchange: Exchange) -> Answer:
        exchange.candidates = candidates(self._catalogue, exchange)
        # What the gateway asks in its own name is a part of a client's request, which has been let in.
        if self._holdings and exchange.origin is None:
            await self._holdings.take(exchange)
        if self._hooks.pre_request and (answer := await self._hooks.pre_request(exchange)):
            return answer
        exchange.targets = exchange.candidates
        if self._hooks.narrow_targets:
            exchange.targets = tuple(await self._hooks.narrow_targets(exchange, exchange.candidates))
        if not exchange.targets:
            raise Refused("No target that this request may use is left.", code="no_target_allowed", param="model")
        return await self._failover.answer(exchange, exchange.request)

    # The way back

    async def _deliver(self, exchange: Exchange, client: Client, bodies: Bodies) -> None:
        exchange.first_chunk_seconds = self._since_start(exchange)
        answer = exchange.answer
        if answer is None or answer.stream is None:
            return await self._deliver_whole(exchange, client, bodies)
        self._tell_head(exchange)
        client.open_stream([*answer.headers, *answer_head(exchange, self._clock.monotonic())])
        stream: AnswerStream | None = answer.stream
        while stream is not None:
            try:
                return await relay(exchange, stream, client, self._hooks.on_stream_chunk, bodies.response)
            except UpstreamError as error:
                stream = await self._resume(exchange, stream, error)
        raise PluginError("A plugin gave a whole answer where only a stream could be sent.")

    async def _resume(self, exchange: Exchange, stream: AnswerStream, error: UpstreamError) -> AnswerStream | None:
        """What follows on a stream that was cut; raises its error when nothing does."""
        stream.close()
        if not exchange.attempts:
            raise error
        attempt = exchange.attempts[-1]
        attempt.error = error
        self._failover.end(exchange, attempt)
        if self._hooks.on_stream_error is None:
            raise error
        resume = await self._hooks.on_stream_error(exchange, attempt, error)
        if resume is None:
            raise error
        exchange.answer = await self._failover.answer(exchange, resume.request)
        return exchange.answer.stream

    async def _deliver_whole(self, exchange: Exchange, client: Client, bodies: Bodies) -> None:
        self._end_attempts(exchange)
        self._accounting.settle(exchange)
        if self._hooks.post_response:
            await self._hooks.post_response(exchange)
        answer = exchange.answer
        if answer is None or client.is_open:
            raise PluginError("A plugin gave a whole answer where only a stream could be sent.")
        if bodies.response is not None:
            bodies.response.add(answer.body)
        self._tell_head(exchange)
        await in_step()
        await client.send(
            answer.status,
            [*answer.headers, *answer_head(exchange, self._clock.monotonic()), *cost_header(exchange)],
            answer.body,
        )

    def _tell_head(self, exchange: Exchange) -> None:
        """Have plugins add to the head of the response, unless they have: a stream may fail before its first byte."""
        if self._hooks.on_response_head and _HEAD_IS_TOLD not in exchange.state:
            exchange.state[_HEAD_IS_TOLD] = True
            self._hooks.on_response_head(exchange)

    async def _refuse(self, exchange: Exchange, client: Client, error: LLMProxyError) -> None:
        """Tell the client, in its dialect; once a stream is open that can only be an error event."""
        self._log_failure(exchange, error)
        try:
            if client.is_open:
                await client.write(error_event(error, exchange.id))
                return await client.end_stream()
            await client.send(
                error.http_status,
                refusal_head(exchange, error, self._clock.monotonic()),
                error_body(error, exchange.id),
            )
        except ClientDisconnected:
            self._log.debug("refusal_not_delivered", request_id=exchange.id)
        return None

    def _record(self, exchange: Exchange, client: Client, facts: Document, bodies: Bodies) -> None:
        """Settle, and have the row written. No await in here: nothing can come between an ending and its record."""
        exchange.duration_seconds = self._since_start(exchange)
        try:
            self._wind_up(exchange, bodies)
        except Exception as error:  # noqa: BLE001 - a stream or a usage of somebody else's must not cost the row
            self._internal(exchange, error)
        self._endings.add(Ending(exchange, facts, client.status, client.bytes_sent, bodies))

    def _wind_up(self, exchange: Exchange, bodies: Bodies) -> None:
        if exchange.answer is not None and exchange.answer.stream is not None:
            exchange.answer.stream.close()
        self._end_attempts(exchange)
        self._accounting.settle(exchange)
        # Before every guard has had its say, the request may hold what must not be kept.
        if bodies.request is not None and (exchange.targets or exchange.answer):
            bodies.request.add(exchange.request.encode())

    def _end_attempts(self, exchange: Exchange) -> None:
        for attempt in exchange.attempts:
            if not attempt.is_over:
                self._failover.end(exchange, attempt)

    # Small print

    def _bodies(self, exchange: Exchange) -> Bodies:
        workspace = self._keys.workspace(exchange.principal.workspace)
        wanted = workspace.bodies if workspace and workspace.bodies else self._audit.bodies
        if wanted == "none":
            return _NO_BODIES
        room = self._audit.max_body_bytes
        return Bodies(
            BodyCapture(room) if wanted in ("requests", "all") else None,
            BodyCapture(room) if wanted in ("responses", "all") else None,
            self._body_cipher,
        )

    def _log_failure(self, exchange: Exchange, error: LLMProxyError) -> None:
        """What the client is not told: the cause of a fault that is not its own."""
        if error.http_status >= 500:
            cause = error.__cause__
            exc_info = cause if isinstance(error, PluginError) else None
            self._log.warning(
                "request_failed", request_id=exchange.id, error=error.message, cause=repr(cause), exc_info=exc_info
            )

    def _ended_by(self, exchange: Exchange, error: LLMProxyError) -> None:
        exchange.error = error
        if isinstance(error, ClientDisconnected):
            exchange.outcome = Outcome.DISCONNECTED
        else:
            is_refusal = isinstance(error, ClientError | UpstreamUnsupported | UpstreamWithheld)
            exchange.outcome = Outcome.REFUSED if is_refusal else Outcome.FAILED

    def _internal(self, exchange: Exchange, error: Exception) -> LLMProxyError:
        self._log.error("internal_error", request_id=exchange.id, error=repr(error), exc_info=error)
        return LLMProxyError("The gateway failed on this request; its log has the details under the request id.")

    def _since_start(self, exchange: Exchange) -> float:
        return self._clock.monotonic() - exchange.started_monotonic
