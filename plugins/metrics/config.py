"""What the operator says about `/metrics`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, SecretStr, model_validator

from llmproxy.api import Section


class MetricsConfig(Section):
    """Who may read `/metrics`, and what is told apart there."""

    public: bool = Field(default=False, description="Whoever reaches the port may read it; false asks for a key.")
    token: SecretStr | None = Field(
        default=None, min_length=8, description="A bearer token of the scraper's own, in place of the admin key."
    )
    models: tuple[str, ...] = Field(
        default=(),
        description="Models that are asked for as `provider/model`, beside those that the configuration names.",
    )
    workspaces: bool = Field(default=False, description="Tell requests and costs apart by workspace.")
    max_label_values: int = Field(
        default=100, ge=1, le=10_000, description="Most models, and most workspaces; the rest is `other`."
    )

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if self.public and self.token is not None:
            raise ValueError("public and token are both set; keep one")
        return self
