"""Requests that are ready at the same time go together, and nobody waits for company that is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from llmproxy.lockstep import assemble, in_step, note_event
from llmproxy.testing import StartProxy, reply
from tests.test_walk import Spoiler

TOGETHER = ["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]
ONE_BY_ONE = ["a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "c3"]


@pytest.fixture(autouse=True)
def no_streams() -> Iterator[None]:
    """Have the events of streams that passed in one test be forgotten in the next."""
    yield
    asyncio.run(forget_streams())


async def forget_streams() -> None:
    """Have many requests come by, and no event."""
    for _ in range(1000):
        await assemble()


async def walk(name: str, seen: list[str]) -> None:
    """Three steps."""
    await assemble()
    for number in (1, 2, 3):
        seen.append(f"{name}{number}")
        await in_step()


async def three() -> list[str]:
    """The steps of three that are ready at the same time, in order."""
    seen: list[str] = []
    await asyncio.gather(*(walk(name, seen) for name in "abc"))
    return seen


async def test_those_who_are_ready_together_take_each_step_together() -> None:
    """The second step is nobody's as long as the first is somebody's; of this, asyncio has to show what is ready."""
    assert await three() == TOGETHER


def test_on_another_event_loop_nobody_waits() -> None:
    """What is ready cannot be seen there."""
    assert uvloop.run(three()) == ONE_BY_ONE


async def test_who_is_alone_goes_on_at_once() -> None:
    """No turn of the event loop passes when nothing else is ready."""
    seen: list[str] = []
    with pytest.raises(StopIteration):
        walk("a", seen).send(None)
    assert seen == ["a1", "a2", "a3"]


async def test_nobody_waits_for_others_than_requests() -> None:
    """Where other things are ready, but no request waits for a step, there is none to go with."""
    asyncio.get_running_loop().call_soon(lambda: None)
    with pytest.raises(StopIteration):
        in_step().__await__().send(None)


async def test_where_streams_have_most_of_a_turn_nobody_waits() -> None:
    """A turn takes long there; once their events get few, requests go together again."""
    for _ in range(64):
        for _ in range(50):
            note_event()
        await assemble()
    assert await three() == ONE_BY_ONE
    await forget_streams()
    assert await three() == TOGETHER


async def test_who_is_cancelled_while_waiting_is_not_waited_with() -> None:
    """The others go on together, and afterwards one alone goes on at once."""
    seen: list[str] = []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(walk(name, seen)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[3].cancel()
    assert seen == TOGETHER
    with pytest.raises(StopIteration):
        walk("a", []).send(None)


async def test_a_row_that_cannot_be_made_keeps_no_other_from_being_written(
    proxy: StartProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of the requests that end together each has its own row, whatever a plugin did to one of them."""
    async with proxy(Spoiler, upstream=[reply("hi")] * 4) as client:
        asked = (client.chat(text) for text in ("a", "spoil", "b", "c"))
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
        rows = await client.rows()
    assert [row["outcome"] for row in rows.requests] == ["succeeded"] * 3
    assert "not_concluded" in capfd.readouterr().err
