"""Claims: what requests take of allowances, as a plugin counts it. What budgets and limits are made of.

A plugin says once what all requests that are alike are held to; core reserves it for each of them before it goes on,
together with what other plugins say, and settles it when it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from llmproxy.allowances import Allowance, AllowanceExhausted
from llmproxy.errors import LLMProxyError, RateLimited
from llmproxy.exchange import Attempt, Exchange

_BEGINNING = datetime.min.replace(tzinfo=UTC)
_END = datetime.max.replace(tzinfo=UTC)


class Claim:
    """What a plugin holds requests to that are alike, or their attempts. To be derived from.

    Attributes:
        allowances: What they take from.
        since: It holds for what is let in, or begun, from here on,
        until: and before this.
        fail_open: Whether to go on without it when the database cannot be reached.
    """

    allowances: tuple[Allowance, ...] = ()
    since: datetime = _BEGINNING
    until: datetime = _END
    fail_open: bool = False

    def amounts(self, exchange: Exchange, attempt: Attempt | None) -> Sequence[Decimal]:
        """What is reserved of each allowance. Raises whatever the request is to be refused with.

        With an attempt, `attempt.reserved` may be set to what the ledger charges for it should the worker die, once it
        is reserved; it must be where an allowance has a share of the ledger.

        Args:
            attempt: None for the request itself.
        """
        raise NotImplementedError

    def used(self, exchange: Exchange, attempt: Attempt | None, reserved: Sequence[Decimal]) -> Sequence[Decimal]:
        """What was used of each allowance in the end; what was reserved, unless it is told otherwise here."""
        return reserved

    async def refusal(
        self, exchange: Exchange, attempt: Attempt | None, exhausted: AllowanceExhausted
    ) -> LLMProxyError:
        """What to refuse a request with that an allowance has no room for."""
        return RateLimited("There is no room for this request; try again later.")

    def overran(self, exchange: Exchange, attempt: Attempt) -> None:
        """Take note of an attempt that used more than there was room for."""
