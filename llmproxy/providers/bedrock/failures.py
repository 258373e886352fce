"""What an exception of Bedrock's means, whether it came as a response or inside a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from llmproxy.dialects.openai_errors import error_of
from llmproxy.errors import UpstreamRefused

# What status an exception inside a stream would have had as a response.
_STATUSES: Final = {
    "validationexception": 400,
    "accessdeniedexception": 403,
    "resourcenotfoundexception": 404,
    "modeltimeoutexception": 408,
    "modelerrorexception": 424,
    "modelstreamerrorexception": 424,
    "throttlingexception": 429,
    "modelnotreadyexception": 429,
    "servicequotaexceededexception": 400,
    "internalserverexception": 500,
    "serviceunavailableexception": 503,
}


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamRefused:
    """An error response, its exception's name kept as the native type."""
    # The header may go on, as in "ThrottlingException:http://internal.amazon.com/coral/...".
    name = headers.get("x-amzn-errortype", "").partition(":")[0]
    return error_of(status, headers, _named(name, body) if name else body)


def exception(name: str, body: bytes) -> UpstreamRefused:
    """An exception inside a stream."""
    # Inside a stream the names begin with a small letter.
    return error_of(_STATUSES.get(name.lower(), 500), {}, _named(name[:1].upper() + name[1:], body))


def _named(name: str, body: bytes) -> bytes:
    return orjson.dumps({"message": _message(body), "type": name})


def _message(body: bytes) -> str:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    message = document.get("message", document.get("Message")) if isinstance(document, dict) else None
    return message if isinstance(message, str) else ""
