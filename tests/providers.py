"""What tests of provider kinds share: services, requests, and a look at what would be sent."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, cast

import orjson
from multidict import CIMultiDict

from llmproxy.exchange import Target
from llmproxy.providers import Provider
from llmproxy.providers.compatible import compatible_kinds
from llmproxy.request import Operation, Request
from llmproxy.services import (
    Clock,
    Database,
    Exchanges,
    HTTPClient,
    Pricing,
    Quotas,
    Services,
    SystemClock,
    Tasks,
    UpstreamRequest,
)

KINDS = {kind.kind: kind for kind in compatible_kinds()}
PARTS = {
    "azure_ai": {"resource": "acme"},
    "cloudflare": {"account": "abc123"},
    "databricks": {"workspace": "adb-1.2.azuredatabricks.net"},
    "snowflake": {"account": "acme-eu"},
}


def services(clock: Clock | None = None) -> Services:
    """Services of which a provider that only prepares requests needs none."""
    # The parts that are not there would fail at the first use, which is what a test wants.
    return Services(
        clock=clock or SystemClock(),
        database=cast("Database", None),
        http=cast("HTTPClient", None),
        log=cast("Any", logging.getLogger("test")),
        tasks=cast("Tasks", asyncio),
        exchanges=cast("Exchanges", None),
        pricing=cast("Pricing", None),
        quotas=cast("Quotas", None),
        state_directory=Path(),
    )


def request(document: dict[str, Any] | None = None, operation: Operation = Operation.CHAT) -> Request:
    """A client's request."""
    document = document or {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
    return Request(operation, orjson.dumps(document), document)


def header(prepared: UpstreamRequest, name: str) -> str | None:
    """The one value of a header."""
    values = [value for field, value in prepared.headers if field == name]
    assert len(values) <= 1
    return values[0] if values else None


def provider(kind: str, **section: Any) -> Provider:
    """A configured vendor."""
    made = KINDS[kind]
    return made(kind, made.Config.model_validate({"api_key": "key-1", **PARTS.get(kind, {}), **section}), services())


def prepare(kind: str, document: dict[str, Any], operation: Operation = Operation.CHAT) -> UpstreamRequest:
    """What a vendor is sent for a document."""
    return provider(kind).prepare(request(document, operation), Target(kind, "m"), CIMultiDict())
