"""Azure OpenAI: OpenAI's format and bytes, at an address of the customer's own and under deployment names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final
from urllib.parse import quote

from pydantic import Field, model_validator

from llmproxy.config import ProviderConfig
from llmproxy.exchange import Target
from llmproxy.providers.access_token import RenewedToken
from llmproxy.providers.azure.entra import EntraConfig, EntraTokens
from llmproxy.providers.openai import OpenAI, OpenAIHostConfig
from llmproxy.request import Request
from llmproxy.services import Services, UpstreamRequest

# The portal shows addresses with and without this end.
_API_ROOT: Final = re.compile(r"/openai(?:/v1)?/*$")
_SCOPE: Final = "https://ai.azure.com/.default"
_DATED_SCOPE: Final = "https://cognitiveservices.azure.com/.default"


class AzureConfig(OpenAIHostConfig):
    """A section for an Azure OpenAI or Foundry resource."""

    endpoint: str | None = Field(
        default=None, pattern=r"^https?://", description="The resource, such as https://acme.openai.azure.com."
    )
    api_version: str = Field(
        default="v1",
        pattern=r"^(v1|\d{4}-\d{2}-\d{2}(-preview)?)$",
        description="`v1`, or a date: then each deployment has an address of its own.",
    )
    base_models: Mapping[str, str] = Field(
        default_factory=dict, description="What each deployment runs, for its price: {my-deployment: gpt-4o}."
    )
    entra: EntraConfig | None = Field(default=None, description="Microsoft Entra ID in place of an api_key.")

    @model_validator(mode="after")
    def _is_somewhere(self) -> AzureConfig:
        if self.endpoint is None and self.base_url is None:
            raise ValueError("set endpoint, or base_url")
        if self.api_key is not None and self.entra is not None:
            raise ValueError("set api_key or entra, not both")
        if self.is_dated and self.responses == "always":
            raise ValueError("set api_version to v1 for responses: always")
        return self

    @property
    def root(self) -> str:
        """The resource's address, without the path of its API."""
        return _API_ROOT.sub("", self.base_url or self.endpoint or "").rstrip("/")

    @property
    def is_dated(self) -> bool:
        """Whether deployments are addressed by path and version instead of by the body's `model`."""
        return self.api_version != "v1"


class Azure(OpenAI):
    """One resource. A key found in the environment alone would not reach it, so none is looked for there."""

    kind: ClassVar[str] = "azure"
    Config: ClassVar[type[ProviderConfig]] = AzureConfig
    key_variables: ClassVar[tuple[str, ...]] = ()
    price_provider: ClassVar[str | None] = "azure"
    has_own_names: ClassVar[bool] = True
    vendor_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, name: str, config: AzureConfig, services: Services) -> None:
        super().__init__(name, config, services)
        self._base_models = config.base_models
        self._locate(f"{config.root}/openai/v1")
        self._is_dated = config.is_dated
        if config.is_dated:
            # Each dated version has a Responses API of its own, or none.
            self._bridge = None
        self._deployments = f"{config.root}/openai/deployments/"
        self._version = f"?api-version={config.api_version}"
        self._token = _renewed_token(name, config, services)
        self._is_locked = self._is_locked and self._token is None

    async def startup(self) -> None:
        """Get the first access token, where tokens are used."""
        if self._token is not None:
            await self._token.start()

    async def shutdown(self) -> None:
        """Renew tokens no more."""
        if self._token is not None:
            await self._token.stop()

    def model_names(self) -> Sequence[str]:
        """The deployments that the section names."""
        return self.config.models or tuple(self._base_models)

    def price_model(self, model: str) -> str:
        """The model that a deployment runs, as far as the section says."""
        return self._base_models.get(model, model)

    def authorization(self, key: str) -> tuple[str, str]:
        """The header that carries the key."""
        return ("api-key", key)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The client's bytes for a deployment.

        Raises BadRequest for an operation that Azure does not have, UpstreamError when there is no key or token.
        """
        prepared = super().prepare(request, target, headers)
        if self._is_dated:
            path = self.paths[request.operation]
            prepared = replace(prepared, url=f"{self._deployments}{quote(target.model, safe='')}{path}{self._version}")
        if self._token is not None:
            bearer = ("authorization", f"Bearer {self._token.value}")
            prepared = replace(prepared, headers=(*prepared.headers, bearer))
        return prepared


def _renewed_token(name: str, config: AzureConfig, services: Services) -> RenewedToken | None:
    if config.entra is None:
        return None
    scope = config.entra.scope or (_DATED_SCOPE if config.is_dated else _SCOPE)
    return RenewedToken(name, EntraTokens(config.entra, scope).fetch, services)
