"""What the trials of shadow mode say: how often it would have hit, how often wrongly, and which threshold would do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from llmproxy_plugins.semantic_cache.config import SemanticCacheConfig
from llmproxy_plugins.semantic_cache.store import Trial


@dataclass(frozen=True, slots=True)
class Judged:
    """A trial whose answers were compared."""

    similarity: float
    is_wrong: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    """A threshold, with how many of the judged trials it would have served, and how many of those wrongly."""

    threshold: float
    hits: int
    wrong: int


def judged(trials: Iterable[Trial], same_answer: float) -> Sequence[Judged]:
    """The trials that can be told right from wrong: by the judge's word, or how near the two answers are."""
    found = []
    for trial in trials:
        if trial.similarity is None or trial.answer_similarity is None:
            continue
        is_same = trial.answer_similarity >= same_answer if trial.is_same is None else trial.is_same
        found.append(Judged(trial.similarity, not is_same))
    return found


def proposal(trials: Sequence[Judged], max_wrong_share: float) -> Proposal | None:
    """The lowest threshold above which no more than a share of the hits would be wrong; None when there is none."""
    best, hits, wrong = None, 0, 0
    ordered = sorted(trials, key=_similarity, reverse=True)
    # All of one similarity are served, or none.
    for threshold, group in groupby(ordered, key=_similarity):
        members = list(group)
        hits += len(members)
        wrong += sum(each.is_wrong for each in members)
        if wrong <= max_wrong_share * hits:
            best = Proposal(threshold, hits, wrong)
    return best


def report(trials: Sequence[Trial], config: SemanticCacheConfig, max_wrong_share: float) -> Sequence[dict[str, object]]:
    """One line for each model."""
    return [
        _line(model, list(group), config, max_wrong_share)
        for model, group in groupby(sorted(trials, key=_model), key=_model)
    ]


def _line(
    model: str, trials: Sequence[Trial], config: SemanticCacheConfig, max_wrong_share: float
) -> dict[str, object]:
    threshold = config.threshold_of(model)
    known = judged(trials, config.shadow.same_answer)
    proposed = proposal(known, max_wrong_share)
    return {
        "model": model,
        "requests": len(trials),
        "judged": len(known),
        "threshold": threshold,
        "hits": sum(trial.similarity is not None and trial.similarity >= threshold for trial in trials),
        "wrong": sum(each.is_wrong for each in known if each.similarity >= threshold),
        "proposed_threshold": None if proposed is None else proposed.threshold,
        "proposed_hits": 0 if proposed is None else proposed.hits,
        "proposed_wrong": 0 if proposed is None else proposed.wrong,
    }


def _model(trial: Trial) -> str:
    return trial.model


def _similarity(trial: Judged) -> float:
    # Rounded down: a threshold is written with so many digits, and must not stand above what it was made of.
    return int(trial.similarity * 10_000) / 10_000
