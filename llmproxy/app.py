"""The composition root: one worker, put together from its parts, started, reloaded and stopped. No globals."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from pydantic import SecretStr

from llmproxy import estimate, records
from llmproxy.admin import AdminEndpoints, AuditTrail
from llmproxy.audit import Recorder
from llmproxy.audit_notary import ActionLog, Notary
from llmproxy.batch_writer import COLUMNS, BatchWriter
from llmproxy.body_cipher import body_cipher
from llmproxy.chain_writer import ChainWriter
from llmproxy.config import Config, WorkspaceConfig
from llmproxy.current_prices import CurrentPrices
from llmproxy.db import Postgres
from llmproxy.endpoints import OPERATIONS, HealthEndpoints, ModelEndpoints
from llmproxy.errors import LLMProxyError, MethodNotAllowed, NotFound, StorageError, Unauthenticated
from llmproxy.exchange import Answer, Exchange, Principal
from llmproxy.exchanges import OwnExchanges
from llmproxy.gateway import ConfigSource, Core, Gateway, refuse_fixed, resolve_configuration
from llmproxy.ids import new_id
from llmproxy.journal import Journal
from llmproxy.key_snapshot import KeySnapshot
from llmproxy.keys import DEFAULT_WORKSPACE, KeyRing, credential_in
from llmproxy.ledger_sums import LedgerSums
from llmproxy.partitions import Partitions
from llmproxy.plugins import PluginSource
from llmproxy.public_addresses import is_public
from llmproxy.queries import Queries
from llmproxy.quotas import Quotas, QuotaSettlement
from llmproxy.remote_images import RemoteImages
from llmproxy.request import Document, Operation
from llmproxy.routes import Route
from llmproxy.seat import BACKLOG
from llmproxy.server import ClientConnection, Server
from llmproxy.services import Clock, Log, RouteRequest, Services, SystemClock, Vitals
from llmproxy.state import StateDirectory
from llmproxy.tasks import BackgroundTasks
from llmproxy.tls import ServerTLS
from llmproxy.upstream import HTTPTransport, ProviderTransport, UpstreamHTTP

SWEEP_SECONDS: Final = 1.0
# The steps of closing, each of which may be held up by somebody else; all of them fit into `seat.CLOSING_SECONDS`.
CUT_OFF_SECONDS: Final = 1.0
LAST_CALLS_SECONDS: Final = 2.0
PARTS_SECONDS: Final = 3.0
SHIPPING_SECONDS: Final = 5.0


class App:
    """One worker. Its parts outlive configurations; the `gateway` is what a reload replaces.

    Args:
        config: The core of the configuration that the gateway was started with.
        read_source: Gives the configuration to serve, at the start and at every reload.
        reload_all: Has every worker reload, or raises an LLMProxyError; None when this is the only one.
        available: The plugins that may be enabled, by name; None stands for those that are installed.
        group: What tells its workers from another gateway's; None when this is the only one.
    """

    # Made by `start`.
    gateway: Gateway
    recorder: Recorder
    server: Server

    def __init__(
        self,
        *,
        config: Config,
        read_source: Callable[[], ConfigSource],
        database_url: str,
        state: StateDirectory,
        admin_key: str,
        log: Log,
        clock: Clock | None = None,
        reload_all: Callable[[], None] | None = None,
        available: Mapping[str, PluginSource] | None = None,
        group: str | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._config = config
        self._read_source = read_source
        self._admin_key = admin_key.encode()
        self._state = state
        self._available = available
        self._log = log
        self._clock = clock
        self._reload_all = reload_all
        self._tasks = BackgroundTasks(log)
        self._queries = Queries()
        self._database = Postgres(database_url, config.database, clock, log, self._tasks)
        self._transport = ProviderTransport()
        # For addresses that clients choose.
        self._public_transport = HTTPTransport(is_public)
        self._audit_keys = state.audit_keys(config.audit)
        self._notary = Notary(self._queries, self._audit_keys, clock, log, state.audit_anchor)
        self._chain = ChainWriter(
            self._queries, self._notary, self._audit_keys, COLUMNS, config.audit, clock=clock, log=log
        )
        self._quotas = Quotas(self._database, self._queries, clock, log, self._tasks)
        self.services: Final = Services(
            clock=clock,
            database=self._database,
            http=UpstreamHTTP(self._transport),
            log=log,
            tasks=self._tasks,
            exchanges=OwnExchanges(lambda: self.gateway.pipeline, clock),
            pricing=CurrentPrices(lambda: self.gateway.accounting),
            quotas=self._quotas,
            state_directory=state.path,
            vitals=Vitals(group or secrets.token_hex(8), lambda: self._journal.pending),
        )
        self.keys: Final = KeyRing(self._queries, clock, log, KeySnapshot(state.path / "keys.json"))
        self._partitions = Partitions(
            self._database,
            self._queries,
            config.audit,
            clock,
            log,
            notary=self._notary,
            body_days=self.keys.configured_body_days,
        )
        self._tls = ServerTLS(config.server.tls, log) if config.server.tls else None
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Open everything, and serve on a listening socket.

        Raises an LLMProxyError when a part cannot be had; what was opened before it is closed then.
        """
        async with AsyncExitStack() as opened:
            await self._open(opened)
            self.server = Server(self._serve, self._config.server)
            context = self._tls.context if self._tls else None
            self._listening = await asyncio.get_running_loop().create_server(
                self.server, sock=listener, ssl=context, backlog=BACKLOG
            )
            self._tasks.start("sweep", self._sweep())
            self._opened = opened.pop_all()

    async def reload(self) -> None:
        """Take over the configuration as it stands now, whole; when it cannot be had, nothing changes.

        Raises ConfigError with every mistake.
        """
        async with self._reloading:
            new, workspaces = await self._make_gateway()
            # Whatever could fail or take its time is done: requests meet the old or the new.
            old, self.gateway = self.gateway, new
            self.keys.configure(workspaces)
            self._retire(old)
            self._log.info("config_reloaded")
            await self._record_reload()

    async def _record_reload(self) -> None:
        try:
            async with self._database.transaction() as connection:
                await ActionLog(self._notary, "reload").record(connection, "configuration_reloaded")
        except StorageError as error:
            # What is served does not hang on it.
            self._log.warning("reload_not_audited", error=error.message)

    def _retire(self, gateway: Gateway) -> None:
        """Stop a gateway in the background, once the requests that began with it have ended."""
        retiring = self._tasks.start("old configuration", gateway.shutdown())
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def _ask_for_reload(self) -> None:
        if self._reload_all is None:
            return await self.reload()
        return self._reload_all()

    async def stop(self) -> None:
        """Drain: no new connections, what runs may end within `server.drain_seconds`; then close everything."""
        self._health.is_draining = self.server.is_draining = True
        self._listening.close()
        self.server.pre_shutdown()
        try:
            async with asyncio.timeout(self._config.server.drain_seconds):
                await self.server.idle()
        except TimeoutError:
            self._log.warning("drain_cut_short", requests=self.server.live_requests)
        await self.server.cut_off(CUT_OFF_SECONDS)
        await self._opened.aclose()

    async def _close_gateways(self) -> None:
        """Stop whichever gateway serves by then, and those that were replaced and had exchanges on their way."""
        self._retire(self.gateway)
        _, waiting = await asyncio.wait(set(self._retiring), timeout=LAST_CALLS_SECONDS)
        if not waiting:
            return
        self._log.warning("close_cut_short", configurations=len(waiting))
        for retiring in waiting:
            retiring.cancel()
        await asyncio.wait(waiting, timeout=PARTS_SECONDS)

    # Starting

    async def _open(self, opened: AsyncExitStack) -> None:
        """Open part after part; `opened` closes them in the opposite order."""
        opened.push_async_callback(self._database.close)
        # The supervisor has proved that it is there; a worker that takes another's place serves without it.
        await self._database.open(required=False)
        opened.push_async_callback(self._transport.close)
        opened.push_async_callback(self._public_transport.close)
        write_soon = asyncio.get_running_loop().call_soon
        self._journal = Journal(self._state.journal, self._config.journal, write_soon)
        opened.callback(self._journal.close)
        opened.push_async_callback(self._tasks.cancel_all)
        self.recorder = await self._make_recorder()
        self._tasks.start("audit checkpoints", self._chain.run(self._database))
        opened.push_async_callback(self._chain.end, self._database)
        self._quotas.start(self._journal)
        opened.push_async_callback(self._quotas.close)
        opened.push_async_callback(self.recorder.shutdown, deadline_seconds=SHIPPING_SECONDS)
        await self.keys.start(self._database, self._tasks)
        self._core = Core(
            self.services,
            self._transport,
            RemoteImages(self._public_transport),
            self._journal,
            self._quotas,
            self.keys,
        )
        self._health = HealthEndpoints(self._database, self._journal, self._tasks)
        self.gateway, workspaces = await self._make_gateway()
        opened.push_async_callback(self._close_gateways)
        self.keys.configure(workspaces)
        # Only now is it known how long workspaces want what is theirs kept.
        self._tasks.start("partitions", self._partitions.run())
        self._tasks.start("ledger sums", LedgerSums(self._database, self._queries, self._clock, self._log).run())
        # Only now: what a dead worker left is settled with the gateway's models and prices.
        self.recorder.startup()

    async def _make_recorder(self) -> Recorder:
        partitions = self._partitions
        await partitions.try_to_prepare()
        rejected = self._state.journal / "rejected.jsonl"
        writer = BatchWriter(
            self._database,
            self._queries,
            partitions,
            rejected,
            clock=self._clock,
            log=self._log,
            parts=[QuotaSettlement(self._queries)],
            chain=self._chain,
        )
        return Recorder(
            self._journal,
            writer,
            self._config.journal,
            clock=self._clock,
            log=self._log,
            tasks=self._tasks,
            interrupted=self._interrupted,
            replayed=self._quotas.replayed,
        )

    async def _make_gateway(self) -> tuple[Gateway, Mapping[str, WorkspaceConfig]]:
        """The configuration as it stands now, started, and the workspaces that belong to it."""
        configuration = resolve_configuration(self._read_source(), self.services, self._available)
        refuse_fixed(self._config, configuration.config)
        workspaces = self._workspaces(configuration.config)
        gateway = Gateway(configuration, self._core)
        created_at = int(self._clock.now().timestamp())
        principal = partial(self._principal, gateway)
        models = ModelEndpoints(configuration.catalogue, configuration.listing, principal, created_at)
        models.register(gateway.routes)
        self._health.register(gateway.routes)
        AdminEndpoints(
            self._database,
            self._queries,
            self._clock,
            audit=AuditTrail(self._database, self._queries, self._audit_keys, self._state.audit_anchor),
            actions=ActionLog(self._notary, "admin API"),
            cipher=body_cipher(self._config.audit),
            configured=self.keys.configured_workspaces,
            reload=self._ask_for_reload,
        ).register(gateway.routes)
        await gateway.startup()
        return gateway, workspaces

    def _workspaces(self, config: Config) -> Mapping[str, WorkspaceConfig]:
        """Without any, one workspace that the generated key opens."""
        if config.workspaces:
            return config.workspaces
        return {DEFAULT_WORKSPACE: WorkspaceConfig(keys=(SecretStr(self._state.default_key()),))}

    # Serving

    async def _serve(self, client: ClientConnection) -> None:
        path = client.request.path
        operation = OPERATIONS.get(path)
        if operation is None:
            return await self._serve_route(client)
        if client.request.method != "POST":
            raise MethodNotAllowed(f"{path} does not take {client.request.method}; use POST.", allowed=["POST"])
        return await self.gateway.pipeline.handle(self._exchange(client, operation), client)

    def _exchange(self, client: ClientConnection, operation: Operation) -> Exchange:
        request = client.request
        now = self._clock.now()
        return Exchange(
            id=new_id(now),
            admitted_at=now,
            started_monotonic=self._clock.monotonic(),
            operation=operation,
            path=request.path,
            headers=request.headers,
            client_address=request.remote,
        )

    async def _serve_route(self, client: ClientConnection) -> None:
        gateway = self.gateway
        with gateway.route_calls:
            answer = await self._call_route(gateway, client)
        await client.send(answer.status, answer.headers, answer.body)

    async def _call_route(self, gateway: Gateway, client: ClientConnection) -> Answer:
        request = client.request
        route, parameters = self._find_route(gateway, client)
        body = await client.read_body() if request.can_read_body else b""
        asked = RouteRequest(request.method, request.path, parameters, request.query, request.headers, body)
        try:
            return await route.handler(asked)
        except LLMProxyError:
            raise
        except Exception as error:
            self._log.error("route_failed", path=route.path, error=repr(error), exc_info=error)
            raise LLMProxyError("The gateway failed on this request; its log has the details.") from error

    def _find_route(self, gateway: Gateway, client: ClientConnection) -> tuple[Route, Mapping[str, str]]:
        request = client.request
        try:
            route, parameters = gateway.routes.find(request.method, request.path)
        except (NotFound, MethodNotAllowed):
            # What there is under this path is for nobody else to find out.
            if request.path.startswith("/admin/"):
                self._check_admin(request.headers)
            raise
        if route.admin:
            self._check_admin(request.headers)
        return route, parameters

    def _check_admin(self, headers: Mapping[str, str]) -> None:
        if not hmac.compare_digest(credential_in(headers).encode("utf-8", "surrogateescape"), self._admin_key):
            raise Unauthenticated("This path takes the admin key, and the one sent is not it.")

    async def _principal(self, gateway: Gateway, request: RouteRequest) -> Principal:
        now = self._clock.now()
        exchange = Exchange(new_id(now), now, self._clock.monotonic(), Operation.CHAT, request.path, request.headers)
        return await gateway.pipeline.authenticate(exchange)

    # Keeping house

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            try:
                await self.server.sweep()
                if self._tls is not None:
                    self._tls.refresh()
            except Exception as error:  # noqa: BLE001 - timeouts and keep-alives of all connections hang on this
                self._log.error("sweep_failed", error=repr(error), exc_info=error)

    def _interrupted(self, admitted: Document) -> Document:
        """The ending of a request whose worker died: charged what it had reserved.

        Where nothing ever is, it is the most that it may have used at its first target; nothing where none serves it.
        """
        if (held := admitted.get("held")) or admitted.get("holds_attempts"):
            return records.interrupted(admitted, *((held["attempts"], held["charges"]) if held else ([], [])))
        usage = estimate.assumed(admitted["request_bytes"], admitted["max_output_tokens"])
        targets = self.gateway.configuration.catalogue.targets(admitted["request_model"])
        charged = [
            records.charged(target, self.gateway.accounting.cost(target, usage), usage) for target in targets[:1]
        ]
        return records.interrupted(admitted, charged)
