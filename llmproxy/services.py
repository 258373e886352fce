"""What core hands to plugins and providers: a clock, a database, a log, an HTTP client. Handed in, never imported."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from llmproxy.allowances import Allowance, AllowanceUsage
from llmproxy.claims import Claim
from llmproxy.errors import UpstreamError
from llmproxy.exchange import Answer, Attempt, Exchange, Target
from llmproxy.request import Document, Operation
from llmproxy.usage import Cost, Usage

C = TypeVar("C", bound=Claim)


class Clock(Protocol):
    """Time, so that tests can hold it still."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""

    def monotonic(self) -> float:
        """Seconds that never run backwards, from an arbitrary start."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own time."""

    # Asked a dozen times for each request: the functions themselves, without one of ours around them.
    now = staticmethod(partial(datetime.now, UTC))
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


# A row's columns are whatever the query names; asyncpg's Record and dict both fit.
Row = Mapping[str, Any]


class Connection(Protocol):
    """One database connection inside a transaction."""

    async def execute(self, query: str, *args: object) -> None:
        """Run a statement and forget its rows. Raises StorageError."""

    async def execute_many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once per row, in one round trip. Raises StorageError."""

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """All rows of a query. Raises StorageError."""

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        """The first row, None when there is none. Raises StorageError."""


class Database(Connection, Protocol):
    """A pool of connections; each of its own calls is a transaction of its own."""

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """Several statements, all or nothing. Raises StorageError."""

    def listen(self, channel: str, on_notify: Callable[[str], None], on_gap: Callable[[], None]) -> Callable[[], None]:
        """Call `on_notify(payload)` for each NOTIFY on the channel, until what is returned is called.

        A plugin calls that in its `shutdown`, for the database outlives it when the configuration is reloaded.

        `on_gap` is called when notifications may have been missed (the connection was lost and is back) and
        once when listening starts, so what was cached must be read again.
        """


class Log(Protocol):
    """A structured log: an event name and its fields."""

    def debug(self, event: str, **fields: object) -> object: ...
    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...


class Tasks(Protocol):
    """The one place that starts background tasks: it keeps a reference, logs what they raise, and ends them."""

    def start(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `coroutine` until it ends or the worker stops."""


@dataclass(slots=True)
class UpstreamRequest:
    """One HTTP request to a provider, complete: address, headers with credentials, body.

    `dropped` names the client's parameters that were left out because the provider does not have them. Not frozen,
    because one is made for every attempt, which takes a third of the time so.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    dropped: tuple[str, ...] = ()


class UpstreamResponse(Protocol):
    """A provider's response whose body is still to be read."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields, looked up without regard to case."""

    async def read(self) -> bytes:
        """The next piece of the decoded body as it arrives; b"" at its end. Raises an UpstreamError."""

    def abort(self, error: UpstreamError) -> None:
        """Make the pending read, and every later one, raise `error`: how a timer ends a response."""

    def close(self) -> None:
        """Give the response up; an unread rest closes the connection, so that the provider stops working."""


class HTTPClient(Protocol):
    """Outgoing HTTP for plugins and providers (webhooks, token refresh): whole requests, whole responses."""

    async def request(
        self, request: UpstreamRequest, *, timeout_seconds: float = 10, max_body_bytes: int = 1_048_576
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. Raises an UpstreamError."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """A request to a route of a plugin or of the admin API."""

    method: str
    path: str
    parameters: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


RouteHandler = Callable[[RouteRequest], Awaitable[Answer]]


class Router(Protocol):
    """Where plugins add HTTP routes."""

    def add(self, method: str, path: str, handler: RouteHandler, *, admin: bool = True) -> None:
        """Serve `path` (`{name}` is a parameter). `admin=True` asks for the admin key first.

        Raises ConfigError when the path is taken.
        """


class RunningGateway(Protocol):
    """The gateway that serves, asked by a command."""

    def ask(self, method: str, path: str, document: Document | None = None, *, url: str | None = None) -> Document:
        """What it answers under one of its admin paths; blocks until then.

        Args:
            url: Where it serves; None for where the configuration of the command says.

        Raises an LLMProxyError that says why there is no answer: no gateway, another key, or the gateway's own words.
        """


class Commands(Protocol):
    """The `llmproxy` command group, as much of click as a plugin needs."""

    @property
    def gateway(self) -> RunningGateway:
        """For commands that ask the gateway that runs: what a plugin holds in memory is with that one."""

    # click's Command; core does not make plugins import click's types through ours.
    def add_command(self, cmd: Any, name: str | None = None) -> None:
        """Add a click command or group."""


class Exchanges(Protocol):
    """Exchanges in the gateway's own name: what a plugin itself asks of a model."""

    async def send(self, parent: Exchange, operation: Operation, document: Document, *, origin: str) -> Answer:
        """The whole answer to a request that goes the way of every client's, with hooks, limits and a row of its own.

        It is asked for by whoever asked for `parent`, in the name of the plugin `origin`; a plugin should leave alone
        an exchange that has the plugin's own name as its `origin`. Raises the LLMProxyError it ended with.
        """


class Pricing(Protocol):
    """What models cost, by the operator's own prices and the price data."""

    def cost(self, target: Target, usage: Usage) -> Cost:
        """What some usage costs at a target; its amount is None when no price is known."""


class Reservation(Protocol):
    """What may be used of some allowances."""

    @property
    def has_overrun(self) -> bool:
        """Whether more was used than there was room for."""

    def settle(self, amounts: Sequence[Decimal]) -> None:
        """Say what was used, in the order in which it was reserved; only the first time counts.

        What is never settled was used in full.
        """


class Quotas(Protocol):
    """Allowances that all workers and replicas share: together they never use more than the cap."""

    async def reserve(
        self,
        exchange: Exchange,
        allowances: Sequence[Allowance],
        amounts: Sequence[Decimal],
        *,
        fail_open: bool = False,
    ) -> Reservation:
        """Reserve so much of each, or nothing; from what this worker has leased without asking anybody.

        For what no hook `claims` can say, and of allowances without a share of the ledger.

        Args:
            fail_open: Go on without a lease when the database cannot be reached.

        Raises AllowanceExhausted, and StorageError when the database is needed and cannot be reached.
        """

    def taken(self, exchange: Exchange, kind: type[C]) -> Sequence[tuple[Attempt | None, C, Sequence[Decimal | None]]]:
        """What an exchange and its attempts have taken by claims of a kind, the latest first.

        With each attempt (None: the request itself) and claim comes what this worker could still use of the claim's
        allowances, as far as it knows; None when it does not know.
        """

    def renew_claims(self) -> None:
        """Have plugins be asked for all claims anew."""

    def hold_attempts(self) -> Callable[[], None]:
        """Have it count, until what is returned is called, that every attempt is reserved before it is made.

        What is let in meanwhile, and dies without a reservation, is known not to have been sent, and charged nothing.
        """

    def remaining(self, allowances: Sequence[Allowance]) -> Sequence[Decimal | None]:
        """What this worker could still use of each, as far as it knows; None when it does not know."""

    async def settled(self, names: Sequence[str]) -> Mapping[tuple[str, datetime], Decimal]:
        """What is settled of some allowances, by name and bucket. Raises StorageError."""

    async def usage(self, prefix: str) -> Sequence[AllowanceUsage]:
        """Every allowance whose name begins so, bucket by bucket. Raises StorageError."""

    async def release(self, holder: str) -> None:
        """Write a worker off that will not come back: let others have what it holds. Raises StorageError."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a worker is doing, for whoever watches over it.

    Attributes:
        group: The same for all workers of a gateway, those that take a dead one's place included, and another each
            time the gateway is started.
        journal_pending: Gives how many ended requests are not in the database yet.
        plugin_failures: How often plugins of this configuration failed where that stops nobody, by plugin and hook.
    """

    group: str = field(default_factory=lambda: secrets.token_hex(8))
    journal_pending: Callable[[], int] = lambda: 0
    plugin_failures: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Services:
    """What a plugin or provider may use."""

    clock: Clock
    database: Database
    http: HTTPClient
    log: Log
    tasks: Tasks
    exchanges: Exchanges
    pricing: Pricing
    quotas: Quotas
    state_directory: Path
    vitals: Vitals = field(default_factory=Vitals)
