"""What a drill says of a model and a fault: a judgement of what clients met with, without I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from llmproxy.drill.traffic import Answered

Verdict = Literal["survived", "failed", "not covered", "not drilled"]


@dataclass(frozen=True, slots=True)
class Drill:
    """The outcome of one fault at one model's provider.

    Attributes:
        provider: The one that was struck: whoever served the model while all was well.
        problems: What clients met with in place of an answer, and how many did.
        served_by: Who answered the others, as provider/model.
        attempts: The most that any request took.
        added_seconds: By how much the median of the answers took longer than before; None when there were none.
        why: What the verdict rests on, where it is not plain from the rest.
    """

    model: str
    fault: str
    verdict: Verdict
    why: str = ""
    provider: str | None = None
    requests: int = 0
    succeeded: int = 0
    problems: Mapping[str, int] = field(default_factory=dict)
    served_by: tuple[str, ...] = ()
    attempts: int = 0
    added_seconds: float | None = None


def judge(
    model: str,
    fault: str,
    provider: str,
    *,
    before: Sequence[Answered],
    during: Sequence[Answered],
    is_met: bool,
    has_other_provider: bool,
) -> Drill:
    """The outcome of a fault.

    Args:
        before: What became of requests while all was well.
        during: What became of those while the provider failed.
        is_met: Whether the provider was asked at all while it failed.
        has_other_provider: Whether the model can be served by another.
    """
    verdict, why = _verdict(during, is_met=is_met, has_other_provider=has_other_provider)
    good = [each for each in during if each.problem is None]
    usual_seconds = median(each.seconds for each in before)
    return Drill(
        model,
        fault,
        verdict,
        why,
        provider=provider,
        requests=len(during),
        succeeded=len(good),
        problems=dict(Counter(each.problem for each in during if each.problem is not None)),
        served_by=tuple(sorted({each.served_by for each in good if each.served_by})),
        attempts=max(each.attempts for each in during),
        added_seconds=median(each.seconds for each in good) - usual_seconds if good else None,
    )


def not_drilled(model: str, fault: str, why: str) -> Drill:
    """The outcome where nothing could be tried."""
    return Drill(model, fault, "not drilled", why)


def _verdict(during: Sequence[Answered], *, is_met: bool, has_other_provider: bool) -> tuple[Verdict, str]:
    if not is_met:
        return "not covered", "no request met the fault"
    failed = [each for each in during if each.problem is not None]
    if not failed:
        return "survived", ""
    if not has_other_provider:
        return "not covered", "no other provider serves this model"
    if all(each.is_told for each in failed):
        return "not covered", "streams that had begun ended with an error event; none was continued elsewhere"
    return "failed", ""
