"""Credentials of Microsoft Entra ID, through `azure-identity`, which is an optional dependency."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pydantic import Field, SecretStr, model_validator

from llmproxy.config import Section
from llmproxy.providers.access_token import AccessToken

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential


class EntraConfig(Section):
    """Who asks for tokens. Left empty, whatever the machine offers: environment, managed identity, command line."""

    tenant_id: str | None = Field(default=None, description="The directory; set with client_id and client_secret.")
    client_id: str | None = Field(
        default=None, description="An application with its client_secret, or alone a managed identity."
    )
    client_secret: SecretStr | None = Field(default=None, description="The application's secret.")
    authority: str | None = Field(default=None, description="Where tokens come from, in another cloud than the usual.")
    scope: str | None = Field(default=None, description="What tokens are for; left out, what the API version takes.")

    @model_validator(mode="after")
    def _can_be_used(self) -> EntraConfig:
        if self.client_secret and not (self.tenant_id and self.client_id):
            raise ValueError("client_secret needs tenant_id and client_id beside it")
        if not _is_installed():
            raise ValueError("this needs the package azure-identity: install llmproxy[azure]")
        return self


class EntraTokens:
    """Gets tokens for one scope. Works in a thread, for the library waits for networks and programs."""

    def __init__(self, config: EntraConfig, scope: str) -> None:
        self._config = config
        self._scope = scope
        self._credential: TokenCredential | None = None

    async def fetch(self) -> AccessToken:
        """A token. Raises whatever the library raises."""
        return await asyncio.to_thread(self._fetch)

    def _fetch(self) -> AccessToken:
        if self._credential is None:
            self._credential = _credential(self._config)
        token = self._credential.get_token(self._scope)
        return AccessToken(token.token, float(token.expires_on))


def _credential(config: EntraConfig) -> TokenCredential:
    # Half a second to import, which only those pay who use it, and not on the event loop.
    from azure.identity import ClientSecretCredential, DefaultAzureCredential  # noqa: PLC0415 - see above

    if config.client_secret and config.tenant_id and config.client_id:
        secret = config.client_secret.get_secret_value()
        return ClientSecretCredential(config.tenant_id, config.client_id, secret, authority=config.authority)
    return DefaultAzureCredential(managed_identity_client_id=config.client_id, authority=config.authority)


def _is_installed() -> bool:
    return find_spec("azure") is not None and find_spec("azure.identity") is not None
