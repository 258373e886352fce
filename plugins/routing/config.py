"""What can be set about routing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from llmproxy.api import ModelName, Pattern, Seconds, Section

Strategy = Literal["weighted", "least_latency", "least_cost"]
Sticky = Literal["none", "user", "session", "key"]


class ModelRule(Section):
    """What holds for some models only."""

    strategy: Strategy | None = Field(default=None, description="Replaces `strategy` for these models.")
    sticky: Sticky | None = Field(default=None, description="Replaces `sticky` for these models.")


class MirrorRule(Section):
    """Which requests are sent elsewhere as well."""

    model: Pattern = Field(description="Pattern over the model that clients ask for.")
    to: ModelName = Field(description="Where the copy goes: provider/model, or an alias.")
    share: float = Field(gt=0, le=1, description="How many of the requests are copied, 1 being all.")


class RoutingConfig(Section):
    """How requests are split over the targets of a model."""

    strategy: Strategy = Field(
        default="weighted",
        description="What puts a model's targets in order: `weighted`, `least_latency` or `least_cost`.",
    )
    sticky: Sticky = Field(
        default="none",
        description="Whose requests keep to one target, with `weighted`: `none`, `user`, `session` or `key`.",
    )
    models: Mapping[Pattern, ModelRule] = Field(
        default_factory=dict,
        description="Other settings for some models, by pattern over the model asked for; the first that fits counts.",
    )
    mirror: tuple[MirrorRule, ...] = Field(
        default=(), description="Copies of requests, sent elsewhere to compare; their answers reach nobody."
    )
    mirrors_at_once: int = Field(
        default=16, ge=1, description="Copies under way in each worker; beyond that none are made."
    )
    latency_half_life_seconds: Seconds = Field(
        default=60, description="How fast `least_latency` forgets: in this time, what was measured counts half."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _check_sticky(self.strategy, self.sticky)
        for rule in self.models.values():
            _check_sticky(rule.strategy or self.strategy, rule.sticky or "none")
        return self


def _check_sticky(strategy: Strategy, sticky: Sticky) -> None:
    """Raise ValueError for a choice that is made anew for each request, and yet is to stay."""
    if sticky != "none" and strategy != "weighted":
        raise ValueError(f"sticky goes with strategy: weighted only, for {strategy} chooses anew for each request")
