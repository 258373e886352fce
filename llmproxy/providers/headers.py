"""Which header fields go to a provider: the gateway's own, the operator's, and few of the client's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# Connection handling and framing belong to each connection; the rest describes the body, which is the gateway's.
_PER_CONNECTION = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_GATEWAYS_OWN = frozenset({"accept", "accept-encoding", "content-encoding", "content-type", "forwarded", "x-real-ip"})
_GATEWAYS_OWN_PREFIXES = ("proxy-", "x-forwarded-", "x-llmproxy-")
_CREDENTIAL = re.compile(r"authorization|api-?key|cookie|credential|password|secret|token|signature")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINE_BREAK = re.compile(r"[\r\n\0]")


def is_value(value: str) -> bool:
    """Whether a header value can be sent: a line break or NUL in it would start another header."""
    return _LINE_BREAK.search(value) is None


def checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Fixed headers from a configuration. Raises ValueError when one cannot be sent."""
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or name.lower() in _PER_CONNECTION:
            raise ValueError(f"the header {name!r} cannot be set")
        if not is_value(value):
            raise ValueError(f"the value of the header {name!r} has a line break in it")
    return headers


def checked_forwards(names: Sequence[str]) -> Sequence[str]:
    """Names of client headers to pass on. Raises ValueError for those that must never leave the gateway."""
    for name in names:
        lower = name.lower()
        if not _NAME.fullmatch(name) or lower in _PER_CONNECTION or lower in _GATEWAYS_OWN:
            raise ValueError(f"the header {name!r} belongs to one connection and cannot be forwarded")
        if lower.startswith(_GATEWAYS_OWN_PREFIXES) or _CREDENTIAL.search(lower):
            raise ValueError(f"the header {name!r} is the gateway's own or a credential and cannot be forwarded")
    return names


class RequestHeaders:
    """The header fields of every request to one provider, fixed as far as they can be.

    Args:
        fixed: What every request carries; later names win over earlier ones, whatever their case.
        forwarded: Client headers to pass on, unless `fixed` has them.
        stream_type: The media type in which the provider streams.
    """

    __slots__ = ("_forwarded", "_stream", "_whole")

    def __init__(
        self, fixed: Sequence[tuple[str, str]], forwarded: Sequence[str], stream_type: str = "text/event-stream"
    ) -> None:
        fields = {name.lower(): value for name, value in fixed}
        self._whole = (("accept", "application/json"), *fields.items())
        self._stream = (("accept", stream_type), *fields.items())
        self._forwarded = tuple(dict.fromkeys(name.lower() for name in forwarded if name.lower() not in fields))

    def build(self, client: Mapping[str, str], *, is_stream: bool) -> Sequence[tuple[str, str]]:
        """The fields of one request; `client` is looked up without regard to case."""
        fixed = self._stream if is_stream else self._whole
        passed = [(name, value) for name in self._forwarded if (value := client.get(name)) and is_value(value)]
        return (*fixed, *passed) if passed else fixed
