"""Where the requests of each workspace could ever go, found by asking what decides it at work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from llmproxy.candidates import candidates
from llmproxy.config import WorkspaceConfig
from llmproxy.endpoints import PATHS
from llmproxy.errors import ModelNotAllowed, Refused
from llmproxy.exchange import Attribution, Exchange, Principal, Target
from llmproxy.gateway import Configuration
from llmproxy.ids import new_id
from llmproxy.request import Operation, Request


@dataclass(frozen=True, slots=True)
class Reach:
    """Where one workspace's requests for one model may go: nowhere, for the reason in `refusal`, or to `targets`."""

    workspace: str
    model: str
    targets: tuple[Target, ...] = ()
    refusal: str | None = None


async def reaches(
    configuration: Configuration, workspaces: Mapping[str, WorkspaceConfig], now: datetime
) -> AsyncIterator[Reach]:
    """The reach of every workspace, for every alias and every model that a provider names, or for its `provider/*`.

    Models that a workspace may not use at all are left out. A key, a client's header or another plugin can only
    narrow what is found here.
    """
    for workspace, section in workspaces.items():
        for model in _names(configuration):
            exchange = _exchange(workspace, section, model, now)
            try:
                yield Reach(workspace, model, tuple(await _targets(configuration, exchange)))
            except ModelNotAllowed:
                continue
            except Refused as refusal:
                yield Reach(workspace, model, refusal=refusal.message)


def _names(configuration: Configuration) -> Iterator[str]:
    yield from configuration.config.models
    for name, provider in configuration.providers.items():
        yield from (f"{name}/{model}" for model in provider.model_names() or ("*",))


def _exchange(workspace: str, section: WorkspaceConfig, model: str, now: datetime) -> Exchange:
    exchange = Exchange(new_id(now), now, 0.0, Operation.CHAT, PATHS[Operation.CHAT], {})
    exchange.principal = Principal(workspace, "", workspace_models=section.models, region=section.region)
    exchange.attribution = Attribution()
    exchange.request = Request(Operation.CHAT, b"{}", {"model": model, "messages": []})
    return exchange


async def _targets(configuration: Configuration, exchange: Exchange) -> Sequence[Target]:
    exchange.candidates = exchange.targets = candidates(configuration.catalogue, exchange)
    narrow = configuration.plugins.hooks.narrow_targets
    return await narrow(exchange, exchange.candidates) if narrow else exchange.candidates
