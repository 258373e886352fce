"""What a client says of caching: RFC 9111's request directives, and the gateway's own headers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llmproxy.api import BadRequest

_TTL: Final = "x-llmproxy-cache-ttl"
_NAMESPACE: Final = "x-llmproxy-cache-namespace"
_MAX_NAMESPACE_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Directives:
    """What one request asks of the cache.

    `no_cache`: do not look, but keep the answer. `no_store`: do neither. `only_if_cached`: nothing but the cache.
    `max_age_seconds`: how old an answer may be. `min_fresh_seconds`: how long it must still be good.
    """

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_seconds: float = math.inf
    min_fresh_seconds: float = 0.0
    ttl_seconds: float | None = None
    namespace: str = ""


_NONE: Final = Directives()


def directives_in(headers: Mapping[str, str]) -> Directives:
    """The directives of a request. Raises BadRequest for what the gateway's own headers cannot mean."""
    if "cache-control" not in headers and _TTL not in headers and _NAMESPACE not in headers:
        return _NONE
    told = dict(_cache_control(headers))
    return Directives(
        no_cache="no-cache" in told,
        no_store="no-store" in told,
        only_if_cached="only-if-cached" in told,
        # What cannot be read asks for the strictest that it could mean (RFC 9111, 4.2.1).
        max_age_seconds=_seconds(told["max-age"], 0.0) if "max-age" in told else math.inf,
        min_fresh_seconds=_seconds(told["min-fresh"], math.inf) if "min-fresh" in told else 0.0,
        ttl_seconds=_ttl_seconds(headers),
        namespace=_namespace(headers),
    )


def _cache_control(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    # A field may come more than once, which looking it up would not show.
    fields = (value for name, value in headers.items() if name.lower() == "cache-control")
    for directive in ",".join(fields).split(","):
        name, _, argument = directive.partition("=")
        yield name.strip().lower(), argument.strip().strip('"')


def _seconds(text: str, otherwise: float) -> float:
    # The limit keeps what stands there a number; 10 digits are three centuries.
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 10 else otherwise


def _ttl_seconds(headers: Mapping[str, str]) -> float | None:
    text = headers.get(_TTL)
    if text is None:
        return None
    seconds = _seconds(text.strip(), -1)
    if seconds < 0:
        raise BadRequest(f"{_TTL} must be a whole number of seconds.", param=_TTL)
    return seconds


def _namespace(headers: Mapping[str, str]) -> str:
    namespace = headers.get(_NAMESPACE, "").strip()
    if len(namespace) > _MAX_NAMESPACE_CHARACTERS or not namespace.isprintable():
        raise BadRequest(
            f"{_NAMESPACE} must be printable and no longer than {_MAX_NAMESPACE_CHARACTERS} characters.",
            param=_NAMESPACE,
        )
    return namespace
