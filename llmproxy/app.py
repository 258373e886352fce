"""The composition root: one worker, put together from its parts, started, reloaded and stopped. No globals."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from llmproxy import estimate, records
from llmproxy.admin import AdminEndpoints
from llmproxy.audit import Recorder
from llmproxy.batch_writer import BatchWriter
from llmproxy.config import Config, WorkspaceConfig
from llmproxy.db import Postgres
from llmproxy.endpoints import OPERATIONS, HealthEndpoints, ModelEndpoints
from llmproxy.errors import LLMProxyError, MethodNotAllowed, Unauthenticated
from llmproxy.exchange import Document, Exchange, Operation, Principal
from llmproxy.gateway import Core, Gateway, read_configuration, refuse_fixed
from llmproxy.ids import new_id
from llmproxy.journal import Journal
from llmproxy.key_snapshot import KeySnapshot
from llmproxy.keys import DEFAULT_WORKSPACE, KeyRing, credential_in
from llmproxy.partitions import Partitions
from llmproxy.plugins import PluginSource
from llmproxy.queries import Queries
from llmproxy.server import BACKLOG, ClientConnection, Server
from llmproxy.services import Clock, Log, RouteRequest, Services, SystemClock
from llmproxy.state import StateDirectory
from llmproxy.tasks import BackgroundTasks
from llmproxy.tls import ServerTLS
from llmproxy.upstream import HTTPTransport, UpstreamHTTP

SWEEP_SECONDS: Final = 1.0


class App:
    """One worker. Its parts outlive configurations; the `gateway` is what a reload replaces.

    Args:
        config: The core of the configuration that `config_path` held at start.
        config_path: The file to read; None serves the defaults.
        reload_all: Has every worker reload; None when this is the only one.
        available: The plugins that may be enabled, by name; None stands for those that are installed.
    """

    # Made by `start`.
    gateway: Gateway
    recorder: Recorder
    server: Server

    def __init__(
        self,
        *,
        config: Config,
        config_path: Path | None,
        database_url: str,
        state: StateDirectory,
        admin_key: str,
        log: Log,
        clock: Clock | None = None,
        reload_all: Callable[[], None] | None = None,
        available: Mapping[str, PluginSource] | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._config = config
        self._config_path = config_path
        self._admin_key = admin_key.encode()
        self._state = state
        self._available = available
        self._log = log
        self._clock = clock
        self._reload_all = reload_all
        self._tasks = BackgroundTasks(log)
        self._queries = Queries()
        self._database = Postgres(database_url, config.database, clock, log, self._tasks)
        self._transport = HTTPTransport()
        self.services: Final = Services(
            clock=clock,
            database=self._database,
            http=UpstreamHTTP(self._transport),
            log=log,
            tasks=self._tasks,
            state_directory=state.path,
        )
        self.keys: Final = KeyRing(self._queries, clock, log, KeySnapshot(state.path / "keys.json"))
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
        """Take over the configuration file as it stands now, whole; on any mistake nothing changes.

        Raises ConfigError with every mistake.
        """
        async with self._reloading:
            old, new = self.gateway, await self._make_gateway()
            self.gateway = new
            self.keys.configure(self._workspaces(new.configuration.config))
            self._log.info("config_reloaded", file=str(self._config_path))
            # Exchanges on their way keep the configuration they began with.
            retiring = self._tasks.start("old configuration", old.shutdown())
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _ask_for_reload(self) -> None:
        if self._reload_all is None:
            return await self.reload()
        refuse_fixed(self._config, read_configuration(self._config_path, self.services, self._available).config)
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
        await self.server.shutdown(0)
        await self._opened.aclose()

    async def _close_gateway(self) -> None:
        # Whichever serves by then, and those that were replaced and had exchanges on their way.
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self.gateway.shutdown()

    # Starting

    async def _open(self, opened: AsyncExitStack) -> None:
        """Open part after part; `opened` closes them in the opposite order."""
        opened.push_async_callback(self._database.close)
        # The supervisor has proved that it is there; a worker that takes another's place serves without it.
        await self._database.open(required=False)
        opened.push_async_callback(self._transport.close)
        self._journal = Journal(self._state.journal, self._config.journal)
        opened.callback(self._journal.close)
        opened.push_async_callback(self._tasks.cancel_all)
        self.recorder = await self._make_recorder()
        opened.push_async_callback(self.recorder.shutdown, deadline_seconds=5)
        await self.keys.start(self._database, self._tasks)
        self._core = Core(self.services, self._transport, self._journal, self.keys)
        self._health = HealthEndpoints(self._database, self._journal, self._tasks)
        self.gateway = await self._make_gateway()
        opened.push_async_callback(self._close_gateway)
        # Only now: what a dead worker left is settled with the gateway's models and prices.
        self.recorder.startup()
        # The file may have been reloaded since the first worker started.
        self.keys.configure(self._workspaces(self.gateway.configuration.config))

    async def _make_recorder(self) -> Recorder:
        partitions = Partitions(self._database, self._queries, self._config.audit, self._clock, self._log)
        await partitions.try_to_maintain()
        self._tasks.start("partitions", partitions.run())
        rejected = self._state.journal / "rejected.jsonl"
        writer = BatchWriter(self._database, self._queries, partitions, rejected, clock=self._clock, log=self._log)
        return Recorder(
            self._journal,
            writer,
            self._config.journal,
            clock=self._clock,
            log=self._log,
            tasks=self._tasks,
            interrupted=self._interrupted,
        )

    async def _make_gateway(self) -> Gateway:
        configuration = read_configuration(self._config_path, self.services, self._available)
        refuse_fixed(self._config, configuration.config)
        gateway = Gateway(configuration, self._core)
        ModelEndpoints(configuration.catalogue, self._principal, int(self._clock.now().timestamp())).register(
            gateway.routes
        )
        self._health.register(gateway.routes)
        AdminEndpoints(
            self._database,
            self._queries,
            self._clock,
            configured=self.keys.configured_workspaces,
            reload=self._ask_for_reload,
        ).register(gateway.routes)
        await gateway.startup()
        return gateway

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
        request = client.request
        route, parameters = self.gateway.routes.find(request.method, request.path)
        if route.admin:
            self._check_admin(request.headers)
        body = await client.read_body() if request.can_read_body else b""
        asked = RouteRequest(request.method, request.path, parameters, request.query, request.headers, body)
        try:
            answer = await route.handler(asked)
        except LLMProxyError:
            raise
        except Exception as error:
            self._log.error("route_failed", path=route.path, error=repr(error), exc_info=error)
            raise LLMProxyError("The gateway failed on this request; its log has the details.") from error
        await client.send(answer.status, answer.headers, answer.body)

    def _check_admin(self, headers: Mapping[str, str]) -> None:
        if not hmac.compare_digest(credential_in(headers).encode("utf-8", "surrogateescape"), self._admin_key):
            raise Unauthenticated("This path takes the admin key, and the one sent is not it.")

    async def _principal(self, request: RouteRequest) -> Principal:
        now = self._clock.now()
        exchange = Exchange(new_id(now), now, self._clock.monotonic(), Operation.CHAT, request.path, request.headers)
        return await self.gateway.pipeline.authenticate(exchange)

    # Keeping house

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            await self.server.sweep()
            if self._tls is not None:
                self._tls.refresh()

    def _interrupted(self, admitted: Document) -> Document:
        """The ending of a request whose worker died: charged for the most it may have used, at its first target."""
        usage = estimate.assumed(admitted["request_bytes"], admitted["max_output_tokens"])
        targets = self.gateway.configuration.catalogue.targets(admitted["request_model"])
        if not targets:
            return records.interrupted(admitted, None, None, usage)
        return records.interrupted(admitted, targets[0], self.gateway.accounting.cost(targets[0], usage), usage)
