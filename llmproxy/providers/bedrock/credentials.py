"""What proves to Bedrock who is asking: an API key, or a signature with AWS credentials that are kept fresh."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from llmproxy.errors import ConfigError, Failure, UpstreamError
from llmproxy.request import Headers
from llmproxy.services import Services

if TYPE_CHECKING:
    from llmproxy.providers.bedrock.aws import CredentialChain, ReadOnlyCredentials
    from llmproxy.providers.bedrock.config import BedrockConfig

# Credentials are renewed from 15 minutes before they expire; looking more often than that is all it takes.
_LOOK_SECONDS: Final = 60.0
# How long a start may wait for the first ones before it goes on without.
_START_SECONDS: Final = 10.0


class Authentication(Protocol):
    """Adds credentials to requests."""

    async def startup(self) -> None:
        """Get the first credentials."""

    async def shutdown(self) -> None:
        """Stop renewing them."""

    def headers(self, url: str, fields: Headers, body: bytes) -> Headers:
        """The header fields to add to a request that has these. Raises UpstreamError when there are no credentials."""


class BearerKey:
    """A Bedrock API key."""

    def __init__(self, key: str) -> None:
        self._headers = (("authorization", f"Bearer {key}"),)

    async def startup(self) -> None:
        """Nothing is needed."""

    async def shutdown(self) -> None:
        """Nothing is held."""

    def headers(self, url: str, fields: Headers, body: bytes) -> Headers:
        """The key."""
        return self._headers


class Signatures:
    """Signature version 4 with AWS credentials, read and renewed in a thread so that no request waits for that.

    Raises ConfigError when botocore is not installed.
    """

    def __init__(self, name: str, config: BedrockConfig, region: str, services: Services) -> None:
        if importlib.util.find_spec("botocore") is None:
            raise ConfigError(
                f"providers.{name}: AWS credentials need an extra package; install 'llmproxy[bedrock]', "
                "or set api_key to a Bedrock API key"
            )
        self._name = name
        self._config = config
        self._region = region
        self._services = services
        self._chain: CredentialChain | None = None
        self._current: ReadOnlyCredentials | None = None
        self._looked = asyncio.Event()
        self._renewal: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Look for credentials, and wait a short while for the first; then go on looking, for they expire."""
        self._renewal = self._services.tasks.start(f"{self._name} credentials", self._keep())
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await self._looked.wait()

    async def shutdown(self) -> None:
        """Stop looking."""
        if self._renewal is not None:
            self._renewal.cancel()

    def headers(self, url: str, fields: Headers, body: bytes) -> Headers:
        """The signature. Raises UpstreamError when no credentials were found."""
        if self._current is None:
            raise UpstreamError(
                f"The provider '{self._name}' has no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"or providers.{self._name}.api_key.",
                failure=Failure.AUTH,
                code="upstream_auth_error",
            )
        from llmproxy.providers.bedrock import aws  # noqa: PLC0415 - botocore is an extra, and slow to import

        # Only what cannot change on the way is signed.
        signed = [field for field in fields if field[0] == "content-type" or field[0].startswith("x-amz")]
        return aws.signature_headers(url, signed, body, credentials=self._current, region=self._region)

    async def _keep(self) -> None:
        await self._look()
        self._looked.set()
        while self._config.access_key_id is None:
            await self._services.clock.sleep(_LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        try:
            self._current = await asyncio.to_thread(self._read)
        except Exception as error:  # noqa: BLE001 - files, commands and services raise whatever they like
            # What was valid before may still be for a while; the provider will say when it is not.
            self._services.log.warning("aws_credentials_not_renewed", provider=self._name, error=repr(error))
            return
        if self._current is None:
            self._services.log.warning("aws_credentials_not_found", provider=self._name)

    def _read(self) -> ReadOnlyCredentials | None:
        from llmproxy.providers.bedrock import aws  # noqa: PLC0415 - botocore is an extra, and slow to import

        config = self._config
        if config.access_key_id is not None and config.secret_access_key is not None:
            token = config.session_token.get_secret_value() if config.session_token else None
            return aws.fixed_credentials(config.access_key_id, config.secret_access_key.get_secret_value(), token)
        if self._chain is None:
            self._chain = aws.CredentialChain(config.profile, self._region)
        return self._chain.current()
