"""What follows when an exchange is over: its row, what it held let go, and the plugins told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from llmproxy import records
from llmproxy.errors import LLMProxyError
from llmproxy.exchange import Exchange, Outcome
from llmproxy.holdings import Holdings
from llmproxy.hookcalls import Finished
from llmproxy.hooks import Hooks
from llmproxy.journal import Journal
from llmproxy.occupancy import Occupancy
from llmproxy.quotas import Quotas
from llmproxy.records import Bodies
from llmproxy.request import Document
from llmproxy.services import Log, Tasks


class Ending(NamedTuple):
    """One exchange that is over and settled, and what else its row says of it."""

    exchange: Exchange
    facts: Document
    http_status: int
    response_bytes: int
    bodies: Bodies


class Endings:
    """Writes down exchanges that have ended, before anything else can come from their clients.

    All that end in one turn of the event loop are written together: what one leaves in the processor's caches
    the next finds there, which halves what it costs.

    Args:
        holdings: None when no plugin claims anything.
        occupancy: An exchange is inside it until plugins have been told.
        on_failure: Learns of what kept a plugin or a record from being done with.
    """

    def __init__(
        self,
        *,
        hooks: Hooks,
        journal: Journal,
        quotas: Quotas,
        holdings: Holdings | None,
        occupancy: Occupancy,
        tasks: Tasks,
        log: Log,
        on_failure: Callable[[Exchange, LLMProxyError], None],
    ) -> None:
        self._hooks = hooks
        self._journal = journal
        self._quotas = quotas
        self._holdings = holdings
        self._occupancy = occupancy
        self._tasks = tasks
        self._log = log
        self._on_failure = on_failure
        self._ended: list[Ending] = []

    def add(self, ending: Ending) -> None:
        """Write it down before the event loop reads from any socket again."""
        # Entered here already, or its plugins could be shut down first.
        self._occupancy.enter()
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._write)
        self._ended.append(ending)

    def _write(self) -> None:
        ended, self._ended = self._ended, []
        recorded = self._each(self._record, ended)
        # What is let go others may use: before that it must be certain that this exchange did not.
        self._journal.recover()
        self._each(self._let_go, recorded)
        self._each(self._complete, ended)
        for _ in ended:
            self._occupancy.leave()

    def _each(self, conclude: Callable[[Ending], None], ended: Sequence[Ending]) -> Sequence[Ending]:
        """Do it for each of them, and give those for which that went well."""
        done = []
        for ending in ended:
            try:
                conclude(ending)
                done.append(ending)
            except Exception as error:  # noqa: BLE001 - one that no row can be made of keeps no other from its own
                self._log.error("not_concluded", request_id=ending.exchange.id, error=repr(error), exc_info=error)
        return done

    def _record(self, ending: Ending) -> None:
        record = records.completion(*ending)
        exchange = ending.exchange
        self._journal.end(exchange.id, record | self._quotas.charges(exchange))

    def _let_go(self, ending: Ending) -> None:
        exchange = ending.exchange
        self._quotas.let_go(exchange)
        if self._holdings:
            self._holdings.settle(exchange)

    def _complete(self, ending: Ending) -> None:
        """Tell the plugins that it is over; where that takes time, in a task of its own.

        The client, and the cancellation it may have caused, are done with.
        """
        exchange = ending.exchange
        if self._hooks.post_response and exchange.outcome is Outcome.SUCCEEDED and _has_stream(exchange):
            return self._start_completing(self._complete_stream(exchange, self._hooks.post_response))
        told = self._hooks.on_complete(exchange) if self._hooks.on_complete else None
        if told is not None and not isinstance(told, Finished):
            self._start_completing(told)
        return None

    def _start_completing(self, completing: Awaitable[None]) -> None:
        self._occupancy.enter()
        self._tasks.start("on_complete", self._completed(completing))

    async def _completed(self, completing: Awaitable[None]) -> None:
        try:
            await completing
        finally:
            self._occupancy.leave()

    async def _complete_stream(self, exchange: Exchange, tell: Callable[[Exchange], Awaitable[None]]) -> None:
        try:
            await tell(exchange)
        except LLMProxyError as error:
            # The client has its answer already: all that is left is to say so.
            self._on_failure(exchange, error)
        finally:
            if self._hooks.on_complete:
                await self._hooks.on_complete(exchange)


def _has_stream(exchange: Exchange) -> bool:
    return exchange.answer is not None and exchange.answer.stream is not None
