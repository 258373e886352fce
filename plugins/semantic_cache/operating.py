"""For the operator: the report on shadow mode and purges, as endpoints and as commands that ask a running gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import click
import orjson
from pydantic import Field, ValidationError, model_validator

from llmproxy.api import (
    Answer,
    BadRequest,
    Log,
    Router,
    RouteRequest,
    RunningGateway,
    Section,
)
from llmproxy_plugins.semantic_cache.config import SemanticCacheConfig
from llmproxy_plugins.semantic_cache.report import report
from llmproxy_plugins.semantic_cache.store import Store

_PATH: Final = "/admin/v1/semantic-cache"
_COLUMNS: Final = (
    *("model", "requests", "judged", "threshold", "hits", "wrong"),
    *("proposed_threshold", "proposed_hits", "proposed_wrong"),
)


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
        dropped = await self._store.purge(wanted.workspace or "", wanted.model or "")
        named = {**wanted.model_dump(exclude_defaults=True), "dropped": dropped}
        self._log.info("semantic_cache_purged", **named)
        return _json({"object": "semantic_cache.purge", **named})


def semantic_cache_commands(gateway: RunningGateway) -> click.Group:
    """`llmproxy semantic-cache …`."""
    address = click.option("--url", help="Where the gateway serves.  [default: as configured]")

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
    def show(workspace: str, max_wrong: float, url: str | None, as_json: bool) -> None:  # noqa: FBT001 - click hands flags over so
        """Say what shadow mode would have served, how often wrongly, and propose thresholds."""
        query = urlencode({"workspace": workspace, "max_wrong_share": max_wrong})
        answer = gateway.ask("GET", f"{_PATH}/report?{query}", url=url)
        click.echo(orjson.dumps(answer["data"]) if as_json else "\n".join(_table(answer["data"])))

    @group.command("purge")
    @click.option("--workspace", help="What the requests of a workspace made.")
    @click.option("--model", help="What was asked of a model, by the name asked for.")
    @click.option("--all", "everything", is_flag=True, help="Everything.")
    @address
    def purge(workspace: str | None, model: str | None, everything: bool, url: str | None) -> None:  # noqa: FBT001 - likewise
        """Drop kept answers."""
        named = {"workspace": workspace, "model": model, "all": everything or None}
        wanted = {name: value for name, value in named.items() if value is not None}
        dropped = gateway.ask("POST", f"{_PATH}/purge", wanted, url=url)["dropped"]
        click.echo(f"Purged {dropped} answer{'' if dropped == 1 else 's'}." if dropped else "Nothing matched.")

    return group


def _table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:  # whatever columns a report has
    if not lines:
        yield "No trials yet: they are made in shadow mode."
        return
    cells = [
        tuple(name.replace("_", " ").upper() for name in _COLUMNS),
        *(tuple("-" if line[name] is None else str(line[name]) for name in _COLUMNS) for line in lines),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _json(document: object) -> Answer:
    return Answer(200, (("content-type", "application/json"),), orjson.dumps(document))
