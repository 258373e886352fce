"""Whom a request is for: `x-llmproxy-*` headers and the trace, read once and held to limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from llmproxy.errors import BadRequest
from llmproxy.exchange import Attribution, Exchange, Principal

_MAX_CHARACTERS: Final = 256
_MAX_TAGS: Final = 32
_MAX_METADATA_BYTES: Final = 4096
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def attribution_of(headers: Mapping[str, str], principal: Principal) -> Attribution:
    """The attribution of a request; what the key itself carries wins over what the client says.

    Raises BadRequest when a header is too long or malformed.
    """
    return Attribution(
        feature=principal.feature or _text(headers, "x-llmproxy-feature"),
        user=principal.user or _text(headers, "x-llmproxy-user"),
        session=_text(headers, "x-llmproxy-session"),
        prompt_version=_text(headers, "x-llmproxy-prompt-version"),
        tags=_tags(headers),
        metadata=_metadata(headers),
        trace_id=_trace_id(headers),
    )


def comma_list(value: str) -> tuple[str, ...]:
    """The items of a comma-separated header, blanks left out."""
    return tuple(item for item in (part.strip() for part in value.split(",")) if item)


def timeout_seconds(headers: Mapping[str, str]) -> float | None:
    """What the client will wait, from `x-llmproxy-timeout`. Raises BadRequest when it is not a positive number."""
    value = headers.get("x-llmproxy-timeout")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BadRequest("The header x-llmproxy-timeout must be a positive number of seconds.")
    return seconds


def required_regions(exchange: Exchange) -> Iterator[tuple[str, str]]:
    """Each region that an exchange must not leave, and why: a client can narrow what its workspace says, no more."""
    if exchange.principal.region is not None:
        yield exchange.principal.region, "where this workspace's requests must stay"
    if (region := _text(exchange.headers, "x-llmproxy-region")) is not None:
        yield region, "where x-llmproxy-region keeps this request"


def _text(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if not value:
        return None
    if len(value) > _MAX_CHARACTERS:
        raise BadRequest(f"The header {name} is longer than {_MAX_CHARACTERS} characters.")
    return _clean(value, name)


def _tags(headers: Mapping[str, str]) -> tuple[str, ...]:
    value = headers.get("x-llmproxy-tags")
    if not value:
        return ()
    tags = comma_list(_clean(value, "x-llmproxy-tags"))
    if len(tags) > _MAX_TAGS or any(len(tag) > _MAX_CHARACTERS for tag in tags):
        raise BadRequest(f"x-llmproxy-tags takes at most {_MAX_TAGS} tags of {_MAX_CHARACTERS} characters each.")
    return tags


def _metadata(headers: Mapping[str, str]) -> Mapping[str, Any]:
    value = headers.get("x-llmproxy-metadata")
    if not value:
        return {}
    if len(value) > _MAX_METADATA_BYTES:
        raise BadRequest(f"The header x-llmproxy-metadata is longer than {_MAX_METADATA_BYTES} bytes.")
    try:
        metadata = orjson.loads(_clean(value, "x-llmproxy-metadata"))
    except orjson.JSONDecodeError as error:
        raise BadRequest("The header x-llmproxy-metadata must be a JSON object.") from error
    if not isinstance(metadata, dict):
        raise BadRequest("The header x-llmproxy-metadata must be a JSON object.")
    return metadata


def _trace_id(headers: Mapping[str, str]) -> str | None:
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return match[1] if match else None


def _clean(value: str, name: str) -> str:
    """HTTP libraries hand bytes over as surrogates when they are not UTF-8; no row could hold those."""
    if not value.isprintable():
        raise BadRequest(f"The header {name} must be printable UTF-8 text.")
    return value
