"""The course of a drill: for each model and each fault a gateway of its own, first with its vendors well."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmproxy.drill.faults import Fault
from llmproxy.drill.stage import Stage, Staged
from llmproxy.drill.traffic import Answered, ask_together
from llmproxy.drill.verdict import Drill, judge, not_drilled

# Faults that only wait should not have to wait for each other; more at once would blur how long answers take.
_DRILLS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Traffic:
    """How much is asked, and for how long a client waits."""

    requests: int = 4
    patience_seconds: float = 30


async def run_drills(stage: Stage, models: Sequence[str], faults: Sequence[Fault], traffic: Traffic) -> Sequence[Drill]:
    """The outcome of every fault at every model, in their order.

    No drill knows of another: what a gateway has learned of its vendors ends with it.
    """
    places = asyncio.Semaphore(_DRILLS_AT_ONCE)

    async def run(model: str, fault: Fault) -> Drill:
        async with places, stage.gateway() as staged:
            return await _run(staged, model, fault, traffic)

    return await asyncio.gather(*(run(model, fault) for model in models for fault in faults))


async def _run(staged: Staged, model: str, fault: Fault, traffic: Traffic) -> Drill:
    # The first requests make connections and learn of prices; how long answers usually take, the second ones tell.
    await _ask(staged, model, fault, traffic)
    before = await _ask(staged, model, fault, traffic)
    if problem := next((each.problem for each in before if each.problem), None):
        return not_drilled(model, fault.name, f"it is not served even while its vendors are well: {problem}")
    provider = _usual_provider(before)
    upstream = staged.upstreams.get(provider)
    if upstream is None or not upstream.requests:
        return not_drilled(model, fault.name, f"the provider '{provider}' cannot be played")
    known = len(upstream.requests)
    upstream.default = fault.script
    during = await _ask(staged, model, fault, traffic)
    return judge(
        model,
        fault.name,
        provider,
        before=before,
        during=during,
        is_met=len(upstream.requests) > known,
        has_other_provider=any(target.provider != provider for target in staged.catalogue.targets(model)),
    )


async def _ask(staged: Staged, model: str, fault: Fault, traffic: Traffic) -> Sequence[Answered]:
    return await ask_together(
        staged.client,
        model,
        count=traffic.requests,
        patience_seconds=traffic.patience_seconds,
        only_streams=fault.is_for_streams,
    )


def _usual_provider(answered: Sequence[Answered]) -> str:
    served = Counter((each.served_by or "").partition("/")[0] for each in answered)
    return served.most_common(1)[0][0]
