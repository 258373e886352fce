"""`llmproxy keys`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, TypeVar

import click
import orjson

from llmproxy.admin.documents import MAX_LIMIT, moment, read_body
from llmproxy.admin.keys import NewKey, StoredKeys
from llmproxy.cli.offline import action_log, read_core, with_database
from llmproxy.cli.output import print_json, print_table
from llmproxy.cli.settings import Settings, pass_settings, shared_options
from llmproxy.keys import DEFAULT_WORKSPACE
from llmproxy.queries import Queries
from llmproxy.request import Document
from llmproxy.services import Database, SystemClock

_COLUMNS: Final = ("id", "workspace", "name", "key_hint", "models", "created_at", "expires_at", "revoked_at")

T = TypeVar("T")


@click.group("keys")
def command() -> None:
    """Make, list and revoke virtual keys.

    A running gateway hears of each change within a second.
    """


@command.command("create")
@click.option("--workspace", default=DEFAULT_WORKSPACE, show_default=True, help="Whose key it is.")
@click.option("--name", default="", help="For people to know it by.")
@click.option("--model", "models", multiple=True, metavar="PATTERN", help="What it may use; may be repeated.  [*]")
@click.option("--feature", help="The feature that all its requests count for.")
@click.option("--user", help="The user that all its requests count for.")
@click.option("--expires-at", metavar="TIME", help="When it stops working, like 2027-01-31.")
@shared_options
@pass_settings
def create(settings: Settings, /, expires_at: str | None, **given: object) -> None:
    """Make a key. It is shown once, and cannot be had again."""
    fields = {name: value for name, value in given.items() if value}
    wanted = read_body(NewKey, orjson.dumps({**fields, "expires_at": _end(expires_at)}))
    made = _with_keys(settings, lambda keys: keys.create(wanted))
    if settings.json:
        return print_json(made)
    return click.echo(f"{made['key']}\n\nThis is the only time that the key {made['id']} is shown.")


@command.command("list")
@click.option("--workspace", help="Only this workspace's.")
@shared_options
@pass_settings
def list_keys(settings: Settings, workspace: str | None) -> None:
    """List the keys made here or over the admin API; those in the configuration file are not among them."""
    found = _with_keys(settings, lambda keys: _every_key(keys, workspace))
    if settings.json:
        return print_json(found)
    return print_table(_COLUMNS, found)


@command.command("revoke")
@click.argument("key_id", metavar="ID")
@shared_options
@pass_settings
def revoke(settings: Settings, key_id: str) -> None:
    """Make a key worthless for good."""
    revoked = _with_keys(settings, lambda keys: keys.revoke(key_id))
    if settings.json:
        return print_json(revoked)
    return click.echo(f"The key {key_id} is revoked.")


def _end(text: str | None) -> datetime | None:
    return moment(text, SystemClock().now(), "--expires-at") if text else None


def _with_keys(settings: Settings, work: Callable[[StoredKeys], Awaitable[T]]) -> T:
    config, clock, queries = read_core(settings), SystemClock(), Queries()
    configured = config.workspaces.keys() or {DEFAULT_WORKSPACE}
    actions = action_log(settings, config, queries, clock)

    async def run(database: Database) -> T:
        return await work(StoredKeys(database, queries, clock, actions, lambda: configured))

    return with_database(settings, config, run)


async def _every_key(keys: StoredKeys, workspace: str | None) -> list[Document]:
    found: list[Document] = []
    while True:
        page = await keys.find(workspace, found[-1]["id"] if found else None, MAX_LIMIT)
        found += page["data"]
        if not page["has_more"]:
            return found
