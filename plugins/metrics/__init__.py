"""`GET /metrics` for Prometheus: what all workers of the gateway have counted, from whichever is asked."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections import Counter
from collections.abc import Iterator
from typing import Final

from llmproxy.api import (
    Answer,
    Attempt,
    Exchange,
    Outcome,
    PluginError,
    Router,
    RouteRequest,
    Services,
    StateKey,
    Unauthenticated,
    hookimpl,
)
from llmproxy.api import Config as GatewayConfig
from llmproxy_plugins.metrics.config import MetricsConfig
from llmproxy_plugins.metrics.exposition import OPEN_METRICS, TEXT, exposition
from llmproxy_plugins.metrics.families import Labels
from llmproxy_plugins.metrics.instruments import Instruments
from llmproxy_plugins.metrics.labels import Names, Roll, failure_of
from llmproxy_plugins.metrics.sheets import open_sheet, read_sheets

PATH: Final = "/metrics"
# Steps of a scrape between which requests wait: well under a millisecond of them.
_STEPS_AT_ONCE: Final = 32
_VITALS_SECONDS: Final = 1.0
_CLIENT: Final = "client"
# What a request was counted under when it was let in.
_FLIGHT: Final = StateKey[Labels]("metrics.flight")


class Metrics:
    """The plugin: counts on the way in and at every ending, and adds up when it is asked."""

    name = "metrics"
    Config = MetricsConfig

    # Made by `register_providers` and `startup`, before there is a request.
    _names: Names
    _instruments: Instruments

    def __init__(self, config: MetricsConfig, services: Services) -> None:
        self._config = config
        self._services = services
        self._roll: Roll | None = None
        self._is_counting = False
        self._failures_written: Counter[tuple[str, str]] = Counter()
        self._scraping = asyncio.Lock()

    # Starting and stopping

    @hookimpl
    def register_providers(self, config: GatewayConfig) -> None:
        """Bring none; this is where the whole configuration is told, and with it the names that labels may have."""
        self._names = Names(config, self._config)

    @hookimpl
    def register_routes(self, router: Router) -> None:
        """Serve `/metrics`, to the operator unless something else is configured."""
        is_admin = not self._config.public and self._config.token is None
        router.add("GET", PATH, self.scrape, admin=is_admin)

    @hookimpl
    async def startup(self, services: Services) -> None:
        """Begin to count, or go on where a dead worker has stopped. Raises StorageError."""
        root, group = services.state_directory / self.name, services.vitals.group
        self._directory = root / group
        self._sheet = await asyncio.to_thread(open_sheet, root, group, services.log)
        self._instruments = Instruments(self._sheet)
        if self._config.workspaces:
            self._roll = Roll(self._directory / "workspaces", self._config.max_label_values)
        self._is_counting = True
        self._write_vitals()
        self._watching = services.tasks.start("metrics", self._watch())

    @hookimpl
    def shutdown(self, services: Services) -> None:
        """Leave the numbers to those that go on."""
        self._watching.cancel()
        self._write_vitals()
        self._is_counting = False
        if self._roll is not None:
            self._roll.close()
        self._sheet.close()

    # Counting

    # Before all others, for one that answers or refuses leaves out those behind it.
    @hookimpl(tryfirst=True)
    def pre_request(self, exchange: Exchange) -> None:
        """Count the request as being on its way."""
        if self._is_counting:
            labels = exchange.state[_FLIGHT] = self._asked(exchange)
            self._instruments.flights.add(labels)

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Count an attempt, what it used and what it cost."""
        if not self._is_counting:
            return
        target, instruments = attempt.target, self._instruments
        provider = self._names.provider(target)
        instruments.attempts.add((provider, failure_of(attempt)))
        model, usage, cost = self._names.target_model(target), attempt.usage, attempt.cost
        if usage is not None:
            asked = (exchange.operation, provider, model)
            instruments.tokens.observe((*asked, "input"), usage.input_tokens)
            if output_tokens := usage.output_tokens:
                instruments.tokens.observe((*asked, "output"), output_tokens)
        if cost is not None and cost.amount_usd is not None:
            instruments.cost.add((provider, model, self._workspace(exchange)), float(cost.amount_usd))

    @hookimpl
    def on_complete(self, exchange: Exchange) -> None:
        """Count the request under how it ended, and how long it took if a client asked."""
        if not self._is_counting:
            return
        outcome, instruments = exchange.outcome or Outcome.FAILED, self._instruments
        flight = exchange.state.get(_FLIGHT)
        if flight is not None:
            instruments.flights.add(flight, number=1)
        asked = flight or self._asked(exchange)
        instruments.requests.add((*asked, outcome))
        if exchange.answer is not None and exchange.answer.cache is not None:
            instruments.cache.add((exchange.answer.cache,))
        if isinstance(exchange.error, PluginError) and exchange.error.plugin is not None:
            instruments.plugin_failures.add((exchange.error.plugin, exchange.error.hook or ""))
        if exchange.origin is None:
            self._time(exchange, (asked[0], self._names.provider(exchange.target), asked[1]), outcome)

    def _time(self, exchange: Exchange, asked: Labels, outcome: Outcome) -> None:
        instruments, duration_seconds = self._instruments, exchange.duration_seconds or 0.0
        instruments.duration.observe((*asked, outcome), duration_seconds)
        first_seconds, answer = exchange.first_chunk_seconds, exchange.answer
        if first_seconds is None or answer is None or answer.stream is None:
            return
        instruments.first_token.observe(asked, first_seconds)
        output_tokens = exchange.usage.output_tokens if exchange.usage is not None else 0
        if output_tokens > 1 and outcome is Outcome.SUCCEEDED:
            instruments.per_token.observe(asked, (duration_seconds - first_seconds) / (output_tokens - 1))

    def _asked(self, exchange: Exchange) -> Labels:
        """The labels of what was asked for, and by whom."""
        model = self._names.asked_model(exchange.request.model)
        return exchange.operation, model, exchange.origin or _CLIENT, self._workspace(exchange)

    def _workspace(self, exchange: Exchange) -> str:
        return self._roll.label(exchange.principal.workspace) if self._roll is not None else ""

    # What happens without a request

    async def _watch(self) -> None:
        while True:
            await self._services.clock.sleep(_VITALS_SECONDS)
            self._write_vitals()

    def _write_vitals(self) -> None:
        # A scrape may be the last to end when a drain is cut short, and the sheet another's by then.
        if not self._is_counting:
            return
        vitals, instruments = self._services.vitals, self._instruments
        instruments.pending.write((), os.getpid(), vitals.journal_pending())
        for failed, count in vitals.plugin_failures.items():
            instruments.plugin_failures.add(failed, count - self._failures_written[failed])
        self._failures_written = Counter(vitals.plugin_failures)

    # Being asked

    async def scrape(self, request: RouteRequest) -> Answer:
        """The numbers of all workers, in the format that is asked for. Raises Unauthenticated and StorageError."""
        self._check(request)
        is_open_metrics = "application/openmetrics-text" in request.headers.get("accept", "")
        # One at a time, so that many who ask take no more from requests than one does.
        async with self._scraping:
            self._write_vitals()
            sheets = await asyncio.to_thread(read_sheets, self._directory)
            text = await _taken_slowly(exposition(sheets, is_open_metrics=is_open_metrics))
        return Answer(200, (("content-type", OPEN_METRICS if is_open_metrics else TEXT),), text.encode())

    def _check(self, request: RouteRequest) -> None:
        if self._config.token is None:
            return
        sent = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, b"Bearer " + self._config.token.get_secret_value().encode()):
            raise Unauthenticated("This path takes a token of its own, and the one sent is not it.")


async def _taken_slowly(steps: Iterator[str]) -> str:
    """All the pieces, with requests let past every few of them."""
    pieces = []
    for number, piece in enumerate(steps, start=1):
        pieces.append(piece)
        if number % _STEPS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return "".join(pieces)
