"""Allowances: how much of something may be used, by whom and in which time. What budgets and limits are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

# What of the ledger something is held to: its `unit` (`usd`, `tokens` or `requests`), and what the entries' columns
# `workspace`, `feature`, `user_id`, `key_id`, `provider_name`, `model` and `tag` have to be; "" stands for nothing.
LedgerShare = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much one subject may use of something in one window of time.

    Attributes:
        name: Which limit, and for whom; begins with the name of the plugin that makes it.
        cap: The most that may be used in the window; None only counts.
        bucket: What is used now counts from here: a calendar window's own start, or the last step of a rolling one.
        since: What is used from here on counts against the cap.
        until: When the window ends and the next begins; None for one that never does, or that rolls on.
        step: The length of a bucket of a rolling window; None when the window is a bucket of its own.
        share: What of the ledger it is held to: it is settled together with the ledger's entries, to the digit. None
            for what is used up as soon as a worker has taken it, and not recorded anywhere else.
    """

    name: str
    cap: Decimal | None
    bucket: datetime
    since: datetime
    until: datetime | None = None
    step: timedelta | None = None
    share: LedgerShare | None = field(default=None, compare=False)

    @property
    def expires_at(self) -> datetime | None:
        """When nothing of the bucket counts any more; None for never."""
        return self.until if self.step is None else self.bucket + (self.bucket - self.since) + self.step


class WorstCase(NamedTuple):
    """The most that an attempt may use and cost. `amount_usd` is None when no price is known."""

    input_tokens: int
    output_tokens: int
    amount_usd: Decimal | None
    price_source: str | None = None

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class AllowanceExhausted(Exception):
    """There is no room for what was asked.

    Attributes:
        allowance: The one that has none.
        is_reserved: Whether there would be room, were it not for requests under way: soon there may be.
    """

    def __init__(self, allowance: Allowance, *, is_reserved: bool) -> None:
        super().__init__(f"{allowance.name} is exhausted.")
        self.allowance = allowance
        self.is_reserved = is_reserved


@dataclass(frozen=True, slots=True)
class HeldLease:
    """What one worker holds of an allowance."""

    holder: str
    machine: str
    seen_at: datetime
    leased: Decimal


@dataclass(frozen=True, slots=True)
class AllowanceUsage:
    """What is used of an allowance in one bucket: what is settled, and what workers hold."""

    name: str
    bucket: datetime
    settled: Decimal
    leased: Decimal
    holders: tuple[HeldLease, ...] = ()
