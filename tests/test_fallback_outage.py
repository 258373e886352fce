from __future__ import annotations

from benchmarks.outage import FAULTS, stage
from llmproxy.testing import StartProxy


async def test_no_client_notices_that_a_target_is_down(proxy: StartProxy) -> None:
    """In whatever way the first of three targets fails, every answer comes, whole and correct."""
    async with stage(proxy) as scene:
        for name, fault in FAULTS.items():
            seen = await scene.outage(fault, 60)
            assert (name, seen.failed) == (name, [])
            assert (name, seen.detours > 0) == (name, True)
