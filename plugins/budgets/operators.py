"""What operators may ask and do: see budgets, raise one for a time, write off a worker that does not come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, TypeVar

import orjson
from pydantic import AwareDatetime, Field, ValidationError

from llmproxy.api import (
    AllowanceUsage,
    Answer,
    BadRequest,
    Document,
    Follower,
    NotFound,
    Router,
    RouteRequest,
    Section,
    Services,
)
from llmproxy_plugins.budgets.limits import PREFIX, Budget, Limits
from llmproxy_plugins.budgets.settings import Amount
from llmproxy_plugins.budgets.windows import Span

CHANNEL: Final = "budgets_raises"
_ACTIVE: Final = "SELECT allowance, cap, expires_at FROM budgets_raises WHERE expires_at > now()"
_RAISE: Final = "INSERT INTO budgets_raises (allowance, cap, expires_at, reason) VALUES ($1, $2, $3, $4)"
_ZERO: Final = Decimal(0)

Body = TypeVar("Body", bound=Section)


class RaiseRequest(Section):
    """A cap to be raised."""

    allowance: str = Field(min_length=1, description="Its name, as the list of budgets has it.")
    to: Amount = Field(description="The cap meanwhile.")
    until: AwareDatetime = Field(description="When the usual cap holds again.")
    reason: str = Field(default="", max_length=1000, description="For whoever reads the list later.")


class ReleaseRequest(Section):
    """A worker to be written off."""

    holder: str = Field(min_length=1, description="Its name, as the list of budgets has it.")


@dataclass(slots=True)
class _Total:
    settled: Decimal = _ZERO
    leased: Decimal = _ZERO


class Operators:
    """The paths under `/admin/v1/budgets`, and the caps raised through them."""

    def __init__(self, limits: Limits, services: Services) -> None:
        self._limits = limits
        self._services = services
        self._raises = Follower(services, CHANNEL, self._read_raises, failure="budget_raises_not_read")

    def register(self, router: Router) -> None:
        """Add the paths."""
        router.add("GET", "/admin/v1/budgets", self.list_budgets)
        router.add("POST", "/admin/v1/budgets/raise", self.raise_budget)
        router.add("POST", "/admin/v1/budgets/release", self.release_holder)

    async def startup(self) -> None:
        """Read the raised caps, and again whenever they change."""
        # A worker that takes another's place starts without a database, and with the usual caps.
        await self._raises.start()

    def shutdown(self) -> None:
        """Read them no more."""
        self._raises.stop()

    async def list_budgets(self, request: RouteRequest) -> Answer:
        """Every budget that was met in its current window."""
        now = self._services.clock.now()
        usages = await self._services.quotas.usage(PREFIX)
        names = dict.fromkeys(usage.name for usage in usages)
        found = [(name, self._limits.find(name)) for name in names]
        budgets = [
            self._shown(match[1], match[0].windows.at(now), [usage for usage in usages if usage.name == name], now)
            for name, match in found
            if match is not None
        ]
        return _json({"object": "list", "data": budgets})

    async def raise_budget(self, request: RouteRequest) -> Answer:
        """Raise one cap for a time, for every worker."""
        wanted = _read_body(RaiseRequest, request.body)
        found = self._limits.find(wanted.allowance)
        if found is None:
            raise NotFound("There is no budget of this name; GET /admin/v1/budgets lists those that were met.")
        if wanted.until <= self._services.clock.now():
            raise BadRequest("'until' is over already.", param="until")
        await self._services.database.execute(_RAISE, wanted.allowance, wanted.to, wanted.until, wanted.reason)
        await self._raises.read()
        cap = self._limits.cap(found[1], self._services.clock.now())
        return _json({"allowance": wanted.allowance, "cap": _plain(cap), "until": wanted.until.isoformat()}, 201)

    async def release_holder(self, request: RouteRequest) -> Answer:
        """Let others have what a worker holds that does not come back."""
        wanted = _read_body(ReleaseRequest, request.body)
        await self._services.quotas.release(wanted.holder)
        return _json({"holder": wanted.holder, "status": "released"})

    def _shown(self, budget: Budget, span: Span, usages: Sequence[AllowanceUsage], now: datetime) -> Document:
        counted = [usage for usage in usages if _counts(usage, span)]
        settled = sum((usage.settled for usage in counted), _ZERO)
        leased = sum((usage.leased for usage in counted), _ZERO)
        cap = self._limits.cap(budget, now)
        return {
            "allowance": budget.name,
            "subject": budget.subject,
            "mode": budget.limit.mode,
            "unit": budget.limit.unit,
            "window": f"rolling {budget.limit.window}" if budget.limit.rolling else budget.limit.window,
            "since": span.since.isoformat(),
            "until": span.until.isoformat() if span.until else None,
            "cap": _plain(cap),
            "settled": _plain(settled),
            "leased": _plain(leased),
            "remaining": _plain(max(cap - settled - leased, _ZERO)),
            "holders": [
                {
                    "holder": each.holder,
                    "machine": each.machine,
                    "seen_at": each.seen_at.isoformat(),
                    "leased": _plain(each.leased),
                }
                for usage in counted
                for each in usage.holders
            ],
        }

    async def _read_raises(self) -> None:
        raised: dict[str, list[tuple[datetime, Decimal]]] = {}
        for row in await self._services.database.fetch(_ACTIVE):
            raised.setdefault(row["allowance"], []).append((row["expires_at"], row["cap"]))
        self._limits.raise_caps(raised)
        self._services.quotas.renew_claims()


def _plain(amount: Decimal) -> str:
    """An amount without an exponent or zeros that mean nothing."""
    return f"{amount.normalize():f}"


def _counts(usage: AllowanceUsage, span: Span) -> bool:
    return usage.bucket == span.bucket if span.step is None else usage.bucket >= span.since


def _read_body(model: type[Body], body: bytes) -> Body:
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(step) for step in first["loc"]) or None
        raise BadRequest(
            f"The body is wrong{f' at {param!r}' if param else ''}: {first['msg']}.", param=param
        ) from error


def _json(document: Mapping[str, object], status: Literal[200, 201] = 200) -> Answer:
    return Answer(status, [("content-type", "application/json")], orjson.dumps(document))
