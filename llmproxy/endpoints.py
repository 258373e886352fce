"""What core serves beside the walk: the model list and health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import orjson

from llmproxy.catalogue import Catalogue
from llmproxy.errors import StorageError
from llmproxy.exchange import Answer, Principal, Target
from llmproxy.journal import Journal
from llmproxy.listing import Listing
from llmproxy.request import Document, Operation
from llmproxy.services import Database, Router, RouteRequest, Tasks

_DATABASE_SECONDS: Final = 1.0
_NAMES_AT_ONCE: Final = 50

Authenticate = Callable[[RouteRequest], Awaitable[Principal]]

PATHS: Final = {
    Operation.CHAT: "/v1/chat/completions",
    Operation.TEXT_COMPLETION: "/v1/completions",
    Operation.EMBEDDINGS: "/v1/embeddings",
}
OPERATIONS: Final = {
    path: operation for operation, versioned in PATHS.items() for path in (versioned, versioned.removeprefix("/v1"))
}


def json_answer(document: object, status: int = 200) -> Answer:
    """A JSON response."""
    return Answer(status, (("content-type", "application/json"),), orjson.dumps(document, default=str))


class ModelEndpoints:
    """`/v1/models`: what the asking key may use, in OpenAI's form; what OpenAI does not tell is in `llmproxy`."""

    def __init__(self, catalogue: Catalogue, listing: Listing, authenticate: Authenticate, created_at: int) -> None:
        self._catalogue = catalogue
        self._listing = listing
        self._authenticate = authenticate
        self._created_at = created_at

    def register(self, router: Router) -> None:
        """Add the routes."""
        for prefix in ("/v1", ""):
            router.add("GET", f"{prefix}/models", self.list_models, admin=False)
            router.add("GET", f"{prefix}/models/{{model}}", self.show_model, admin=False)

    async def list_models(self, request: RouteRequest) -> Answer:
        """Every model the key may use."""
        principal = await self._authenticate(request)
        models = []
        for name in self._catalogue.names(principal):
            models.append(self._model(name, self._catalogue.targets(name)))
            if len(models) % _NAMES_AT_ONCE == 0:
                # Thousands of names take as long as a hundred requests, which may go on meanwhile.
                await asyncio.sleep(0)
        return json_answer({"object": "list", "data": models})

    async def show_model(self, request: RouteRequest) -> Answer:
        """One model. Raises ModelNotFound or ModelNotAllowed."""
        principal = await self._authenticate(request)
        name = request.parameters["model"]
        return json_answer(self._model(name, self._catalogue.resolve(name, principal)))

    def _model(self, name: str, targets: Sequence[Target]) -> Document:
        provider, slash, _ = name.partition("/")
        return {
            "id": name,
            "object": "model",
            "created": self._created_at,
            "owned_by": provider if slash else "llmproxy",
            "llmproxy": self._listing.describe(targets),
        }


class HealthEndpoints:
    """`/health/live`: the process answers. `/health/ready`: it may be sent requests, and what is wrong if not.

    A lost database does not take a worker out of service: it serves on from memory and its journal, so `ready`
    answers 200 with `degraded` and names the database. Only what stops requests is 503.
    """

    def __init__(self, database: Database, journal: Journal, tasks: Tasks) -> None:
        self._database = database
        self._journal = journal
        self._tasks = tasks
        self._query: asyncio.Task[None] | None = None
        self._database_failure: str | None = None
        self.is_draining = False

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/health/live", self.live, admin=False)
        router.add("GET", "/health/ready", self.ready, admin=False)

    async def live(self, _request: RouteRequest) -> Answer:
        """The event loop turns."""
        return json_answer({"status": "ok"})

    async def ready(self, _request: RouteRequest) -> Answer:
        """Whether requests can be served, dependency by dependency."""
        checks = {
            "database": await self._database_check(),
            "journal": {"ok": self._journal.writable, "detail": self._journal.failure},
            "draining": {"ok": not self.is_draining, "detail": "shutting down" if self.is_draining else None},
        }
        serving = checks["journal"]["ok"] and checks["draining"]["ok"]
        status = "ok" if all(check["ok"] for check in checks.values()) else "degraded" if serving else "unavailable"
        return json_answer({"status": status, "checks": checks}, 200 if serving else 503)

    async def _database_check(self) -> Document:
        # A mute database keeps its query for as long as a statement may take; those who probe meanwhile share it.
        if self._query is None or self._query.done():
            self._query = self._tasks.start("database check", self._query_database())
        _, waiting = await asyncio.wait({self._query}, timeout=_DATABASE_SECONDS)
        late = f"The database did not answer within {_DATABASE_SECONDS:g} seconds." if waiting else None
        detail = late or self._database_failure
        return {"ok": detail is None, "detail": detail, "unshipped_rows": self._journal.pending}

    async def _query_database(self) -> None:
        try:
            await self._database.fetch("SELECT 1")
        except StorageError as error:
            self._database_failure = error.message
        else:
            self._database_failure = None
