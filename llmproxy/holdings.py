"""What exchanges hold of the allowances that plugins claim: taken before they go on, settled when they are over.

What all requests that are alike are held to is found once for them, and taken in one step, whichever plugins claim it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

from llmproxy.allowances import Allowance, AllowanceExhausted
from llmproxy.claims import Claim
from llmproxy.errors import LLMProxyError
from llmproxy.exchange import Attempt, Exchange, Target
from llmproxy.hookcalls import OnFailure, fail_closed, raise_unless_settled
from llmproxy.quotas import TAKEN, Part, Quotas, Taken
from llmproxy.scopes import CallerKey, Scope
from llmproxy.services import Clock

HOOK: Final = "claims"
_REMEMBERED: Final = 10_000

Ask = Callable[[Exchange, Target | None, datetime], Sequence[tuple[str, Claim]]]


class _Terms:
    """All claims on requests that are alike, and when they hold."""

    def __init__(self, claims: Sequence[tuple[str, Claim]], quotas: Quotas) -> None:
        parts: list[Part] = []
        allowances: list[Allowance] = []
        for plugin, claim in claims:
            parts.append(Part(plugin, claim, slice(len(allowances), len(allowances) + len(claim.allowances))))
            allowances += claim.allowances
        self.parts: Final = tuple(parts)
        self.together: Final = quotas.together(allowances)
        self.fail_open: Final = [claim.fail_open for _, claim in claims for _ in claim.allowances]
        self.since: Final = max((claim.since for _, claim in claims), default=Claim.since)
        self.until: Final = min((claim.until for _, claim in claims), default=Claim.until)


class Holdings:
    """What the exchanges of one configuration hold.

    Args:
        ask: The hook `claims`.
        scopes: Those by which claims differ.
        on_failure: Learns of claims that fail where that stops nobody.
    """

    def __init__(
        self, ask: Ask, scopes: Collection[Scope], quotas: Quotas, clock: Clock, on_failure: OnFailure
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._key = CallerKey(scopes)
        self._quotas = quotas
        self._on_failure = on_failure
        self._terms: dict[tuple[object, ...], _Terms] = {}
        self._version = quotas.claims_version

    async def take(self, exchange: Exchange, attempt: Attempt | None = None) -> None:
        """Reserve what an exchange is held to, or one of its attempts. Raises what refuses it, and StorageError."""
        target, at = attempt.target if attempt else None, self._clock.now()
        if self._version != self._quotas.claims_version:
            self._version = self._quotas.claims_version
            self._terms.clear()
        key = self._key.of(exchange, target)
        terms = self._terms.get(key)
        # What goes by when the exchange was let in, and what goes by now, must both hold.
        if terms is None or not terms.since <= exchange.admitted_at or not at < terms.until:
            terms = self._terms[key] = self._found(exchange, target, at)
        if not terms.parts:
            return
        try:
            amounts = _amounts(terms, exchange, attempt)
            worst_case = None
            if attempt is not None:
                # While it waits nothing is reserved, and nothing to be charged.
                worst_case, attempt.reserved = attempt.reserved, None
            together = terms.together
            charged = attempt if worst_case is not None or together.is_recorded else None
            # Hardly ever is there anything to wait for.
            reservation = self._quotas.take_at_once(
                exchange, together, amounts, attempt=charged, worst_case=worst_case
            ) or await self._quotas.take(
                exchange, together, amounts, attempt=charged, worst_case=worst_case, fail_open=terms.fail_open
            )
        except BaseException as error:
            if attempt is not None:
                attempt.reserved = None
            if isinstance(error, AllowanceExhausted):
                raise await _refusal(terms, exchange, attempt, error) from error
            raise
        taken: Taken = (attempt, terms.parts, reservation)
        earlier = exchange.state.get(TAKEN)
        if earlier is None:
            exchange.state[TAKEN] = [taken]
        else:
            earlier.append(taken)

    def settle(self, exchange: Exchange, attempt: Attempt | None = None) -> None:
        """Give back what an exchange, or one of its attempts, has not used. What cannot be told was used in full."""
        for holder, parts, reservation in exchange.state.get(TAKEN) or ():
            if holder is not attempt:
                continue
            used: list[Decimal] = []
            for plugin, claim, numbers in parts:
                reserved = reservation.amounts[numbers]
                try:
                    found = claim.used(exchange, attempt, reserved)
                    if len(found) != len(reserved):
                        raise _uneven(found, reserved)
                    used += found
                except Exception as error:  # noqa: BLE001 - a plugin may raise anything, and the attempt is over
                    self._on_failure(plugin, HOOK, error)
                    used += reserved
            reservation.settle(used)
            if reservation.overruns and attempt is not None:
                self._tell_overruns(exchange, attempt, parts, reservation.overruns)

    def _tell_overruns(
        self, exchange: Exchange, attempt: Attempt, parts: Sequence[Part], overruns: Sequence[int]
    ) -> None:
        for plugin, claim, numbers in parts:
            if not any(numbers.start <= number < numbers.stop for number in overruns):
                continue
            try:
                claim.overran(exchange, attempt)
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything, and the attempt is over
                self._on_failure(plugin, HOOK, error)

    def _found(self, exchange: Exchange, target: Target | None, at: datetime) -> _Terms:
        if len(self._terms) >= _REMEMBERED:
            self._terms.clear()
        return _Terms(self._ask(exchange, target, at), self._quotas)


def _amounts(terms: _Terms, exchange: Exchange, attempt: Attempt | None) -> Sequence[Decimal]:
    amounts: list[Decimal] = []
    for plugin, claim, _ in terms.parts:
        try:
            found = claim.amounts(exchange, attempt)
            if len(found) != len(claim.allowances):
                raise _uneven(found, claim.allowances)
            amounts += found
        except Exception as error:  # a plugin may raise anything
            raise_unless_settled(fail_closed(plugin, HOOK), error)
            raise
    return amounts


async def _refusal(
    terms: _Terms, exchange: Exchange, attempt: Attempt | None, exhausted: AllowanceExhausted
) -> LLMProxyError:
    name = exhausted.allowance.name
    owners = (part for part in terms.parts if any(each.name == name for each in part.claim.allowances))
    plugin, claim, _ = next(owners)
    try:
        return await claim.refusal(exchange, attempt, exhausted)
    except Exception as error:  # a plugin may raise anything
        raise_unless_settled(fail_closed(plugin, HOOK), error)
        raise


def _uneven(amounts: Sequence[Decimal], wanted: Sequence[object]) -> ValueError:
    return ValueError(f"It gave {len(amounts)} amounts, where there are {len(wanted)} allowances.")
