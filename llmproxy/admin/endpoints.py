"""`/admin/v1/…`: the admin API's paths. Core asks for the admin key before any of them is reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial, wraps
from typing import Final

from llmproxy.admin.audit import AuditTrail, Erasure, erase
from llmproxy.admin.documents import MAX_LIMIT, Parameters, read_body
from llmproxy.admin.keys import KeyChanges, NewKey, StoredKeys
from llmproxy.admin.requests import RequestFilter, RequestLog
from llmproxy.admin.spend import GROUPS, Spend, groups_of
from llmproxy.admin.workspaces import StoredWorkspaces, WorkspaceSettings
from llmproxy.audit_notary import ActionLog
from llmproxy.audit_reader import Span
from llmproxy.body_cipher import BodyCipher
from llmproxy.db import REJECTED
from llmproxy.endpoints import json_answer
from llmproxy.errors import BadRequest, ConfigError, StorageError
from llmproxy.exchange import Answer, Outcome
from llmproxy.keys import Workspace
from llmproxy.queries import Queries
from llmproxy.services import Clock, Database, RouteHandler, Router, RouteRequest

PREFIX: Final = "/admin/v1"


class AdminEndpoints:
    """Keys, workspaces, requests, spend, the audit, and taking over the configuration file.

    Args:
        actions: Hears of each change.
        cipher: What decrypts kept bodies, if they are encrypted.
        configured: The workspaces that the configuration defines.
        reload: Has every worker take over the configuration file, or raises ConfigError.
    """

    def __init__(
        self,
        database: Database,
        queries: Queries,
        clock: Clock,
        *,
        audit: AuditTrail,
        actions: ActionLog,
        cipher: BodyCipher | None,
        configured: Callable[[], Mapping[str, Workspace]],
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        self._clock = clock
        self._keys = StoredKeys(database, queries, clock, actions, configured)
        self._workspaces = StoredWorkspaces(database, queries, actions, configured)
        self._audit = audit
        self._actions = actions
        self._erase = partial(erase, database, queries, actions)
        self._requests = RequestLog(database, queries, cipher)
        self._spend = Spend(database, queries)
        self._reload = reload

    def register(self, router: Router) -> None:
        """Add the routes; where two fit, the first is taken."""
        for method, path, handler in (
            ("POST", "/keys", self.create_key),
            ("GET", "/keys", self.list_keys),
            ("GET", "/keys/{id}", self.get_key),
            ("PATCH", "/keys/{id}", self.update_key),
            ("DELETE", "/keys/{id}", self.revoke_key),
            ("GET", "/workspaces", self.list_workspaces),
            ("PUT", "/workspaces/{id}", self.put_workspace),
            ("DELETE", "/workspaces/{id}", self.delete_workspace),
            ("GET", "/requests", self.list_requests),
            ("GET", "/requests/{id}/explain", self.explain_request),
            ("GET", "/requests/{id}", self.get_request),
            ("GET", "/spend", self.report_spend),
            ("GET", "/audit/verify", self.verify_audit),
            ("GET", "/audit/export", self.export_audit),
            ("POST", "/audit/erase", self.erase_bodies),
            ("POST", "/config/reload", self.reload_configuration),
        ):
            router.add(method, f"{PREFIX}{path}", _blaming_the_sender(handler))

    # Keys

    async def create_key(self, request: RouteRequest) -> Answer:
        """Make a key."""
        return json_answer(await self._keys.create(read_body(NewKey, request.body)), 201)

    async def list_keys(self, request: RouteRequest) -> Answer:
        """A page of keys."""
        query = self._query(request, "workspace", "after", "limit")
        return json_answer(await self._keys.find(query.text("workspace"), query.text("after"), query.limit()))

    async def get_key(self, request: RouteRequest) -> Answer:
        """One key."""
        return json_answer(await self._keys.get(request.parameters["id"]))

    async def update_key(self, request: RouteRequest) -> Answer:
        """Change a key."""
        changes = read_body(KeyChanges, request.body)
        return json_answer(await self._keys.update(request.parameters["id"], changes))

    async def revoke_key(self, request: RouteRequest) -> Answer:
        """Make a key worthless."""
        return json_answer(await self._keys.revoke(request.parameters["id"]))

    # Workspaces

    async def list_workspaces(self, request: RouteRequest) -> Answer:
        """A page of workspaces."""
        query = self._query(request, "after", "limit")
        return json_answer(await self._workspaces.list(query.text("after"), query.limit(MAX_LIMIT)))

    async def put_workspace(self, request: RouteRequest) -> Answer:
        """Make or replace a workspace."""
        settings = read_body(WorkspaceSettings, request.body)
        return json_answer(await self._workspaces.put(request.parameters["id"], settings))

    async def delete_workspace(self, request: RouteRequest) -> Answer:
        """Remove a workspace."""
        return json_answer(await self._workspaces.delete(request.parameters["id"]))

    # What happened

    async def list_requests(self, request: RouteRequest) -> Answer:
        """A page of requests."""
        query = self._query(request, "workspace", "model", "outcome", "since", "until", "after", "limit")
        wanted = RequestFilter(
            workspace=query.text("workspace"),
            model=query.text("model"),
            outcome=query.choice("outcome", tuple(Outcome)),
            since=query.moment("since"),
            until=query.moment("until"),
            after=query.text("after"),
            limit=query.limit(),
        )
        return json_answer(await self._requests.find(wanted))

    async def get_request(self, request: RouteRequest) -> Answer:
        """One request, whole."""
        return json_answer(await self._requests.get(request.parameters["id"]))

    async def explain_request(self, request: RouteRequest) -> Answer:
        """Why a request went the way it did."""
        return json_answer(await self._requests.explain(request.parameters["id"]))

    async def report_spend(self, request: RouteRequest) -> Answer:
        """Sums over the ledger."""
        query = self._query(request, "by", "workspace", "since", "until", "limit")
        by, workspace = groups_of(query.text("by") or GROUPS[0], "by"), query.text("workspace")
        span = query.moment("since"), query.moment("until")
        return json_answer(await self._spend.report(by, *span, workspace=workspace, limit=query.limit(MAX_LIMIT)))

    async def verify_audit(self, request: RouteRequest) -> Answer:
        """Whether what was recorded is as it was recorded; `ok` says so, and `problems` what is not."""
        query = self._query(request, "since")
        report = await self._audit.verify(Span(since=query.moment("since")))
        return json_answer(report.document())

    async def export_audit(self, request: RouteRequest) -> Answer:
        """What was recorded in a span, as 'llmproxy audit export' writes it; the log says that it was taken."""
        query = self._query(request, "since", "until")
        span = Span(query.moment("since"), query.moment("until") or self._clock.now())
        headers = (
            ("content-type", "application/x-ndjson"),
            ("content-disposition", 'attachment; filename="audit.jsonl"'),
        )
        return Answer(200, headers, await self._audit.export(self._actions, span))

    async def erase_bodies(self, request: RouteRequest) -> Answer:
        """Erase the kept bodies of a workspace, or of one of its users; the log says that it was done."""
        return json_answer(await self._erase(read_body(Erasure, request.body)))

    async def reload_configuration(self, request: RouteRequest) -> Answer:
        """Take over the configuration file, on every worker; nothing changes when it has a mistake."""
        try:
            await self._reload()
        except ConfigError as error:
            raise BadRequest(error.message, code=error.error_code) from error
        return json_answer({"status": "reloading"}, 202)

    def _query(self, request: RouteRequest, *allowed: str) -> Parameters:
        return Parameters(request.query, allowed, self._clock.now())


def _blaming_the_sender(handler: RouteHandler) -> RouteHandler:
    """What the database refuses for its content, such as a NUL character, came with the request."""

    @wraps(handler)
    async def handle(request: RouteRequest) -> Answer:
        try:
            return await handler(request)
        except StorageError as error:
            if error.error_code == REJECTED:
                raise BadRequest("The request holds a value that cannot be stored or looked up.") from error
            raise

    return handle
