"""Telling somebody else's service of something; whether it listened is for the log alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from llmproxy.errors import LLMProxyError
from llmproxy.services import Services, UpstreamRequest


# What an alert says is its sender's business.
async def post_alert(services: Services, event: str, address: str, alert: Mapping[str, Any]) -> None:
    """Post an alert as JSON; when that fails, `event` is logged as an error and nothing raised."""
    request = UpstreamRequest("POST", address, (("content-type", "application/json"),), orjson.dumps(alert))
    try:
        status, _, _ = await services.http.request(request)
    except LLMProxyError as error:
        reason = error.message
    else:
        reason = "" if status < 300 else f"it answered {status}"
    if reason:
        services.log.error(event, host=urlsplit(address).hostname, error=reason)
