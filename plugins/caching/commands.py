"""`llmproxy cache …`: asks the gateway that runs, for the answers are with it."""

from __future__ import annotations

import asyncio
import json
import os

import click

from llmproxy.api import ConfigError, Document, LLMProxyError, Services, UpstreamRequest


def cache_commands(services: Services, purge_path: str) -> click.Group:
    """The command group."""

    @click.group("cache")
    def group() -> None:
        """Look after the cache of a running gateway."""

    @group.command("purge")
    @click.option("--workspace", help="What the requests of a workspace made.")
    @click.option("--model", help="What was asked of a model, by the name asked for.")
    @click.option("--key", help="One answer, by its x-llmproxy-cache-key.")
    @click.option("--all", "everything", is_flag=True, help="Everything.")
    @click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where a gateway serves.")
    def purge(workspace: str | None, model: str | None, key: str | None, everything: bool, url: str) -> None:  # noqa: FBT001 - click hands options over by name
        """Drop kept answers, on every worker and replica.

        The admin key is LLMPROXY_ADMIN_KEY, else the one in the state directory.
        """
        named = {"workspace": workspace, "model": model, "key": key, "all": everything or None}
        wanted = {name: value for name, value in named.items() if value is not None}
        asyncio.run(_post(services, url.rstrip("/") + purge_path, wanted))
        click.echo("Purged.")

    return group


async def _post(services: Services, url: str, document: Document) -> None:
    key = os.environ.get("LLMPROXY_ADMIN_KEY") or _kept_key(services)
    headers = (("authorization", f"Bearer {key}"), ("content-type", "application/json"))
    request = UpstreamRequest("POST", url, headers, json.dumps(document).encode())
    status, _, body = await services.http.request(request)
    if status != 200:
        raise LLMProxyError(_reason(body) or f"The gateway answered with {status}.")


def _kept_key(services: Services) -> str:
    try:
        return (services.state_directory / "admin-key").read_text().strip()
    except OSError as error:
        raise ConfigError("No admin key is at hand: set LLMPROXY_ADMIN_KEY, or name --state-dir.") from error


def _reason(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return None
