"""The configuration of the shaping."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from llmproxy.api import Pattern, Seconds, Section, Target


class Account(Section):
    """What a vendor allows an account, shared fairly among those who want to use it."""

    match: Pattern = Field(description="Pattern over `provider/model`; each key of a provider has its own.")
    requests_per_minute: PositiveFloat | None = Field(default=None, description="Requests that the vendor takes.")
    tokens_per_minute: PositiveFloat | None = Field(default=None, description="Tokens, in and out, that it takes.")
    concurrent: PositiveInt | None = Field(default=None, description="Requests that it takes at the same time.")
    burst_seconds: Seconds = Field(default=1, description="So much of the pace may be used at once after a pause.")
    max_wait_seconds: Seconds = Field(default=30, description="Who would wait longer than this is refused.")
    max_queue: PositiveInt = Field(default=1000, description="Requests of one workspace that may wait, in each worker.")

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.requests_per_minute is None and self.tokens_per_minute is None and self.concurrent is None:
            raise ValueError("needs at least one of requests_per_minute, tokens_per_minute and concurrent")
        return self


class Share(Section):
    """How much of an account somebody gets while others want it too."""

    workspace: Pattern = Field(default="*", description="Pattern over workspaces.")
    feature: Pattern | None = Field(
        default=None,
        description="Pattern over features, which share what their workspace gets; left out, the workspace.",
    )
    weight: PositiveFloat = Field(default=1, description="Twice the weight gets twice as much.")
    priority: int = Field(default=0, description="Who has a higher one goes first, whatever the weights.")


class Standing(NamedTuple):
    """What somebody gets."""

    weight: float
    feature_weight: float
    priority: int


class ShapingConfig(Section):
    """Vendors' limits, and how they are shared."""

    accounts: tuple[Account, ...] = Field(min_length=1, description="The first whose pattern fits a target counts.")
    shares: tuple[Share, ...] = Field(default=(), description="The first that fits counts; who fits none weighs 1.")
    assumed_output_tokens: int = Field(
        default=1024, ge=1, description="What an answer counts as, at most, until its tokens are known."
    )

    def account_of(self, target: Target) -> int | None:
        """The number of the account that a target uses; None when it is not shaped."""
        numbered = enumerate(self.accounts)
        return next((number for number, account in numbered if fnmatchcase(target.name, account.match)), None)

    def standing_of(self, workspace: str, feature: str) -> Standing:
        """What a feature of a workspace gets."""
        fitting = [share for share in self.shares if fnmatchcase(workspace, share.workspace)]
        own = next((share for share in fitting if share.feature is None), Share())
        of_feature = next((share for share in fitting if share.feature and fnmatchcase(feature, share.feature)), None)
        if of_feature is None:
            return Standing(own.weight, 1, own.priority)
        return Standing(own.weight, of_feature.weight, of_feature.priority)
