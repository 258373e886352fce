"""Copies of requests, sent elsewhere beside the client's own."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import Final

from llmproxy.api import Document, Exchange, LLMProxyError, Services
from llmproxy_plugins.routing.config import MirrorRule

# A copy is asked for whole.
_OF_STREAMS: Final = ("stream", "stream_options")


class Mirrors:
    """Sends copies in the background, as exchanges of the gateway's own: with limits, budgets and a row of their own.

    Args:
        name: The plugin in whose name they are sent.
        at_once: How many may be under way; beyond that none are made.
    """

    def __init__(
        self, name: str, rules: Sequence[MirrorRule], *, at_once: int, services: Services, random: Random
    ) -> None:
        self._name = name
        self._rules = rules
        self._at_once = at_once
        self._services = services
        self._random = random
        self._under_way = 0

    def copy(self, exchange: Exchange) -> None:
        """Send the copies that the rules want of a client's request; returns at once."""
        if exchange.origin is not None:
            # A copy of a copy, or of what another plugin asks for itself, compares nothing.
            return
        for rule in self._rules:
            if fnmatchcase(exchange.request.model, rule.model) and self._random.random() < rule.share:
                self._start(exchange, rule)

    def _start(self, exchange: Exchange, rule: MirrorRule) -> None:
        if self._under_way >= self._at_once:
            exchange.decide(self._name, f"sent no copy to {rule.to}", f"{self._at_once} copies are under way already")
            return
        exchange.decide(self._name, f"sent a copy to {rule.to}", f"{rule.share:.4g} of the requests are copied there")
        self._under_way += 1
        self._services.tasks.start("mirror", self._send(exchange, _copy(exchange, rule.to)))

    async def _send(self, exchange: Exchange, document: Document) -> None:
        try:
            await self._services.exchanges.send(exchange, exchange.operation, document, origin=self._name)
        except LLMProxyError as error:
            # Its row says so as well.
            self._services.log.debug("mirror_failed", request_id=exchange.id, error=error.message)
        finally:
            self._under_way -= 1


def _copy(exchange: Exchange, model: str) -> Document:
    document = {name: value for name, value in exchange.request.document.items() if name not in _OF_STREAMS}
    return {**document, "model": model}
