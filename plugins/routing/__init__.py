"""Split a model's requests over its targets: by weight, latency or cost, and send copies elsewhere to compare."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from math import inf
from random import Random
from typing import Final

from llmproxy.api import Attempt, Exchange, Services, Target, Usage, hookimpl
from llmproxy_plugins.routing.config import MirrorRule, ModelRule, RoutingConfig, Sticky, Strategy
from llmproxy_plugins.routing.latency import Latencies
from llmproxy_plugins.routing.mirror import Mirrors
from llmproxy_plugins.routing.order import by_least, by_weight, draw_at_random, draw_for

__all__ = ["MirrorRule", "ModelRule", "Routing", "RoutingConfig"]

# What a request is compared by that sets no limit to its answer.
_USUAL_OUTPUT_TOKENS: Final = 500
_BYTES_PER_TOKEN: Final = 4
# Targets that are about as fast share the requests, or every worker would run to the same one.
_LATENCY_TOLERANCE: Final = 0.1

# An order of preference, and what put the first of them there.
_Order = tuple[list[Target], str]


class Routing:
    """The plugin.

    Args:
        random: Where chance comes from.
    """

    name = "routing"
    Config = RoutingConfig

    def __init__(self, config: RoutingConfig, services: Services, *, random: Random | None = None) -> None:
        self._config = config
        self._pricing = services.pricing
        # Nothing here is a secret; each worker draws for itself.
        self._random = random or Random()  # noqa: S311 - chance, not cryptography
        self._latencies = Latencies(services.clock.monotonic, config.latency_half_life_seconds)
        self._measures = "least_latency" in {config.strategy, *(rule.strategy for rule in config.models.values())}
        self.unused_hooks = () if self._measures else ("post_attempt",)
        self._mirrors = Mirrors(
            self.name, config.mirror, at_once=config.mirrors_at_once, services=services, random=self._random
        )

    @hookimpl
    def narrow_targets(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
        """Put the weighted targets in order; those without weight stay behind them, as they are."""
        self._mirrors.copy(exchange)
        weighted = [target for target in targets if target.weight > 0]
        if len(weighted) < 2:
            return None
        ordered, why = self._ordered(exchange, weighted)
        exchange.decide(self.name, f"chose {_label(ordered[0])}", why)
        return [*ordered, *(target for target in targets if target.weight <= 0)]

    @hookimpl
    def post_attempt(self, attempt: Attempt) -> None:
        """Learn how long the target took."""
        self._latencies.observe(attempt)

    def _ordered(self, exchange: Exchange, targets: Sequence[Target]) -> _Order:
        strategy, sticky = self._rule(exchange.request.model)
        match strategy:
            case "weighted":
                return self._by_weight(exchange, targets, sticky)
            case "least_latency":
                return self._by_latency(exchange, targets)
            case "least_cost":
                return self._by_cost(exchange, targets)

    def _rule(self, model: str) -> tuple[Strategy, Sticky]:
        fitting = (rule for pattern, rule in self._config.models.items() if fnmatchcase(model, pattern))
        rule = next(fitting, ModelRule())
        return rule.strategy or self._config.strategy, rule.sticky or self._config.sticky

    def _by_weight(self, exchange: Exchange, targets: Sequence[Target], sticky: Sticky) -> _Order:
        subject = _subject(exchange, sticky)
        draw = draw_at_random(self._random) if subject is None else draw_for(subject)
        ordered = by_weight(targets, draw)
        share = f"weight {ordered[0].weight:.4g} of {sum(target.weight for target in targets):.4g}"
        if sticky == "none":
            return ordered, share
        return ordered, f"{share}, " + (f"no {sticky} is named" if subject is None else f"always for this {sticky}")

    def _by_latency(self, exchange: Exchange, targets: Sequence[Target]) -> _Order:
        known, is_stream = self._latencies, exchange.request.is_stream
        expected = partial(known.expected_seconds, is_stream=is_stream)
        ordered = by_least(targets, expected, self._random, tolerance=_LATENCY_TOLERANCE)
        known.choose(ordered[0], is_stream=is_stream)
        seconds = known.measured_seconds(ordered[0], is_stream=is_stream)
        if seconds is None:
            return ordered, "it is not known yet how fast it is"
        return ordered, f"its first content takes {seconds:.3f} s"

    def _by_cost(self, exchange: Exchange, targets: Sequence[Target]) -> _Order:
        usage = _expected_usage(exchange)
        amounts = {target: self._pricing.cost(target, usage).amount_usd for target in targets}

        def expected_usd(target: Target) -> float:
            amount = amounts[target]
            return inf if amount is None else float(amount)

        ordered = by_least(targets, expected_usd, self._random)
        amount = amounts[ordered[0]]
        return ordered, "no price is known" if amount is None else f"about {amount:.6f} USD, the least"


def _subject(exchange: Exchange, sticky: Sticky) -> str | None:
    """Who keeps to one target; the same name in another workspace is somebody else."""
    named = _named(exchange, sticky)
    return f"{exchange.principal.workspace}\0{named}" if named else None


def _named(exchange: Exchange, sticky: Sticky) -> str | None:
    match sticky:
        case "none":
            return None
        case "user":
            return exchange.attribution.user
        case "session":
            return exchange.attribution.session
        case "key":
            return exchange.principal.key_id


def _expected_usage(exchange: Exchange) -> Usage:
    """Roughly what a request will use, the same at each target: enough to compare prices by."""
    document = exchange.request.document
    limit = document.get("max_completion_tokens") or document.get("max_tokens")
    return Usage(
        uncached_input_tokens=max(1, exchange.request.size_bytes // _BYTES_PER_TOKEN),
        text_output_tokens=limit if isinstance(limit, int) and limit > 0 else _USUAL_OUTPUT_TOKENS,
        provenance="assumed",
    )


def _label(target: Target) -> str:
    return target.name if target.credential is None else f"{target.name} (key {target.credential})"
