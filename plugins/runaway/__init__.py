"""Runaways: agents in a loop, scripts gone wild, bills that explode; noticed within a minute, and held back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson
from pydantic import Field, ValidationError

from llmproxy.api import (
    Answer,
    BadRequest,
    Exchange,
    NotFound,
    Operation,
    RateLimited,
    Router,
    RouteRequest,
    Section,
    Services,
    hookimpl,
    post_alert,
)
from llmproxy_plugins.runaway.settings import RunawayConfig
from llmproxy_plugins.runaway.trips import Trip, Trips
from llmproxy_plugins.runaway.watch import Watch, sketch_of

_JSON: Final = (("content-type", "application/json"),)


class ResetRequest(Section):
    """Somebody to be let go on."""

    subject: str = Field(min_length=1, description="Its name, as the list has it.")


class Runaway:
    """The plugin: watches what sessions, users and keys do, and holds back those that have run away."""

    name = "runaway"
    Config = RunawayConfig
    migrations = Path(__file__).parent / "migrations"

    def __init__(self, config: RunawayConfig, services: Services) -> None:
        self.config = config
        self.services = services
        self.watch = Watch(config)
        self.trips = Trips(services, self.watch.clear)

    @hookimpl
    async def startup(self) -> None:
        """Find out who is held back already."""
        await self.trips.start()

    @hookimpl
    def shutdown(self) -> None:
        """Hear no more of the others."""
        self.trips.stop()

    @hookimpl
    def register_routes(self, router: Router) -> None:
        """What operators may ask and do."""
        router.add("GET", "/admin/v1/runaway", self.list_trips)
        router.add("POST", "/admin/v1/runaway/reset", self.reset)

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        """Hold back who has run away, and notice who does."""
        if exchange.origin is not None:
            return
        subjects = self._subjects(exchange)
        trip = self.trips.active(subjects) or await self._noticed(exchange, subjects)
        if trip is None:
            return
        if self.config.action == "block":
            exchange.decide(self.name, "refused", f"{trip.subject}: {trip.reason}")
            raise self._refusal(trip)
        left_seconds = exchange.deadline_monotonic - self.services.clock.monotonic()
        exchange.decide(self.name, "delayed", f"{trip.subject}: {trip.reason}")
        await self.services.clock.sleep(min(self.config.throttle_seconds, left_seconds))

    @hookimpl
    async def on_complete(self, exchange: Exchange) -> None:
        """Note what it cost."""
        amount_usd = exchange.cost.amount_usd if exchange.cost else None
        if not amount_usd or exchange.origin is not None:
            return
        now = self.services.clock.monotonic()
        for subject in self._subjects(exchange):
            reason = self.watch.spend(subject, amount_usd, now)
            if reason is not None and self.trips.active([subject]) is None:
                await self._trip(subject, reason)

    async def list_trips(self, request: RouteRequest) -> Answer:
        """Who is held back."""
        now = self.services.clock.monotonic()
        data = [
            {"subject": trip.subject, "reason": trip.reason, "left_seconds": round(trip.until - now, 1)}
            for trip in self.trips.every()
        ]
        return Answer(200, _JSON, orjson.dumps({"object": "list", "data": data}))

    async def reset(self, request: RouteRequest) -> Answer:
        """Let somebody go on."""
        try:
            wanted = ResetRequest.model_validate_json(request.body)
        except ValidationError as error:
            raise BadRequest("The body must be a JSON object with one member, 'subject'.", param="subject") from error
        if not await self.trips.reset(wanted.subject):
            raise NotFound("Nobody of this name is held back; GET /admin/v1/runaway lists those who are.")
        return Answer(200, _JSON, orjson.dumps({"subject": wanted.subject, "status": "reset"}))

    # Small print

    def _subjects(self, exchange: Exchange) -> Sequence[str]:
        """Whose request it is, the narrowest first. Nobody's user or session is another tenant's."""
        principal, attribution = exchange.principal, exchange.attribution
        named = {
            "session": attribution.session and f"session:{principal.workspace}/{attribution.session}",
            "user": attribution.user and f"user:{principal.workspace}/{attribution.user}",
            "key": f"key:{principal.key_id}",
        }
        return [name for kind, name in named.items() if name and kind in self.config.subjects]

    async def _noticed(self, exchange: Exchange, subjects: Sequence[str]) -> Trip | None:
        """Count the request, and say whom it makes a runaway."""
        now, found = self.services.clock.monotonic(), None
        for subject in subjects:
            if (reason := self.watch.request(subject, now)) is not None:
                found = found or (subject, reason)
        if found is None and subjects and (reason := self._loop(exchange, subjects[0], now)) is not None:
            found = subjects[0], reason
        return await self._trip(*found) if found else None

    def _loop(self, exchange: Exchange, subject: str, now: float) -> str | None:
        """Only of the narrowest subject: many users of one key may well ask the same."""
        document = exchange.request.document
        if (reason := self.watch.depth(document)) is not None or self.config.loop is None:
            return reason
        if exchange.operation is Operation.EMBEDDINGS:
            return None
        return self.watch.turn(subject, sketch_of(document), now)

    async def _trip(self, subject: str, reason: str) -> Trip:
        until = self.services.clock.monotonic() + self.config.reset_seconds
        if await self.trips.trip(subject, reason, self.config.reset_seconds):
            alert = {"subject": subject, "reason": reason, "action": self.config.action}
            self.services.log.warning("runaway", **alert)
            if self.config.webhook is not None:
                posting = post_alert(self.services, "runaway_alert_not_delivered", self.config.webhook, alert)
                self.services.tasks.start("runaway alert", posting)
        return Trip(subject, reason, until)

    def _refusal(self, trip: Trip) -> RateLimited:
        kind = trip.subject.partition(":")[0]
        return RateLimited(
            f"This {kind} looks like a runaway and is held back ({trip.reason}); look for a loop, or try again later.",
            code="runaway_blocked",
            retry_after_seconds=max(trip.until - self.services.clock.monotonic(), 1.0),
        )
