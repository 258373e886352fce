"""For tests of a single hook: an exchange that is as far as the hook needs it, services, and the call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson
import structlog

from llmproxy.attribution import attribution_of
from llmproxy.endpoints import PATHS
from llmproxy.exchange import Exchange, Principal, Target
from llmproxy.hooks import RegisteredPlugin, resolve
from llmproxy.ids import new_id
from llmproxy.request import Operation, Request
from llmproxy.services import Clock, Database, Exchanges, HTTPClient, Log, Pricing, Quotas, Services
from llmproxy.tasks import BackgroundTasks
from llmproxy.testing import clock as standing
from llmproxy.testing.http1 import Fields


def make_exchange(
    text: str = "hello",
    *,
    operation: Operation = Operation.CHAT,
    headers: Mapping[str, str] | None = None,
    principal: Principal | None = None,
    **fields: object,
) -> Exchange:
    """An exchange as it stands when `pre_request` is called: let in, with one candidate, `upstream/test-model`.

    Args:
        text: What the user says; the input of embeddings.
        headers: The client's.
        fields: Further members of the request's body, such as `stream=True` or `model="demo/echo"`.
    """
    received = Fields((headers or {}).items())
    exchange = Exchange(new_id(standing.START), standing.START, 0.0, operation, PATHS[operation], received)
    exchange.principal = principal or Principal(workspace="default", key_id="key_test")
    exchange.attribution = attribution_of(received, exchange.principal)
    body = orjson.dumps({"model": "upstream/test-model", **_said(operation, text), **fields})
    exchange.request = Request(operation, body, orjson.loads(body))
    provider, _, model = exchange.request.model.rpartition("/")
    exchange.candidates = exchange.targets = (Target(provider or "upstream", model),)
    return exchange


def make_services(
    *,
    clock: Clock | None = None,
    database: Database | None = None,
    http: HTTPClient | None = None,
    exchanges: Exchanges | None = None,
    pricing: Pricing | None = None,
    quotas: Quotas | None = None,
) -> Services:
    """Services for a plugin that is made by hand; what is left out says so when the plugin uses it.

    The clock is one that stands still.
    """
    log: Log = structlog.get_logger()
    return Services(
        clock=clock or standing.Clock(),
        database=database or cast("Database", _Missing("database")),
        http=http or cast("HTTPClient", _Missing("http")),
        log=log,
        tasks=BackgroundTasks(log),
        exchanges=exchanges or cast("Exchanges", _Missing("exchanges")),
        pricing=pricing or cast("Pricing", _Missing("pricing")),
        quotas=quotas or cast("Quotas", _Missing("quotas")),
        state_directory=cast("Path", _Missing("state_directory")),
    )


# Arguments and results differ from hook to hook.
async def call_hook(plugin: object, hook: str, *args: Any) -> Any:
    """What a plugin's part in a hook returns, called and checked as core does it.

    Raises what the plugin raises, in hooks where core would only log it as well; LookupError when the plugin has no
    part in the hook.
    """
    name = str(getattr(plugin, "name", type(plugin).__name__))
    call = getattr(resolve([RegisteredPlugin(name, plugin)], on_failure=_raise), hook)
    if not call:
        raise LookupError(f"{type(plugin).__name__} has no part in {hook}; is it marked with @hookimpl?")
    result = call[0].run(*args) if isinstance(call, tuple) else call(*args)
    return await result if inspect.isawaitable(result) else result


class _Missing:
    """Stands in for a service that a test did not hand in."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        raise AssertionError(f"The plugin uses services.{self._name}.{attribute}; hand one to make_services.")


def _said(operation: Operation, text: str) -> Mapping[str, object]:
    match operation:
        case Operation.CHAT:
            return {"messages": [{"role": "user", "content": text}]}
        case Operation.TEXT_COMPLETION:
            return {"prompt": text}
        case Operation.EMBEDDINGS:
            return {"input": text}


def _raise(_plugin: str, _hook: str, error: Exception) -> None:
    raise error
