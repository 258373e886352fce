"""Waits with a limit: each runs out in its own time, whatever else is waited for, and only if it is late."""

from __future__ import annotations

import asyncio

import pytest

from llmproxy.errors import UpstreamTimeout
from llmproxy.timers import within

FAR_SECONDS = 60.0


def late(seconds: float) -> UpstreamTimeout:
    """What a wait that ran out says."""
    return UpstreamTimeout(f"late after {seconds:g}", phase="total")


async def after(seconds: float) -> float:
    """Some work."""
    await asyncio.sleep(seconds)
    return seconds


async def test_work_without_a_limit_is_only_waited_for() -> None:
    """None waits for as long as it takes."""
    assert await within(None, after(0.01), late) == 0.01


async def test_each_wait_runs_out_in_its_own_time() -> None:
    """Whichever began first: the sooner of two limits ends first, and what is done in time is never late."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    ended: dict[str, float] = {}

    async def run(work_seconds: float, limit_seconds: float) -> None:
        with pytest.raises(UpstreamTimeout) as raised:
            await within(limit_seconds, after(work_seconds), late)
        ended[raised.value.message] = loop.time() - began

    done, *_ = await asyncio.gather(
        within(FAR_SECONDS, after(0.02), late), run(FAR_SECONDS, 0.12), run(FAR_SECONDS, 0.04), run(FAR_SECONDS, 0.0)
    )
    assert done == 0.02
    assert list(ended) == ["late after 0", "late after 0.04", "late after 0.12"]
    assert ended["late after 0.04"] >= 0.04
    assert ended["late after 0.12"] >= 0.12


async def test_the_inner_of_two_waits_does_not_end_the_outer() -> None:
    """A part that is late can be done without, within the time of the whole."""

    async def whole() -> str:
        with pytest.raises(UpstreamTimeout, match=r"late after 0\.02"):
            await within(0.02, after(FAR_SECONDS), late)
        await asyncio.sleep(0.02)
        return "done"

    assert await within(FAR_SECONDS, whole(), late) == "done"


async def test_the_outer_of_two_waits_ends_the_inner() -> None:
    """What is waited for inside has longer, and ends all the same."""
    with pytest.raises(UpstreamTimeout, match=r"late after 0\.02"):
        await within(0.02, within(FAR_SECONDS, after(FAR_SECONDS), late), late)


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Whoever is cancelled was not late."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await within(FAR_SECONDS, after(FAR_SECONDS), late)


async def test_a_timeout_of_the_work_itself_passes() -> None:
    """Only this wait's own limit is spoken of as such."""

    async def times_out() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await within(FAR_SECONDS, times_out(), late)


def test_one_event_loop_after_the_other_has_its_waits_end() -> None:
    """What a loop has left behind when it was closed keeps no later one from its time."""

    async def wait() -> None:
        await within(FAR_SECONDS, after(FAR_SECONDS), late)

    async def leave_behind() -> None:
        asyncio.get_running_loop().create_task(wait())
        await asyncio.sleep(0)

    async def run_out() -> None:
        with pytest.raises(UpstreamTimeout):
            await within(0.01, after(FAR_SECONDS), late)

    for each in (leave_behind, run_out, run_out):
        asyncio.run(each())
