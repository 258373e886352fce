"""What a URL means for a request: where to connect, and the lines that a request to it begins with."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from yarl import URL

from llmproxy.errors import UpstreamUnreachable
from llmproxy.services import UpstreamRequest

_PORTS: Final = {"http": 80, "https": 443}
_VISIBLE: Final = re.compile(r"[!-~]+")
# Of these, one without a body says so; of others a body is not expected.
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class Origin(NamedTuple):
    """Whom a connection leads to."""

    host: str
    port: int
    is_tls: bool


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request goes.

    Attributes:
        target: Path and query as they are written.
        fixed_fields: The header lines that belong to the address: Host, and the credentials when it holds some.
    """

    origin: Origin
    target: str
    fixed_fields: str

    def head(self, request: UpstreamRequest) -> bytes:
        """The request up to its body. Raises UpstreamUnreachable when a field cannot be sent."""
        body_size = len(request.body)
        fields = "".join([f"{name}: {value}\r\n" for name, value in request.headers])
        length = f"Content-Length: {body_size}\r\n" if body_size or request.method in _WITH_BODY else ""
        # Every line break beyond our own would start a field that nobody meant to send.
        if fields.count("\n") != len(request.headers) or fields.count("\r") != len(request.headers) or "\0" in fields:
            raise UpstreamUnreachable("A header for the provider has a line break in it.")
        head = f"{request.method} {self.target} HTTP/1.1\r\n{self.fixed_fields}{fields}{length}\r\n"
        try:
            # What came as bytes that are no text goes out as it came.
            return head.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise UpstreamUnreachable("A header for the provider has characters that cannot be sent.") from error


def address_of(url: str) -> Address:
    """What a URL leads to. Raises UpstreamUnreachable when it is none."""
    try:
        parsed = URL(url, encoded=True)
        host, port, target = parsed.raw_host, parsed.port, parsed.raw_path_qs
        if parsed.scheme not in _PORTS or not port or not _VISIBLE.fullmatch(f"{host or ' '}{target}"):
            raise ValueError(url)
        fixed = f"Host: {parsed.host_port_subcomponent}\r\n{_authorization(parsed)}"
    except ValueError as error:
        raise UpstreamUnreachable("The provider's address is not a valid URL.") from error
    return Address(Origin(str(host), port, parsed.scheme == "https"), target, fixed)


def _authorization(url: URL) -> str:
    if url.user is None and url.password is None:
        return ""
    credentials = f"{url.user or ''}:{url.password or ''}".encode()
    return f"Authorization: Basic {base64.b64encode(credentials).decode()}\r\n"
