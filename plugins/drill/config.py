"""What can be set about injected faults."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llmproxy.api import Pattern, Seconds, Section

Fault = Literal["503", "429", "hang", "error_in_200", "malformed", "cut", "slow"]


class FaultRule(Section):
    """One fault, and which requests it strikes."""

    provider: Pattern = Field(description="Pattern over the names of the providers that seem to fail.")
    fault: Fault = Field(
        description="What they seem to do: `503`, `429`, `hang`, `error_in_200`, `malformed`, `cut` or `slow`."
    )
    share: float = Field(default=1, gt=0, le=1, description="How many of the requests are struck, 1 being all.")
    header: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]+$",
        description="Only requests that carry this header are struck; null: any may be.",
    )
    seconds: Seconds = Field(default=30, description="How long a `hang` lasts, and when a `429` says to come back.")
    after_events: int = Field(default=5, ge=1, description="How many events of a stream pass before it is `cut`.")
    pause_seconds: Seconds = Field(default=0.25, description="The wait before each piece of a `slow` stream.")


class DrillConfig(Section):
    """Faults for a deployment that is there to be tested."""

    break_requests_on_purpose: bool = Field(
        default=False, description="Has to be true: whoever enables this wants requests to fail."
    )
    faults: tuple[FaultRule, ...] = Field(min_length=1, description="The faults; the first that strikes counts.")

    @model_validator(mode="after")
    def _is_meant(self) -> Self:
        if not self.break_requests_on_purpose:
            raise ValueError("this makes requests fail; set break_requests_on_purpose: true, or remove the plugin")
        return self
