"""What the operator may say of the semantic cache."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from llmproxy.api import ModelName, Pattern, Seconds, Section

Similarity = Annotated[float, Field(gt=0, le=1)]


class ShadowConfig(Section):
    """How shadow mode tells whether a hit would have been right."""

    judge: ModelName | None = Field(
        default=None, description="A model that is asked whether two answers say the same; null: none is."
    )
    same_answer: Similarity = Field(
        default=0.9, description="Without a judge's word: the similarity from which two answers count as the same."
    )
    from_similarity: Similarity = Field(
        default=0.7, description="Only answers to questions at least so similar are compared, for it costs."
    )
    retention_days: int = Field(default=30, ge=1, description="How long trials are kept.")


class SemanticCacheConfig(Section):
    """Which questions are taken for the same, and for how long their answers are kept."""

    embeddings: ModelName = Field(description="The embeddings model that questions are compared by.")
    mode: Literal["shadow", "serve"] = Field(
        default="shadow", description="`shadow`: serve nothing, but note what would have been; `serve`."
    )
    threshold: Similarity = Field(default=0.95, description="Cosine similarity from which a question is the same.")
    thresholds: Mapping[Pattern, Similarity] = Field(
        default={}, description="Other thresholds, by patterns over the model asked for; the first that matches holds."
    )
    models: tuple[Pattern, ...] = Field(default=("*",), description="Patterns over the models it is there for.")
    ttl_seconds: Seconds = Field(default=86_400, description="How long an answer is served.")
    max_entries: int = Field(default=10_000, ge=1, le=1_000_000, description="Most answers of each workspace.")
    max_entry_bytes: int = Field(default=262_144, ge=1024, description="Largest answer that is kept.")
    max_question_characters: int = Field(default=8_000, ge=1, description="Longer questions are left alone.")
    timeout_seconds: Seconds = Field(default=1, description="Longest wait for a hit; after that it is a miss.")
    vary_headers: tuple[Pattern, ...] = Field(
        default=("anthropic-beta", "openai-beta"), description="Client headers that change answers."
    )
    shadow: ShadowConfig = Field(default=ShadowConfig(), description="How hits are judged in shadow mode.")

    def threshold_of(self, model: str) -> float:
        """The threshold that holds for a model."""
        fitting = (value for pattern, value in self.thresholds.items() if fnmatchcase(model, pattern))
        return next(fitting, self.threshold)
