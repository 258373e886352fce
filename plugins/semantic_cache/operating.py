"""For the operator: the report on shadow mode and purges, as endpoints and as commands that ask a running gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import click
import orjson
from pydantic import Field, ValidationError, model_validator

from llmproxy.api import (
    Answer,
    BadRequest,
    ConfigError,
    Document,
    LLMProxyError,
    Log,
    Router,
    RouteRequest,
    Section,
    Services,
    UpstreamRequest,
)
from llmproxy_plugins.semantic_cache.config import SemanticCacheConfig
from llmproxy_plugins.semantic_cache.report import report
from llmproxy_plugins.semantic_cache.store import Store

_PATH: Final = "/admin/v1/semantic-cache"
_COLUMNS: Final = (
    *("model", "requests", "judged", "threshold", "hits", "wrong"),
    *("proposed_threshold", "proposed_hits", "proposed_wrong"),
)
_MAX_BODY_BYTES: Final = 16_777_216


class PurgeRequest(Section):
    """What to purge: all that is given must hold of an entry; `all` stands alone."""

    all: bool = Field(default=False, description="Everything.")
    workspace: str | None = Field(default=None, min_length=1, description="What the requests of a workspace made.")
    model: str | None = Field(
        default=None, min_length=1, description="What was asked of a model, by the name asked for."
    )

    @model_validator(mode="after")
    def _says_what(self) -> PurgeRequest:
        if self.all == (self.workspace is not None or self.model is not None):
            raise ValueError("give workspace or model or both, or all")
        return self


class ReportRequest(Section):
    """What to report on."""

    workspace: str = Field(default="", description="The workspace whose trials count; empty: all.")
    max_wrong_share: float = Field(default=0.01, ge=0, lt=1, description="How many of the hits may be wrong.")


class Operating:
    """`GET /admin/v1/semantic-cache/report` and `POST /admin/v1/semantic-cache/purge`."""

    def __init__(self, config: SemanticCacheConfig, store: Store, log: Log) -> None:
        self._config = config
        self._store = store
        self._log = log

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", f"{_PATH}/report", self.report)
        router.add("POST", f"{_PATH}/purge", self.purge)

    async def report(self, request: RouteRequest) -> Answer:
        """What the trials say, model by model."""
        try:
            wanted = ReportRequest.model_validate(dict(request.query))
        except ValidationError as error:
            raise BadRequest("A report may be asked for with 'workspace' and a 'max_wrong_share' below 1.") from error
        trials = await self._store.trials(wanted.workspace)
        return _json({"object": "list", "data": report(trials, self._config, wanted.max_wrong_share)})

    async def purge(self, request: RouteRequest) -> Answer:
        """Purge what the body says, on every worker and replica."""
        try:
            wanted = PurgeRequest.model_validate_json(request.body or b"{}")
        except ValidationError as error:
            raise BadRequest("A purge takes 'workspace' or 'model' or both, or 'all': true.") from error
        await self._store.purge(wanted.workspace or "", wanted.model or "")
        named = wanted.model_dump(exclude_defaults=True)
        self._log.info("semantic_cache_purged", **named)
        return _json({"object": "semantic_cache.purge", **named})


def semantic_cache_commands(services: Services) -> click.Group:
    """`llmproxy semantic-cache …`."""
    address = click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where a gateway serves.")

    @click.group("semantic-cache")
    def group() -> None:
        """Look after the semantic cache of a running gateway."""

    @group.command("report")
    @click.option("--workspace", default="", help="Only the trials of a workspace.")
    @click.option(
        "--max-wrong", default=0.01, show_default=True, help="How many of the hits may be wrong, 1 being all."
    )
    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    @address
    def show(workspace: str, max_wrong: float, url: str, as_json: bool) -> None:  # noqa: FBT001 - click hands flags over so
        """Say what shadow mode would have served, how often wrongly, and propose thresholds."""
        query = urlencode({"workspace": workspace, "max_wrong_share": max_wrong})
        answer = asyncio.run(_call(services, "GET", f"{url.rstrip('/')}{_PATH}/report?{query}"))
        click.echo(orjson.dumps(answer["data"]) if as_json else "\n".join(_table(answer["data"])))

    @group.command("purge")
    @click.option("--workspace", help="What the requests of a workspace made.")
    @click.option("--model", help="What was asked of a model, by the name asked for.")
    @click.option("--all", "everything", is_flag=True, help="Everything.")
    @address
    def purge(workspace: str | None, model: str | None, everything: bool, url: str) -> None:  # noqa: FBT001 - likewise
        """Drop kept answers."""
        named = {"workspace": workspace, "model": model, "all": everything or None}
        wanted = {name: value for name, value in named.items() if value is not None}
        asyncio.run(_call(services, "POST", f"{url.rstrip('/')}{_PATH}/purge", wanted))
        click.echo("Purged.")

    return group


async def _call(services: Services, method: str, url: str, document: Document | None = None) -> Document:
    key = os.environ.get("LLMPROXY_ADMIN_KEY") or _kept_key(services)
    headers = (("authorization", f"Bearer {key}"), ("content-type", "application/json"))
    body = b"" if document is None else orjson.dumps(document)
    request = UpstreamRequest(method, url, headers, body)
    status, _, answer = await services.http.request(request, max_body_bytes=_MAX_BODY_BYTES)
    try:
        told: Document = orjson.loads(answer)
    except orjson.JSONDecodeError as error:
        raise LLMProxyError(f"The gateway answered with {status}; is it one?") from error
    if status != 200:
        raise LLMProxyError(str((told.get("error") or {}).get("message") or f"The gateway answered with {status}."))
    return told


def _kept_key(services: Services) -> str:
    try:
        return (services.state_directory / "admin-key").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("No admin key is at hand: set LLMPROXY_ADMIN_KEY, or name --state-dir.") from error


def _table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:  # whatever columns a report has
    if not lines:
        yield "No trials yet: they are made in shadow mode."
        return
    cells = [
        tuple(name.upper() for name in _COLUMNS),
        *(tuple("-" if line[name] is None else str(line[name]) for name in _COLUMNS) for line in lines),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _json(document: object) -> Answer:
    return Answer(200, (("content-type", "application/json"),), orjson.dumps(document))
