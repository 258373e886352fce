"""What follows from verdicts, and from there being none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from llmproxy.api import Exchange, LLMProxyError, PluginError, Refused, Services, StateKey, Unavailable
from llmproxy_plugins.guard.config import Fail
from llmproxy_plugins.guard.judges import Inquiry, Judge, Verdict

_ALLOWED: Final = Verdict(verdict="allow")
_MAX_REASON_CHARACTERS: Final = 500
# The subjects of an exchange that were flagged, or that nobody gave a verdict on.
_NOTED: Final = StateKey[set[str]]("guard.noted")


class Court:
    """Asks the judge, and carries out what it says.

    Args:
        name: Whose decisions it records.
        show_reason: Whether the reasons of denials are told.
    """

    def __init__(self, name: str, judge: Judge, services: Services, *, show_reason: bool) -> None:
        self._name = name
        self._judge = judge
        self._log = services.log
        self._show_reason = show_reason

    async def heard(self, inquiry: Inquiry, fail: Fail) -> Sequence[str] | None:
        """The texts to go on with in place of those that were judged; None when they may stay.

        Raises Refused when they may not go on, Unavailable when nobody says whether they may and `fail` is `closed`.
        """
        verdict = await self.verdict(inquiry, fail)
        self.carry_out(inquiry, verdict)
        return verdict.texts if verdict.verdict == "replace" else None

    async def verdict(self, inquiry: Inquiry, fail: Fail) -> Verdict:
        """The verdict. Raises Unavailable."""
        if not inquiry.texts:
            return _ALLOWED
        try:
            return await self._judge.verdict(inquiry)
        except (LLMProxyError, ValueError) as error:
            reason = error.message if isinstance(error, LLMProxyError) else str(error)
        self._log.warning("guard_failed", request_id=inquiry.exchange.id, reason=reason, fail=fail)
        if fail == "closed":
            raise Unavailable(f"The {inquiry.subject} could not be checked, and has to be; try again later.")
        self._note(inquiry, "let pass unchecked", "no verdict")
        return _ALLOWED

    def carry_out(self, inquiry: Inquiry, verdict: Verdict) -> None:
        """Record what the verdict says. Raises Refused for a denial."""
        match verdict.verdict:
            case "deny":
                raise self.denial(inquiry, verdict)
            case "flag":
                if self._note(inquiry, "flagged", self._told(verdict)):
                    _add_header(inquiry.exchange)
            case "replace":
                self._note(inquiry, "replaced", self._told(verdict))
            case "allow":
                pass

    def denial(self, inquiry: Inquiry, verdict: Verdict) -> Refused:
        """What the client is told; nothing in it is of what was denied, unless reasons are shown."""
        self._note(inquiry, "denied", self._told(verdict))
        because = f": {self._told(verdict)}" if self._show_reason and verdict.reason else ""
        kind = "request" if inquiry.subject == "request" else "answer"
        remedy = "change it" if kind == "request" else "ask for something else"
        return Refused(
            f"The {kind} is not allowed by a policy of this gateway{because}; {remedy}.", code="guard_denied"
        )

    def _told(self, verdict: Verdict) -> str:
        if not self._show_reason or not verdict.reason:
            return "the judge's verdict"
        printable = "".join(each if each.isprintable() else " " for each in verdict.reason)
        return printable[:_MAX_REASON_CHARACTERS].strip().rstrip(".")

    def _note(self, inquiry: Inquiry, what: str, why: str) -> bool:
        """Record a decision once, however many windows it holds for; whether this was the first."""
        exchange = inquiry.exchange
        noted = exchange.state.get(_NOTED) or set()
        exchange.state[_NOTED] = noted | {line := f"{what} the {inquiry.subject}"}
        if line not in noted:
            exchange.decide(self._name, line, why)
        return line not in noted


def _add_header(exchange: Exchange) -> None:
    header = ("x-llmproxy-guard", "flagged")
    if header not in exchange.response_headers:
        exchange.response_headers.append(header)


class PendingVerdict:
    """A verdict on a request that is already on its way; several may wait for it."""

    def __init__(self, court: Court, inquiry: Inquiry, fail: Fail, services: Services) -> None:
        self._court = court
        self._inquiry = inquiry
        self._fail = fail
        self._outcome: Verdict | LLMProxyError = PluginError("The check of the request was given up.")
        self._task = services.tasks.start("guard", self._ask())

    async def carried_out(self) -> None:
        """Return when the request is allowed. Raises Refused, also where it would have to be changed; Unavailable."""
        # Not awaited itself: whoever is cancelled here must not take the verdict from the others.
        await asyncio.wait([self._task])
        if isinstance(self._outcome, LLMProxyError):
            raise self._outcome
        if self._outcome.verdict == "replace":
            raise self._court.denial(self._inquiry, self._outcome)
        self._court.carry_out(self._inquiry, self._outcome)

    async def _ask(self) -> None:
        try:
            self._outcome = await self._court.verdict(self._inquiry, self._fail)
        except LLMProxyError as error:
            self._outcome = error
