"""What the operator sees of the targets, and how a cool-down is cleared: two routes and a command that calls them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Final

import click
import orjson
from pydantic import Field, ValidationError

from llmproxy.api import (
    Answer,
    BadRequest,
    Clock,
    Document,
    Pattern,
    Router,
    RouteRequest,
    RunningGateway,
    Section,
)
from llmproxy_plugins.fallback.health import Health, TargetKey
from llmproxy_plugins.fallback.sharing import SharedHealth

PATH: Final = "/admin/v1/targets"
_COLUMNS: Final = ("target", "credential", "state", "until", "reason")


class ResetRequest(Section):
    """Which targets to take for well."""

    target: Pattern = Field(default="*", description="A pattern over provider/model.")
    credential: Pattern = Field(default="*", description="A pattern over the labels of keys.")

    def fits(self, key: TargetKey) -> bool:
        """Whether a target is one of them."""
        names = ((f"{key.provider}/{key.model}", self.target), (key.credential or "", self.credential))
        return all(fnmatchcase(name, pattern) for name, pattern in names)


class TargetRoutes:
    """The admin API's part on targets."""

    def __init__(self, health: Health, shared: SharedHealth, clock: Clock) -> None:
        self._health = health
        self._shared = shared
        self._clock = clock

    def register(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", PATH, self.list_targets)
        router.add("POST", f"{PATH}/reset", self.reset)

    async def list_targets(self, _request: RouteRequest) -> Answer:
        """Every target that this worker knows something about: how it is, why, and until when."""
        return _json({"data": [self._described(key) for key in sorted(self._health.known(), key=str)]})

    async def reset(self, request: RouteRequest) -> Answer:
        """Take targets for well. Raises BadRequest, StorageError."""
        wanted = _read(request.body)
        chosen = [key for key in self._health.cool_downs() if wanted.fits(key)]
        for key in chosen:
            await self._shared.reset(key)
        return _json({"reset": [key.name for key in chosen]})

    def _described(self, key: TargetKey) -> Document:
        now, cool_down = self._clock.monotonic(), self._health.cool_down(key)
        until = self._clock.now() + timedelta(seconds=cool_down.until - now) if cool_down else None
        return {
            "target": f"{key.provider}/{key.model}",
            "credential": key.credential,
            "state": str(self._health.state(key, now)),
            "until": until and until.isoformat(timespec="seconds"),
            "reason": cool_down and cool_down.reason,
        }


def targets_command(gateway: RunningGateway) -> click.Command:
    """`llmproxy targets`, which asks a gateway that runs."""

    @click.command("targets")
    @click.option("--url", help="Where the gateway serves.  [default: as configured]")
    @click.option("--reset", metavar="PATTERN", help="Take the targets that match for well, as in 'openai/*'.")
    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    def command(url: str | None, reset: str | None, as_json: bool) -> None:  # noqa: FBT001 - click hands a flag over so
        """Show which targets are well, which cool down, why and until when.

        A target is known once it was asked for something. Ends with status 1 when none that is known is to be reset.
        """
        done = None if reset is None else gateway.ask("POST", f"{PATH}/reset", {"target": reset}, url=url)["reset"]
        answer = gateway.ask("GET", PATH, url=url)
        click.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2) if as_json else "\n".join(_table(answer["data"])))
        if done == []:
            is_known = any(fnmatchcase(target["target"], str(reset)) for target in answer["data"])
            found = "Nothing that matches '{}' cools down." if is_known else "No target that is known matches '{}'."
            click.echo(found.format(reset), err=True)
            sys.exit(0 if is_known else 1)

    return command


def _table(targets: list[Document]) -> Iterator[str]:
    lines = [tuple(name.upper() for name in _COLUMNS)]
    lines += [tuple(str(target[name] or "-") for name in _COLUMNS) for target in targets]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _read(body: bytes) -> ResetRequest:
    try:
        return ResetRequest.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise BadRequest("The body may hold 'target' and 'credential', patterns both.") from error


def _json(document: Document) -> Answer:
    return Answer(headers=(("content-type", "application/json"),), body=orjson.dumps(document))
