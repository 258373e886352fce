"""Errors as Google states them: `{"error": {"code", "message", "status", "details"}}`, at times in a list of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from llmproxy.dialects.openai_errors import error_of
from llmproxy.errors import UpstreamRefused
from llmproxy.request import Document


def refused(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamRefused:
    """An error response, classified; Google's own word for it, such as RESOURCE_EXHAUSTED, becomes its type."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    error = _error(document)
    return error_of(status, headers, body if error is None else _renamed(error))


def stated(document: Document) -> UpstreamRefused | None:
    """The error inside a response that came with status 200; None when it is an answer."""
    error = _error(document)
    if error is None:
        return None
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 502
    return error_of(status, {}, _renamed(error))


def _error(document: Any) -> Document | None:  # whatever the provider sent
    if isinstance(document, list):
        document = document[0] if document else None
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, str) and error:
        return {"message": error}
    return error if isinstance(error, dict) and error else None


def _renamed(error: Document) -> bytes:
    """The error in OpenAI's names; its code only repeats the HTTP status."""
    kept = {name: value for name, value in error.items() if name != "code"}
    return orjson.dumps({"error": {**kept, "type": error.get("status") or error.get("type")}})
