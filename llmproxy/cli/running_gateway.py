"""The gateway that serves, for commands that ask it: found by the configuration that it serves with."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import orjson

from llmproxy.config import ServerConfig
from llmproxy.errors import ConfigError, LLMProxyError, Unauthenticated, Unavailable
from llmproxy.request import Document
from llmproxy.state import kept_admin_key

_TIMEOUT_SECONDS: Final = 30
# Where to connect to what listens everywhere.
_ANYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here


def listens_everywhere(server: ServerConfig) -> bool:
    """Whether it serves on every address of the machine."""
    return server.host in _ANYWHERE


def own_host(server: ServerConfig) -> str:
    """The address at which a gateway is reached from its own machine."""
    return _ANYWHERE.get(server.host, server.host)


def own_url(server: ServerConfig, port: int) -> str:
    """The same as a URL."""
    host = own_host(server)
    return f"{'https' if server.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class ConfiguredGateway:
    """Asks whoever serves with a configuration, over the admin API and without a proxy.

    Args:
        state_directory: Where the gateway keeps its admin key, unless `LLMPROXY_ADMIN_KEY` is set.
    """

    def __init__(self, server: ServerConfig, state_directory: Path, environ: Mapping[str, str]) -> None:
        self._server = server
        self._admin_key = kept_admin_key(state_directory, environ)

    def ask(self, method: str, path: str, document: Document | None = None, *, url: str | None = None) -> Document:
        """What the gateway answers; without a `url`, the one of the configuration.

        Raises Unavailable when none answers, ConfigError when it is not known where or how to ask, and with the
        gateway's own words when it refuses.
        """
        where = (url or self._own_url()).rstrip("/")
        status, body = self._response(where, method, path, document)
        answer = _object(body)
        if answer is None:
            raise Unavailable(f"What answers at {where} is no gateway; name the gateway with --url.")
        if 200 <= status < 300:
            return answer
        if status == Unauthenticated.status:
            raise Unauthenticated(self._wrong_key(where))
        raise LLMProxyError(_reason(answer) or f"The gateway at {where} answers with status {status}.")

    def _own_url(self) -> str:
        if not self._server.port:
            raise ConfigError("The configuration leaves open on which port the gateway serves; name it with --url.")
        return own_url(self._server, self._server.port)

    def _response(self, where: str, method: str, path: str, document: Document | None) -> tuple[int, bytes]:
        fields = {"content-type": "application/json", "accept": "application/json"}
        if self._admin_key is not None:
            fields["authorization"] = f"Bearer {self._admin_key}"
        body = None if document is None else orjson.dumps(document)
        address = _address(where)
        connection = self._connection(address)
        try:
            connection.request(method, address.path + path, body, fields)
            response = connection.getresponse()
            return response.status, response.read()
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(f"The certificate at {where} is not to be trusted: {error.verify_message}.") from error
        except (HTTPException, ssl.SSLError) as error:
            raise Unavailable(f"What answers at {where} is no gateway; name the gateway with --url.") from error
        except OSError as error:
            raise Unavailable(
                f"No gateway answers at {where}; start it with 'llmproxy serve' or name it with --url."
            ) from error
        finally:
            connection.close()

    def _connection(self, address: SplitResult) -> HTTPConnection:
        host = address.hostname or ""
        if address.scheme == "http":
            return HTTPConnection(host, address.port, timeout=_TIMEOUT_SECONDS)
        return HTTPSConnection(host, address.port, timeout=_TIMEOUT_SECONDS, context=self._tls(host))

    def _tls(self, host: str) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._server.tls is None or host != own_host(self._server):
            return context
        # Its own address need not be the name in its certificate: that very certificate is trusted, and no other.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=_first_certificate(Path(self._server.tls.certificate_file)))
        return context

    def _wrong_key(self, where: str) -> str:
        if self._admin_key is None:
            return f"No admin key is at hand for {where}; set LLMPROXY_ADMIN_KEY, or name the gateway's --state-dir."
        return f"The gateway at {where} has another admin key; set LLMPROXY_ADMIN_KEY, or name its --state-dir."


def _address(url: str) -> SplitResult:
    """Raises ConfigError for what is no address."""
    try:
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address
    except ValueError:
        pass
    raise ConfigError(f"'{url}' is no address of a gateway; --url takes one like http://127.0.0.1:8080.")


def _first_certificate(file: Path) -> str:
    """What a server shows of itself; behind it stands the chain, before it perhaps the key. Raises ConfigError."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    try:
        text = file.read_text("ascii", "replace")
        return text[text.index(begin) : text.index(end, text.index(begin)) + len(end)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"server.tls: there is no certificate to be read in {file}.") from error


def _object(body: bytes) -> Document | None:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _reason(answer: Document) -> str | None:
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None
