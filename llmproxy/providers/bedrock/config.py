"""What a section for Bedrock may hold."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import AliasChoices, Field, SecretStr, model_validator

from llmproxy.providers.anthropic import ClaudeConfig
from llmproxy.providers.vendor import FetchesImages


def _usual_region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


class BedrockConfig(ClaudeConfig, FetchesImages):
    """A section for Bedrock: an API key, AWS keys of its own, or else whatever the AWS credential chain finds."""

    base_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        validation_alias=AliasChoices("endpoint_url", "base_url"),
        description="Replaces the region's own address, as for a private endpoint; `endpoint_url` is the same.",
    )
    region: str | None = Field(
        default_factory=_usual_region, pattern=r"^[a-z0-9-]+$", description="AWS region; left out, AWS_REGION."
    )
    access_key_id: str | None = Field(default=None, description="AWS access key; left out, the credential chain.")
    secret_access_key: SecretStr | None = Field(default=None, description="The access key's secret.")
    session_token: SecretStr | None = Field(default=None, description="For a temporary access key.")
    profile: str | None = Field(default=None, description="Profile of the AWS files to take credentials from.")
    base_models: Mapping[str, str] = Field(
        default_factory=dict,
        description="The model behind each ARN that does not say so itself, such as an application inference profile.",
    )

    @model_validator(mode="after")
    def _credentials_are_of_one_kind(self) -> BedrockConfig:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token goes with access_key_id and secret_access_key")
        if sum(each is not None for each in (self.api_key, self.access_key_id, self.profile)) > 1:
            raise ValueError("api_key, access_key_id and profile are three ways to say the same; set one of them")
        return self

    @property
    def bearer_key(self) -> str | None:
        """The API key to use; credentials that the section names itself win over a key found in a variable."""
        if self.api_key is None or self.access_key_id is not None or self.profile is not None:
            return None
        return self.api_key.get_secret_value()
