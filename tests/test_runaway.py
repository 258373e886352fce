"""Runaways through the whole gateway, and what is taken for one."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llmproxy.migrate import Component, core_component, migrate
from llmproxy.testing import (
    Clock,
    ProxyClient,
    ProxyResponse,
    ScriptedUpstream,
    StartProxy,
    configuration_table,
    document,
    make_exchange,
    make_services,
    reply,
    tokens,
    wait_until,
)
from llmproxy.testing.database import make_postgres
from llmproxy_plugins.runaway import Runaway
from llmproxy_plugins.runaway.settings import RunawayConfig
from llmproxy_plugins.runaway.watch import Watch, sketch_of, tool_calls_in_a_row

SESSION = {"x-llmproxy-session": "s1"}


def config(**fields: object) -> dict[str, Any]:
    """The plugin's section, with nothing watched but what is named."""
    return {"requests": None, "spend": None, "loop": None, "depth": None, **fields}


def watch(**fields: object) -> Watch:
    """A watch with nothing watched but what is named."""
    return Watch(RunawayConfig.model_validate(config(**fields)))


def called(times: int) -> list[dict[str, Any]]:
    """A conversation in which tools were called so often since the user spoke."""
    turn: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
        {"role": "tool", "content": "done"},
    ]
    return [{"role": "user", "content": "do it"}, *(turn * times)]


async def held(client: ProxyClient) -> list[dict[str, Any]]:
    """Who operators see held back."""
    response = await client.request("GET", "/admin/v1/runaway", key=client.admin_key)
    found: list[dict[str, Any]] = response.document["data"]
    return found


async def reset(client: ProxyClient, subject: str) -> ProxyResponse:
    """What an operator does by hand."""
    return await client.request("POST", "/admin/v1/runaway/reset", {"subject": subject}, key=client.admin_key)


async def test_a_loop_is_held_back_until_it_is_reset(proxy: StartProxy) -> None:
    """Nearly the same prompt again and again ends in 429; others go on, and an operator can let the session go on."""
    async with ScriptedUpstream([document({})]) as hook:
        section = config(loop={"repeats": 4}, webhook=f"{hook.base_url}/alert")
        async with proxy(Runaway, section, upstream=[reply("hi")] * 8) as client:
            text = "please have a look at the build of our project and fix whatever is wrong with it now, attempt"
            answers = [await client.chat(f"{text} {number}", headers=SESSION) for number in range(5)]
            assert [each.status for each in answers] == [200, 200, 200, 429, 429]
            error = answers[3].document["error"]
            assert (error["code"], "4 nearly identical turns" in error["message"]) == ("runaway_blocked", True)
            assert 290 < int(answers[4].headers["retry-after"]) <= 300
            assert (await client.chat(text, headers={"x-llmproxy-session": "s2"})).status == 200
            (trip,) = await held(client)
            assert trip["subject"] == "session:default/s1"
            await wait_until(lambda: len(hook.requests) == 1)
            assert b"nearly identical" in hook.requests[0].body
            assert text.encode() not in hook.requests[0].body
            assert (await reset(client, trip["subject"])).status == 200
            assert await held(client) == []
            assert (await client.chat(text, headers=SESSION)).status == 200
            assert (await reset(client, trip["subject"])).status == 404


async def test_what_it_costs_is_watched_by_the_minute(proxy: StartProxy) -> None:
    """A key that spends too much within a minute is held back from then on."""
    section = config(spend={"floor_usd": "0.5"})
    costly = reply("hi", usage=tokens(0, 150_000))
    async with proxy(Runaway, section, upstream=[costly] * 3) as client:
        statuses = []
        for _ in range(3):
            statuses.append((await client.chat()).status)
            await client.rows()
        assert statuses == [200, 200, 429]


async def test_throttling_delays(proxy: StartProxy) -> None:
    """With `throttle` a runaway is slowed down, not refused."""
    section = config(depth={"tool_calls": 2}, action="throttle", throttle_seconds=0.3)
    async with proxy(Runaway, section, upstream=[reply("hi")] * 2) as client:
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert (await client.chat(messages=called(3))).status == 200
        assert (await client.chat()).status == 200
        assert loop.time() - before > 0.6


async def test_trips_are_shared_and_reset_by_themselves(database_url: str) -> None:
    """Whoever notices a runaway, all workers hold it back, also those that start later; and all let it go on again."""
    await migrate(database_url, [core_component(), Component("runaway", Runaway.migrations)])
    database = make_postgres(database_url)
    await database.open()
    section = RunawayConfig.model_validate(config(depth={"tool_calls": 1}, reset_seconds=60))
    clock = Clock()
    crowd = [Runaway(section, make_services(database=database, clock=clock)) for _ in range(3)]
    for plugin in crowd[:2]:
        await plugin.startup()
    exchange = make_exchange(messages=called(2))
    await _refused(crowd[0], exchange)
    await wait_until(lambda: bool(crowd[1].trips.every()))
    await crowd[2].startup()
    for plugin in crowd:
        await _refused(plugin, make_exchange())
    await clock.advance(61)
    for plugin in crowd:
        await plugin.pre_request(make_exchange())
    for plugin in crowd:
        plugin.shutdown()
    await database.close()


async def _refused(plugin: Runaway, exchange: Any) -> None:
    with pytest.raises(Exception, match="runaway"):
        await plugin.pre_request(exchange)


def test_requests_are_compared_with_what_is_usual() -> None:
    """Past the floor, a minute may have so many times the median of the minutes before it."""
    watching = watch(requests={"factor": 3, "floor": 5})
    for minute in range(4):
        for _ in range(4):
            assert watching.request("a", minute * 60.0) is None
    tripped = [watching.request("a", 300.0) is not None for _ in range(14)]
    assert tripped == [False] * 12 + [True] * 2
    assert [watching.request("new", 300.0) is not None for _ in range(6)] == [False] * 5 + [True]


def test_spend_is_compared_with_what_is_usual() -> None:
    """The same for dollars, to the digit."""
    watching = watch(spend={"factor": 2, "floor_usd": "0.1"})
    for minute in range(3):
        watching.request("a", minute * 60.0)
        assert watching.spend("a", Decimal("0.1"), minute * 60.0) is None
    assert watching.spend("a", Decimal("0.2"), 240.0) is None
    assert watching.spend("a", Decimal("0.0001"), 240.0) is not None
    assert watching.spend("new", Decimal("0.2"), 240.0) is not None


@pytest.mark.parametrize(
    ("turns", "is_loop"),
    [
        (
            [f"error in line {number} of the file main.py: name x is not defined, see the log" for number in range(5)],
            True,
        ),
        (["yes"] * 5, True),
        (["what is the capital of France?", "and of Spain?", "thanks a lot", "how large is it?", "bye"], False),
        ([f"{number} " * 40 for number in range(5)], False),
        ([""] * 5, False),
    ],
)
def test_loops_are_told_from_conversations(turns: list[str], is_loop: bool) -> None:  # noqa: FBT001 - a table's column
    """Turns that differ in a word or two are the same; those of a conversation are not."""
    watching = watch(loop={"repeats": 5, "similarity": 0.5})
    found = [watching.turn("a", sketch_of({"messages": [{"role": "tool", "content": text}]}), 1.0) for text in turns]
    assert [each is not None for each in found] == [False] * 4 + [is_loop]


def test_a_loop_has_to_be_quick() -> None:
    """What is asked now and then is no loop."""
    watching = watch(loop={"repeats": 3, "window_seconds": 60})
    sketch = sketch_of({"messages": [{"role": "user", "content": "is it done yet?"}]})
    assert [watching.turn("a", sketch, number * 31.0) for number in range(6)] == [None] * 6


def test_tool_calls_count_since_the_user_spoke() -> None:
    """Only turns after the user's last word are counted, and only calls."""
    assert tool_calls_in_a_row({"messages": called(3)}) == 3
    assert tool_calls_in_a_row({"messages": [*called(3), *called(1)]}) == 1
    assert tool_calls_in_a_row({"messages": "nonsense"}) == 0
    assert tool_calls_in_a_row({"prompt": "text"}) == 0


def test_memory_is_bounded() -> None:
    """However many subjects there are, those met last are remembered."""
    watching = watch(max_subjects=10, requests={"floor": 2})
    for number in range(100):
        watching.request(str(number), 0.0)
    assert list(watching._histories) == [str(number) for number in range(90, 100)]


def test_readme_table_is_the_configuration() -> None:
    """The README's table is what the declaration says."""
    readme = Path(__file__).parent.parent / "plugins/runaway/README.md"
    assert configuration_table(RunawayConfig) in readme.read_text()
