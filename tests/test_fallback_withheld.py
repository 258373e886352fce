"""Targets that a limit of their own keeps a request from: another takes it, and none of them is ill for that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmproxy.testing import ScriptedUpstream, StartProxy, hang, reply
from llmproxy.testing.connections import wait_until
from llmproxy_plugins.budgets import Budgets
from llmproxy_plugins.fallback import Fallback
from llmproxy_plugins.rate_limits import RateLimits
from llmproxy_plugins.shaping import Shaping
from tests.test_fallback import QUICK, two_targets

LIMITS: dict[type, dict[str, Any]] = {
    Budgets: {"limits": [{"scope": "model", "match": "upstream/*", "requests": 1, "window": "month"}]},
    RateLimits: {"limits": [{"scope": "provider", "match": "upstream", "requests": 1, "window": "hour"}]},
}
REFUSALS = {Budgets: (402, "budget_exceeded"), RateLimits: (429, "rate_limit_exceeded")}


@pytest.mark.parametrize("plugin", list(LIMITS), ids=lambda plugin: str(plugin.name))
async def test_a_limit_of_a_target_sends_the_request_to_the_next(proxy: StartProxy, plugin: type) -> None:
    """Whoever comes when the first target's limit is used up is served by the second, and the first was not asked."""
    async with ScriptedUpstream([reply("other")]) as other:
        sections = (Fallback, QUICK, plugin, LIMITS[plugin])
        async with proxy(*sections, upstream=[reply("first")], config=two_targets(other)) as client:
            texts = [(await client.chat("hello", max_tokens=10)).text for _ in range(2)]
            rows = await client.rows()
            targets = await client.request("GET", "/admin/v1/targets", key=client.admin_key)
    assert texts == ["first", "other"]
    assert sorted((row["model"], str(row["failure"])) for row in rows.attempts) == [
        ("other-model", "None"),
        ("test-model", "None"),
        ("test-model", "withheld"),
    ]
    assert len(rows.ledger) == 2
    assert all(not each.get("cooling_seconds") for each in targets.document["data"])


@pytest.mark.parametrize("plugin", list(LIMITS), ids=lambda plugin: str(plugin.name))
async def test_without_another_target_the_client_is_told_of_the_limit(proxy: StartProxy, plugin: type) -> None:
    """Where there is nothing else to try, the refusal is the limit's own, and its row says that it was one."""
    async with proxy(Fallback, QUICK, plugin, LIMITS[plugin], upstream=[reply("first")]) as client:
        await client.chat("hello", max_tokens=10)
        refused = await client.chat("hello", max_tokens=10)
        rows = await client.rows()
    error = refused.document["error"]
    assert (refused.status, error["code"]) == REFUSALS[plugin]
    assert error["llmproxy"]["reason"] == "withheld"
    assert [row["outcome"] for row in rows.requests] == ["succeeded", "refused"]


async def test_limits_of_who_is_asking_hold_wherever_the_request_would_go(proxy: StartProxy) -> None:
    """A limit of the workspace is a refusal at once: no other target is tried."""
    section = {"limits": [{"scope": "workspace", "usd": "0.000001", "window": "month"}]}
    async with (
        ScriptedUpstream([reply("other")]) as other,
        proxy(Fallback, QUICK, Budgets, section, config=two_targets(other)) as client,
    ):
        refused = await client.chat("hello", max_tokens=10)
        rows = await client.rows()
    assert (refused.status, refused.document["error"]["code"]) == (402, "budget_exceeded")
    assert len(rows.attempts) == 1
    assert other.requests == []


async def test_a_request_counts_once_wherever_it_ends_up(proxy: StartProxy) -> None:
    """A request that one target's limit sent on is still one of its user's requests."""
    section = {
        "limits": [
            {"scope": "workspace", "requests": 2, "window": "hour"},
            {"scope": "provider", "match": "upstream", "requests": 1, "window": "hour"},
        ]
    }
    async with ScriptedUpstream([reply("other")] * 2) as other:
        sections = (Fallback, QUICK, RateLimits, section)
        async with proxy(*sections, upstream=[reply("first")], config=two_targets(other)) as client:
            statuses = [(await client.chat("hello")).status for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_a_full_queue_sends_the_request_to_the_next(proxy: StartProxy) -> None:
    """Who would have to wait too long for the first target's turn is served by the second."""
    section = {"accounts": [{"match": "upstream/*", "concurrent": 1, "max_wait_seconds": 0.01}]}
    async with ScriptedUpstream([reply("other")]) as other:
        sections = (Fallback, {"backoff_seconds": 0.001}, Shaping, section)
        async with (
            proxy(*sections, upstream=[hang()], config=two_targets(other)) as client,
            asyncio.TaskGroup() as tasks,
        ):
            hanging = tasks.create_task(client.chat("hello"))
            await wait_until(lambda: bool(client.upstream.requests))
            response = await client.chat("hello")
            hanging.cancel()
    assert (response.status, response.text) == (200, "other")
