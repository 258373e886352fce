"""What the operator may say of the guard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from llmproxy.api import Pattern, Seconds, Section

Fail = Literal["closed", "open"]


class WebhookConfig(Section):
    """A judge of the operator's own, asked over HTTP."""

    url: str = Field(pattern=r"^https?://", description="Gets a POST with the texts to judge.")
    headers: Mapping[str, SecretStr] = Field(default={}, description="Sent along, such as a credential.")
    timeout_seconds: Seconds = Field(default=2, description="How long a verdict may take.")


class ModerationConfig(Section):
    """OpenAI's moderation endpoint, or one that speaks like it."""

    api_key: SecretStr = Field(description="The credential; best as a variable, `${OPENAI_API_KEY}`.")
    base_url: str = Field(
        default="https://api.openai.com/v1", pattern=r"^https?://", description="Where `/moderations` is."
    )
    model: Pattern = Field(default="omni-moderation-latest", description="The moderation model.")
    categories: tuple[Pattern, ...] = Field(
        default=("*",), min_length=1, description="Patterns over the categories that count."
    )
    action: Literal["deny", "flag"] = Field(default="deny", description="What becomes of texts of such a category.")
    timeout_seconds: Seconds = Field(default=5, description="How long a verdict may take.")


class RequestsConfig(Section):
    """How requests are checked."""

    fail: Fail = Field(default="closed", description="Without a verdict: refuse the request, or let it pass.")
    parallel: bool = Field(
        default=False, description="Check while the provider works; nothing of its answer goes out before the verdict."
    )


class AnswersConfig(Section):
    """How answers are checked."""

    fail: Fail = Field(default="closed", description="Without a verdict: end the answer, or let it pass.")
    stream_window_characters: int = Field(
        default=500, ge=20, le=100_000, description="How much of a stream is held back and checked at a time."
    )


class GuardConfig(Section):
    """Who judges, and what."""

    webhook: WebhookConfig | None = Field(default=None, description="A judge of your own; this or `moderation`.")
    moderation: ModerationConfig | None = Field(default=None, description="OpenAI's moderation endpoint.")
    requests: RequestsConfig | None = Field(
        default=RequestsConfig(), description="How requests are checked; null: not at all."
    )
    answers: AnswersConfig | None = Field(
        default=AnswersConfig(), description="How answers are checked; null: not at all."
    )
    show_reason: bool = Field(
        default=False, description="Clients and the decision record are told the judge's reason for a denial."
    )

    @model_validator(mode="after")
    def _is_meaningful(self) -> Self:
        if (self.webhook is None) == (self.moderation is None):
            raise ValueError("names either no judge or two; set one of webhook and moderation")
        if self.requests is None and self.answers is None:
            raise ValueError("checks neither requests nor answers; leave one of them on, or remove the plugin")
        return self
