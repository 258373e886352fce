"""What the operator sees of the targets, and how a cool-down is cleared: two routes and a command that calls them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

import click
import orjson
from pydantic import Field, ValidationError

from llmproxy.api import Answer, BadRequest, Clock, Document, Pattern, Router, RouteRequest, Section, Unavailable
from llmproxy_plugins.fallback.health import Health, TargetKey
from llmproxy_plugins.fallback.sharing import SharedHealth

PATH: Final = "/admin/v1/targets"
_COLUMNS: Final = ("target", "credential", "state", "until", "reason")
_TIMEOUT_SECONDS: Final = 10


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


def targets_command(state_directory: Path) -> click.Command:
    """`llmproxy targets`, which asks a gateway that runs."""

    @click.command("targets")
    @click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where the gateway serves.")
    @click.option("--reset", metavar="PATTERN", help="Take the targets that match for well, as in 'openai/*'.")
    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    def command(url: str, reset: str | None, as_json: bool) -> None:  # noqa: FBT001 - click hands a flag over so
        """Show which targets are well, which cool down, why and until when."""
        key = os.environ.get("LLMPROXY_ADMIN_KEY") or _kept_key(state_directory)
        if reset is not None:
            _call(f"{url}{PATH}/reset", key, {"target": reset})
        answer = _call(f"{url}{PATH}", key)
        click.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2) if as_json else "\n".join(_table(answer["data"])))

    return command


def _kept_key(state_directory: Path) -> str:
    try:
        return (state_directory / "admin-key").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable("There is no admin key here; set LLMPROXY_ADMIN_KEY.") from error


def _call(url: str, key: str, document: Document | None = None) -> Document:
    """What the gateway answers. Raises Unavailable when it does not, or not well."""
    body = None if document is None else orjson.dumps(document)
    fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        request = HTTPRequest(url, body, fields)  # noqa: S310 - the operator's own address
        with urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - likewise
            answer: Document = orjson.loads(response.read())
            return answer
    except HTTPError as error:
        raise Unavailable(f"The gateway at {url} answers with status {error.code}; is this its admin key?") from error
    except (URLError, OSError, ValueError) as error:
        raise Unavailable(f"No gateway answers at {url}; say with --url where it serves.") from error


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
