"""What plugins claim of allowances, through the whole gateway: reserved together or not at all, and settled once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, Final

import pytest

from llmproxy.api import (
    Allowance,
    AllowanceExhausted,
    Attempt,
    Claim,
    ConfigError,
    Exchange,
    LLMProxyError,
    RateLimited,
    Section,
    Services,
    Target,
    hookimpl,
)
from llmproxy.testing import StartProxy, fail, reply

_BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_ONE: Final = Decimal(1)


class Wallet(Claim):
    """Takes one of something each time, and may misbehave."""

    def __init__(self, name: str, cap: int) -> None:
        self.allowances = (Allowance(name, Decimal(cap), _BEGAN, _BEGAN),)
        self.settled: list[Sequence[Decimal]] = []
        self.overruns = 0
        self.amounts_taken: Sequence[Decimal] | Exception = [_ONE]
        self.amounts_used: Sequence[Decimal] | Exception | None = None

    def amounts(self, exchange: Exchange, attempt: Attempt | None) -> Sequence[Decimal]:
        if isinstance(self.amounts_taken, Exception):
            raise self.amounts_taken
        return self.amounts_taken

    def used(self, exchange: Exchange, attempt: Attempt | None, reserved: Sequence[Decimal]) -> Sequence[Decimal]:
        if isinstance(self.amounts_used, Exception):
            raise self.amounts_used
        self.settled.append(reserved if self.amounts_used is None else self.amounts_used)
        return self.settled[-1]

    def overran(self, exchange: Exchange, attempt: Attempt) -> None:
        self.overruns += 1

    async def refusal(
        self, exchange: Exchange, attempt: Attempt | None, exhausted: AllowanceExhausted
    ) -> LLMProxyError:
        return RateLimited(f"Nothing is left of {exhausted.allowance.name}.")


class Purse:
    """Holds every attempt to one wallet."""

    name = "purse"
    wallet: ClassVar[Wallet]
    asked: ClassVar[list[Target | None]]
    services: ClassVar[Services]

    def __init__(self, config: Section, services: Services) -> None:
        type(self).services = services

    @hookimpl
    def claims(self, exchange: Exchange, target: Target | None) -> Claim | None:
        self.asked.append(target)
        return self.wallet if target else None

    @hookimpl
    def on_response_head(self, exchange: Exchange) -> None:
        for _, _, remaining in self.services.quotas.taken(exchange, Wallet):
            exchange.response_headers.append(("x-left", ", ".join(map(str, remaining))))


class Door:
    """Holds every request to one wallet."""

    name = "door"
    wallet: ClassVar[Wallet]

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def claims(self, target: Target | None) -> Claim | None:
        return None if target else self.wallet


class Till(Purse):
    """Another that holds every attempt to a wallet."""

    name = "till"
    wallet: ClassVar[Wallet]
    asked: ClassVar[list[Target | None]]


def fill(*, purse: int = 5, till: int = 5, door: int = 5) -> None:
    """Give each plugin a wallet with so much in it."""
    Purse.wallet, Till.wallet, Door.wallet = Wallet("purse:a", purse), Wallet("till:b", till), Wallet("door:c", door)
    Purse.asked, Till.asked = [], []


async def test_what_two_plugins_claim_is_taken_together_or_not_at_all(proxy: StartProxy) -> None:
    """Where the second has no room the first keeps what it has, and the refusal is that of whose allowance it is."""
    fill(purse=2, till=1)
    async with proxy(Purse, Till, upstream=[reply("hi")] * 3) as client:
        answers = [await client.chat() for _ in range(3)]
        await client.rows()
        Till.wallet = Wallet("till:more", 1)
        Till.services.quotas.renew_claims()
        last = await client.chat()
    assert [each.status for each in answers] == [200, 429, 429]
    assert answers[1].document["error"]["message"] == "Nothing is left of till:b."
    assert last.status == 200
    assert len(Purse.wallet.settled) == 2


async def test_plugins_are_asked_once_for_requests_that_are_alike(proxy: StartProxy) -> None:
    """Without a target for the request itself, then for each target; again only when a caller differs."""
    fill(purse=10)
    async with proxy(Purse, upstream=[reply("hi")] * 3) as client:
        for headers in ({}, {}, {"x-llmproxy-feature": "search"}):
            await client.chat(headers=headers)
    assert [target and target.name for target in Purse.asked] == [None, "upstream/test-model"] * 2


async def test_requests_are_alike_that_differ_in_no_scope_of_the_claims(proxy: StartProxy) -> None:
    """A plugin that goes by workspaces is not asked for each feature; one that does not say goes by all there is."""
    for scopes, times in ((("workspace",), 1), (None, 2)):
        fill(purse=10)
        kind = type("Purse", (Purse,), {} if scopes is None else {"claim_scopes": scopes})
        async with proxy(kind, upstream=[reply("hi")] * 2) as client:
            for feature in ("search", "chat"):
                await client.chat(headers={"x-llmproxy-feature": feature})
        assert len(Purse.asked) == 2 * times


async def test_every_attempt_takes_and_gives_back_on_its_own(proxy: StartProxy) -> None:
    """What a failed attempt did not use is there for others; a request's own claim is settled when it has ended."""
    fill(purse=1, door=1)
    Purse.wallet.amounts_used = Door.wallet.amounts_used = [Decimal(0)]
    async with proxy(Purse, Door, upstream=[fail(500), reply("hi")]) as client:
        statuses = [(await client.chat()).status for _ in range(2)]
    assert statuses == [502, 200]
    assert (Purse.wallet.settled, Door.wallet.settled) == ([[Decimal(0)]] * 2, [[Decimal(0)]] * 2)


async def test_a_claim_that_fails_ends_the_request_with_its_plugin_s_name(proxy: StartProxy) -> None:
    """Nothing is sent, and nothing is taken; the same where it does not say how much of what."""
    fill(purse=1)
    async with proxy(Purse, upstream=[reply("hi")]) as client:
        seen: list[tuple[int, Any]] = []
        for wrong in (RuntimeError("secret"), [_ONE, _ONE], [_ONE]):
            Purse.wallet.amounts_taken = wrong
            response = await client.chat()
            seen.append((response.status, response.document.get("error", {}).get("message")))
        sent = len(client.upstream.requests)
    sentence = "The plugin 'purse' failed in claims; the gateway's log has the reason."
    assert seen == [(500, sentence), (500, sentence), (200, None)]
    assert sent == 1


async def test_what_cannot_be_told_was_used_in_full(proxy: StartProxy) -> None:
    """A claim that fails when it is settled stops nobody; what it had reserved counts as used."""
    fill(purse=2)
    async with proxy(Purse, upstream=[reply("hi")] * 2) as client:
        statuses = []
        for wrong in (RuntimeError("broken"), [_ONE, _ONE]):
            Purse.wallet.amounts_used = wrong
            statuses.append((await client.chat()).status)
        Purse.wallet.amounts_used = None
        statuses.append((await client.chat()).status)
    assert statuses == [200, 200, 429]


async def test_who_has_used_too_much_is_told(proxy: StartProxy) -> None:
    """Of two plugins the one whose allowance had no room for what was used, and not the other."""
    fill(purse=1, till=1)
    Purse.wallet.amounts_used = [Decimal(3)]
    async with proxy(Till, Purse, upstream=[reply("hi")]) as client:
        await client.chat()
    assert (Purse.wallet.overruns, Till.wallet.overruns) == (1, 0)


@pytest.mark.parametrize("scopes", ["workspace", ("workspaces",)])
async def test_scopes_that_do_not_exist_are_refused_at_the_start(proxy: StartProxy, scopes: object) -> None:
    """What they leave out would be shared by everybody."""
    fill()
    kind = type("Purse", (Purse,), {"claim_scopes": scopes})
    with pytest.raises(ConfigError, match="'purse' has claim_scopes that are not a collection of scopes"):
        async with proxy(kind):
            pass


async def test_a_plugin_learns_what_is_left(proxy: StartProxy) -> None:
    """Of what the exchange has taken by its own claims, as far as this worker knows."""
    fill(purse=3)
    async with proxy(Purse, upstream=[reply("hi")] * 2) as client:
        left = [(await client.chat()).headers["x-left"] for _ in range(2)]
    assert left == ["2", "1"]


class Lazy:
    """Has no use for one of its hooks."""

    name = "lazy"
    unused_hooks = frozenset({"pre_request"})
    called: ClassVar[list[str]] = []

    def __init__(self, config: Section, services: Services) -> None:
        pass

    @hookimpl
    def pre_request(self) -> None:
        self.called.append("pre_request")

    @hookimpl
    def on_response_head(self) -> None:
        self.called.append("on_response_head")


async def test_a_hook_that_a_plugin_has_no_use_for_is_not_called(proxy: StartProxy) -> None:
    """As it is configured: the others are."""
    async with proxy(Lazy, upstream=[reply("hi")]) as client:
        await client.chat()
    assert Lazy.called == ["on_response_head"]
