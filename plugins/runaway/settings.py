"""The configuration of what counts as a runaway."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field, PositiveInt

from llmproxy.api import Seconds, Section

SubjectKind = Literal["session", "user", "key"]


class RequestsRule(Section):
    """Too many requests in a minute."""

    factor: float = Field(default=10, gt=1, description="So many times the median of the subject's own past minutes.")
    floor: PositiveInt = Field(default=300, description="Never below this many requests in a minute.")


class SpendRule(Section):
    """Too much spent in a minute."""

    factor: float = Field(default=10, gt=1, description="So many times the median of the subject's own past minutes.")
    floor_usd: Decimal = Field(default=Decimal(5), gt=0, description="Never below this much in a minute.")


class LoopRule(Section):
    """The same thing asked again and again."""

    repeats: int = Field(default=20, ge=2, description="So many nearly identical last turns are a loop.")
    window_seconds: Seconds = Field(default=300, description="Within this time.")
    similarity: float = Field(default=0.8, gt=0, le=1, description="The share of their words that is the same.")


class DepthRule(Section):
    """Tools that call for tools."""

    tool_calls: PositiveInt = Field(default=100, description="More turns with tool calls in a row than this, unasked.")


class RunawayConfig(Section):
    """What is watched, and what follows."""

    subjects: tuple[SubjectKind, ...] = Field(
        default=("session", "user", "key"), min_length=1, description="Whose requests are watched together."
    )
    requests: RequestsRule | None = Field(default=RequestsRule(), description="Requests per minute; null: not watched.")
    spend: SpendRule | None = Field(default=SpendRule(), description="Dollars per minute; null: not watched.")
    loop: LoopRule | None = Field(default=LoopRule(), description="Repeated prompts; null: not watched.")
    depth: DepthRule | None = Field(default=DepthRule(), description="Tool calls in a row; null: not watched.")
    action: Literal["block", "throttle"] = Field(default="block", description="Refuse with 429, or delay each request.")
    throttle_seconds: Seconds = Field(default=5, description="By how much `throttle` delays.")
    reset_seconds: Seconds = Field(default=300, description="When it is over by itself.")
    webhook: str | None = Field(
        default=None, pattern=r"^https?://", description="Where alerts are posted to, as JSON; left out, only logged."
    )
    max_subjects: PositiveInt = Field(default=10_000, description="Subjects that each worker remembers.")
