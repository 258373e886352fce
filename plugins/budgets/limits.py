"""Which budgets an attempt is held to: limits by their scopes, subjects by their names, allowances by their windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from llmproxy.api import (
    Allowance,
    CallerKey,
    Exchange,
    Scope,
    ScopeName,
    Scopes,
    Target,
    spoken_subject,
)
from llmproxy_plugins.budgets.settings import Limit, Mode, Unit, Window
from llmproxy_plugins.budgets.windows import Span, Windows

PREFIX: Final = "budgets:"
_REMEMBERED_SUBJECTS: Final = 10_000
# What the ledger calls each scope; "gateway" is all of it.
_COLUMNS: Final[Mapping[Scope, str]] = {
    "workspace": "workspace",
    "feature": "feature",
    "user": "user_id",
    "key": "key_id",
    "provider": "provider_name",
    "model": "model",
    "tag": "tag",
}
_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)
_END: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit's budget for one subject."""

    limit: Limit
    name: str
    subject: str
    share: Mapping[str, str]


class Applied(NamedTuple):
    """A budget in the window that a request is in."""

    budget: Budget
    allowance: Allowance
    cap: Decimal


class Plan:
    """The budgets of all attempts that are alike, from one moment up to another.

    Attributes:
        units: What each of them is counted in.
        are_hard_usd: Which of them are in dollars and refuse.
        soft: Those that only tell.
        throttled: Those that delay.
        watched: Those of which somebody wants to know how full they are.
    """

    def __init__(self, applied: tuple[Applied, ...], *, since: datetime, until: datetime) -> None:
        limits = [each.budget.limit for each in applied]
        self.applied: Final = applied
        self.since: Final = since
        self.until: Final = until
        self.allowances: Final = tuple(each.allowance for each in applied)
        self.units: Final = tuple(limit.unit for limit in limits)
        self.are_hard_usd: Final = tuple((limit.unit, limit.mode) == ("usd", "hard") for limit in limits)
        self.soft: Final = [each for each in applied if each.budget.limit.mode == "soft"]
        self.throttled: Final = [each for each in applied if each.budget.limit.mode == "throttle"]
        self.watched: Final = [
            each for each in applied if each.budget.limit.alert_at or each.budget.limit.mode != "hard"
        ]


class Kind(NamedTuple):
    """What limits have in common that count the same thing: of those the first that fits a subject holds."""

    scope: tuple[Scope, ...]
    unit: Unit
    window: Window
    is_rolling: bool
    mode: Mode


class Group:
    """The limits of one kind."""

    def __init__(self, kind: Kind, limits: Sequence[Limit], zone: tzinfo) -> None:
        self.kind: Final = kind
        self.windows: Final = Windows(kind.window, zone, is_rolling=kind.is_rolling)
        self._limits = tuple(limits)
        self._scopes = Scopes(kind.scope)
        self.budget: Final = lru_cache(maxsize=_REMEMBERED_SUBJECTS)(self._budget)

    def budgets(self, exchange: Exchange, target: Target) -> Iterator[Budget]:
        """Those that an attempt at a target is held to: one, none, or with tags several."""
        workspace = exchange.principal.workspace
        for names in self._scopes.names(exchange, target):
            if (budget := self.budget(workspace, names)) is not None:
                yield budget

    def _budget(self, workspace: str, names: tuple[ScopeName, ...]) -> Budget | None:
        limit = next((limit for limit in self._limits if limit.fits(names)), None)
        if limit is None:
            return None
        subject = self._scopes.subject(workspace, names)
        share = {_COLUMNS[scope]: name for scope, name in subject.items() if scope != "gateway"}
        return Budget(limit, name_of(self.kind, subject), spoken_subject(subject), {"unit": self.kind.unit, **share})


class Limits:
    """All limits of a configuration."""

    def __init__(self, limits: Sequence[Limit], zone: tzinfo) -> None:
        kinds: dict[Kind, list[Limit]] = {}
        for limit in limits:
            kinds.setdefault(kind_of(limit), []).append(limit)
        self.groups: Final = [Group(kind, found, zone) for kind, found in kinds.items()]
        self._raised: Mapping[str, Sequence[tuple[datetime, Decimal]]] = {}
        self.scopes: Final[frozenset[Scope]] = frozenset(scope for limit in limits for scope in limit.scope)
        self._key = CallerKey(self.scopes)
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._allowances: dict[str, Allowance] = {}
        # The same by name: a limit that fits a key by its alias cannot be found again by the key's id alone.
        self._budgets: dict[str, Budget] = {}

    def raise_caps(self, raised: Mapping[str, Sequence[tuple[datetime, Decimal]]]) -> None:
        """Have these caps count, by the allowance's name, each until its time has come."""
        self._raised = raised
        self._plans.clear()

    def plan(self, exchange: Exchange, target: Target) -> Plan:
        """What an attempt at a target is held to; a request belongs to the window in which it was let in."""
        key, at = self._key.of(exchange, target), exchange.admitted_at
        plan = self._plans.get(key)
        if plan is None or not plan.since <= at < plan.until:
            if len(self._plans) > _REMEMBERED_SUBJECTS:
                self._plans.clear()
            plan = self._plans[key] = self._planned(exchange, target)
        return plan

    def _planned(self, exchange: Exchange, target: Target) -> Plan:
        at = exchange.admitted_at
        found = [(budget, group.windows.at(at)) for group in self.groups for budget in group.budgets(exchange, target)]
        turns = [turn for budget, span in found for turn in (*_ends(span), *self._turns(budget))]
        return Plan(
            tuple(self.apply(budget, span, at) for budget, span in found),
            since=max((turn for turn in turns if turn <= at), default=_BEGINNING),
            until=min((turn for turn in turns if turn > at), default=_END),
        )

    def _turns(self, budget: Budget) -> Iterator[datetime]:
        """When a budget's cap changes."""
        yield from (until for until, _ in self._raised.get(budget.name, ()))
        for each in budget.limit.raises:
            yield from ((each.until,) if each.since is None else (each.since, each.until))

    def apply(self, budget: Budget, span: Span, at: datetime) -> Applied:
        """A budget in one window."""
        cap = self.cap(budget, at)
        known = self._allowances.get(budget.name)
        limit_cap = cap if budget.limit.mode == "hard" else None
        if known is None or known.bucket != span.bucket or known.cap != limit_cap:
            if len(self._allowances) > _REMEMBERED_SUBJECTS:
                self._allowances.clear()
                self._budgets.clear()
            known = self._allowances[budget.name] = Allowance(budget.name, limit_cap, *span, share=budget.share)
            self._budgets[budget.name] = budget
        return Applied(budget, known, cap)

    def cap(self, budget: Budget, at: datetime) -> Decimal:
        """A budget's cap at a time, raises included."""
        raised = [cap for until, cap in self._raised.get(budget.name, ()) if at < until]
        return max((budget.limit.cap_at(at), *raised)) if raised or budget.limit.raises else budget.limit.base_cap

    def find(self, name: str) -> tuple[Group, Budget] | None:
        """The budget of that name, as the configuration has it now; None when it has none."""
        kind, subject = parsed(name)
        group = next((group for group in self.groups if _head(group.kind) == kind), None)
        if group is None:
            return None
        if (known := self._budgets.get(name)) is not None:
            return group, known
        names = tuple((subject.get(scope, ""), "") for scope in group.kind.scope)
        budget = group.budget(subject.get("workspace", ""), names)
        return (group, budget) if budget is not None and budget.name == name else None


def kind_of(limit: Limit) -> Kind:
    """What kind of limit it is."""
    return Kind(limit.scope, limit.unit, limit.window, limit.rolling, limit.mode)


def name_of(kind: Kind, subject: Mapping[Scope, str]) -> str:
    """What an allowance is called."""
    return f"{_head(kind)}:{urlencode(list(subject.items()))}"


def parsed(name: str) -> tuple[str, Mapping[str, str]]:
    """The kind and the subject of an allowance, from its name."""
    head, _, subject = name.rpartition(":")
    return head, dict(parse_qsl(subject, keep_blank_values=True))


def _head(kind: Kind) -> str:
    rolling = "rolling-" if kind.is_rolling else ""
    return f"{PREFIX}{kind.mode}:{kind.unit}:{rolling}{kind.window}:{'+'.join(kind.scope)}"


def _ends(span: Span) -> Iterator[datetime]:
    """When a window begins and ends, as far as it does."""
    yield span.bucket
    if span.until is not None or span.step is not None:
        yield span.until or span.bucket + (span.step or timedelta())
