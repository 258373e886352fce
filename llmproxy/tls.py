"""TLS for the side clients talk to, from certificate files that may be replaced while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from llmproxy.config import TLSConfig
from llmproxy.errors import ConfigError
from llmproxy.services import Log


class ServerTLS:
    """A TLS context that takes over renewed certificate files; broken ones are refused and the old kept.

    Raises ConfigError when the files cannot be used at start.
    """

    def __init__(self, config: TLSConfig, log: Log) -> None:
        self._certificate = Path(config.certificate_file)
        self._key = Path(config.key_file)
        self._log = log
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._stamp()
        self._load(self.context)

    def refresh(self) -> None:
        """Load the files again if they have changed; new connections get the new certificate."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            # A half-written pair must not end up in the context that is being served from.
            self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            self._load(self.context)
        except ConfigError as error:
            self._log.error("certificate_not_renewed", error=str(error))
        else:
            self._log.info("certificate_renewed", certificate_file=str(self._certificate))

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"server.tls: the certificate {self._certificate} and key {self._key} cannot be used together: {error}"
            ) from error

    def _stamp(self) -> tuple[int, ...]:
        try:
            return tuple(file.stat().st_mtime_ns for file in (self._certificate, self._key))
        except OSError:
            return ()
