"""Which limits a request is held to: limits by their scopes, subjects by their names, allowances by their windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from urllib.parse import urlencode

from llmproxy.api import Allowance, Attempt, CallerKey, Exchange, Scope, ScopeName, Scopes, Target, spoken_subject
from llmproxy_plugins.rate_limits.settings import Algorithm, Limit, Unit
from llmproxy_plugins.rate_limits.settings import Window as WindowName
from llmproxy_plugins.rate_limits.windows import Window, window_of

PREFIX: Final = "rate_limits:"
SLOTS: Final[tuple[Unit, ...]] = ("concurrent", "concurrent_streams")
TOKENS: Final[tuple[Unit, ...]] = ("tokens", "input_tokens", "output_tokens")
_THINGS: Final[Mapping[Unit, str]] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "concurrent": "requests",
    "concurrent_streams": "streams",
}
_REMEMBERED_SUBJECTS: Final = 10_000
_ONE: Final = Decimal(1)
_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit of one unit for one subject.

    Attributes:
        most: What the configuration says; what clients are told.
        cap: What may be used in the window, less than `most` where a window is a part of the limit's own.
        window: None for what is counted at the same time.
    """

    name: str
    unit: Unit
    subject: str
    limit: Limit
    most: int
    cap: int
    window: Window | None

    def __str__(self) -> str:
        pace = f" per {self.limit.window}" if self.window else " at the same time"
        return f"limit of {self.most} {_THINGS[self.unit]}{pace} of {self.subject}"


class Plan:
    """The limits of all requests that are alike, or of all their attempts at one target.

    Attributes:
        slots: What is counted at the same time.
        counted: What is counted in a window.
        ones: What one request takes of each.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.slots: Final = tuple(rule for rule in rules if rule.window is None)
        self.counted: Final = tuple((rule, rule.window) for rule in rules if rule.window is not None)
        self.units: Final = tuple(rule.unit for rule, _ in self.counted)
        self.ones: Final = (_ONE,) * len(self.counted)
        self.zeros: Final = (_ZERO,) * len(self.counted)
        self.counts_tokens: Final = any(unit in TOKENS for unit in self.units)

    def amounts(self, input_tokens: int, output_tokens: int, requests: int = 1) -> Sequence[Decimal]:
        """What so much takes of each that is counted."""
        taken: dict[Unit, int] = {
            "requests": requests,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "tokens": input_tokens + output_tokens,
        }
        return [Decimal(taken[unit]) for unit in self.units]

    def used(self, attempt: Attempt) -> Sequence[Decimal]:
        """What an attempt has used of each that is counted; a request counts once it has reached the provider."""
        usage = attempt.usage
        tokens = (usage.input_tokens, usage.output_tokens) if usage else (0, 0)
        return self.amounts(*tokens, requests=1 if attempt.is_sent else 0)


class Kind(NamedTuple):
    """What limits have in common that count the same thing: of those the first that fits a subject holds."""

    scope: tuple[Scope, ...]
    unit: Unit
    window: WindowName | Literal[""]
    algorithm: Algorithm | Literal[""]


class Group:
    """The limits of one kind."""

    def __init__(self, kind: Kind, limits: Sequence[Limit]) -> None:
        self.kind: Final = kind
        self._limits = tuple(limits)
        self._scopes = Scopes(kind.scope)
        self._rule = lru_cache(maxsize=_REMEMBERED_SUBJECTS)(self._make_rule)

    def rules(self, exchange: Exchange, target: Target | None) -> Iterator[Rule]:
        """Those that a request is held to: one, none, or with tags several."""
        workspace = exchange.principal.workspace
        for names in self._scopes.names(exchange, target):
            if (rule := self._rule(workspace, names)) is not None:
                yield rule

    def _make_rule(self, workspace: str, names: tuple[ScopeName, ...]) -> Rule | None:
        limit = next((limit for limit in self._limits if limit.fits(names)), None)
        if limit is None:
            return None
        kind, subject = self.kind, self._scopes.subject(workspace, names)
        pace = "" if kind.unit in SLOTS else f":{kind.algorithm}:{kind.window}"
        name = f"{PREFIX}{kind.unit}{pace}:{urlencode(list(subject.items()))}"
        most = limit.caps[kind.unit]
        cap, window = (most, None) if kind.unit in SLOTS else window_of(limit, most)
        return Rule(name, kind.unit, spoken_subject(subject), limit, most, cap, window)


class Limits:
    """All limits of a configuration, told apart by when they are held: once for a request, or for each attempt."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        kinds: dict[Kind, list[Limit]] = {}
        for limit in limits:
            for unit in limit.caps:
                kinds.setdefault(_kind(limit, unit), []).append(limit)
        groups = [Group(kind, found) for kind, found in kinds.items()]
        self._of_requests = [group for group in groups if not _is_of_attempts(group.kind)]
        self._of_attempts = [group for group in groups if _is_of_attempts(group.kind)]
        self.scopes: Final[frozenset[Scope]] = frozenset(scope for limit in limits for scope in limit.scope)
        self._key = CallerKey(self.scopes)
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._allowances: dict[str, Allowance] = {}

    def plan(self, exchange: Exchange, target: Target | None = None) -> Plan:
        """What a request is held to as it is let in; with a target, what an attempt at that one is."""
        key = (*self._key.of(exchange, target), exchange.request.is_stream)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) > _REMEMBERED_SUBJECTS:
                self._plans.clear()
            groups = self._of_requests if target is None else self._of_attempts
            rules = [rule for group in groups for rule in group.rules(exchange, target) if _counts(rule, exchange)]
            plan = self._plans[key] = Plan(rules)
        return plan

    def allowances(self, plan: Plan, at: datetime) -> tuple[tuple[Allowance, ...], datetime, datetime]:
        """What a plan's limits allow at a time, and from when until when it is the same windows."""
        found = tuple(self.allowance(rule, window, at) for rule, window in plan.counted)
        ends = (each.bucket + window.pace for each, (_, window) in zip(found, plan.counted, strict=True))
        return found, max((each.bucket for each in found), default=at), min(ends, default=at)

    def allowance(self, rule: Rule, window: Window, now: datetime) -> Allowance:
        """What a rule allows at a time; the same object as long as it is the same window."""
        known = self._allowances.get(rule.name)
        if known is None or not window.is_in(known.bucket, now) or known.cap != rule.cap:
            if len(self._allowances) > _REMEMBERED_SUBJECTS:
                self._allowances.clear()
            known = self._allowances[rule.name] = Allowance(rule.name, Decimal(rule.cap), *window.at(now))
        return known


def _kind(limit: Limit, unit: Unit) -> Kind:
    # What is counted at the same time knows no window.
    return Kind(limit.scope, unit, *(("", "") if unit in SLOTS else (limit.window, limit.algorithm)))


def _is_of_attempts(kind: Kind) -> bool:
    """What belongs to a target, or is counted there: a cache's answers take no tokens."""
    return kind.unit in TOKENS or "model" in kind.scope or "provider" in kind.scope


def _counts(rule: Rule, exchange: Exchange) -> bool:
    return rule.unit != "concurrent_streams" or exchange.request.is_stream
