"""Embeddings, asked for as exchanges of the gateway's own: paid for, limited and recorded like a client's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import orjson

from llmproxy.api import Exchange, Exchanges, Operation, UpstreamBroken

Vector = Sequence[float]


class Embedder:
    """Turns texts into vectors.

    Args:
        origin: The plugin in whose name they are asked for.
        model: The embeddings model, by the name that clients know it by.
    """

    def __init__(self, exchanges: Exchanges, *, origin: str, model: str) -> None:
        self._exchanges = exchanges
        self._origin = origin
        self._model = model

    async def vectors(self, parent: Exchange, texts: Sequence[str]) -> Sequence[Vector]:
        """One vector for each text. Raises the LLMProxyError that there is instead."""
        question = {"model": self._model, "input": list(texts)}
        answer = await self._exchanges.send(parent, Operation.EMBEDDINGS, question, origin=self._origin)
        try:
            data = orjson.loads(answer.body)["data"]
            vectors = [[float(number) for number in item["embedding"]] for item in data]
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable() from error
        if len(vectors) != len(texts) or not all(map(_has_direction, vectors)):
            raise _unusable()
        return vectors


def similarity(one: Vector, other: Vector) -> float:
    """The cosine of the angle between two vectors of the same length."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


def _has_direction(vector: Vector) -> bool:
    return 0 < math.hypot(*vector) < math.inf


def _unusable() -> UpstreamBroken:
    return UpstreamBroken("The embeddings model answered with something else than a vector for each text.")
