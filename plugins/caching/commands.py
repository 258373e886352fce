"""`llmproxy cache …`: asks the gateway that runs, for the answers are with it."""

from __future__ import annotations

import click

from llmproxy.api import RunningGateway


def cache_commands(gateway: RunningGateway, purge_path: str, *, is_shared: bool) -> click.Group:
    """The command group.

    Args:
        is_shared: Whether all workers keep their answers in one place.
    """

    @click.group("cache")
    def group() -> None:
        """Look after the cache of a running gateway."""

    @group.command("purge")
    @click.option("--workspace", help="What the requests of a workspace made.")
    @click.option("--model", help="What was asked of a model, by the name asked for.")
    @click.option("--key", help="One answer, by its x-llmproxy-cache-key.")
    @click.option("--all", "everything", is_flag=True, help="Everything.")
    @click.option("--url", help="Where the gateway serves.  [default: as configured]")
    def purge(workspace: str | None, model: str | None, key: str | None, everything: bool, url: str | None) -> None:  # noqa: FBT001 - click hands options over by name
        """Drop kept answers, on every worker and replica.

        The admin key is LLMPROXY_ADMIN_KEY, else the one in the state directory.
        """
        named = {"workspace": workspace, "model": model, "key": key, "all": everything or None}
        wanted = {name: value for name, value in named.items() if value is not None}
        dropped = gateway.ask("POST", purge_path, wanted, url=url)["dropped"]
        click.echo(_told(dropped, is_shared=is_shared))

    return group


def _told(dropped: int | None, *, is_shared: bool) -> str:
    """What became of it, claiming nothing of what other workers keep."""
    if dropped is None:
        return "Purged; how much that was is not known, for Redis does not answer."
    found = "Nothing matched" if dropped == 0 else f"Purged {dropped} answer{'' if dropped == 1 else 's'}"
    return f"{found}." if is_shared else f"{found} in the worker that was asked; the others drop what they keep of it."
