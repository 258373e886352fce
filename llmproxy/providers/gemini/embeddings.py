"""Embeddings: OpenAI's request and answer, and Google's three ways of doing the same."""

from __future__ import annotations

from typing import Final

import orjson

from llmproxy.dialects.embeddings import EmbeddingsRequest, encode_embeddings, read_embeddings_request
from llmproxy.errors import UpstreamBroken
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

# How many texts one call may hold.
MAX_TEXTS: Final = 100
_TRANSLATED: Final = frozenset({"model", "input", "dimensions", "encoding_format"})


def asked_embeddings(document: Document, omissions: Omissions) -> EmbeddingsRequest:
    """What is to be embedded. Raises BadRequest when that is not text."""
    for name, value in document.items():
        if name not in _TRANSLATED and value:
            omissions.hint(name)
    return read_embeddings_request(document)


def batch_body(model: str, asked: EmbeddingsRequest) -> bytes:
    """The body of the Gemini API's `batchEmbedContents`."""
    size = {} if asked.dimensions is None else {"outputDimensionality": asked.dimensions}
    requests = [{"model": model, "content": {"parts": [{"text": text}]}, **size} for text in asked.texts]
    return orjson.dumps({"requests": requests})


def vertex_batch_body(asked: EmbeddingsRequest) -> bytes:
    """The body of Vertex AI's `batchEmbedContents`."""
    size = {} if asked.dimensions is None else {"embedContentConfig": {"outputDimensionality": asked.dimensions}}
    return orjson.dumps({"requests": [{"content": {"parts": [{"text": text}]}, **size} for text in asked.texts]})


def predict_body(asked: EmbeddingsRequest) -> bytes:
    """The body of Vertex AI's `predict`, which its older embedding models have."""
    size = {} if asked.dimensions is None else {"parameters": {"outputDimensionality": asked.dimensions}}
    return orjson.dumps({"instances": [{"content": text} for text in asked.texts], **size})


def translate_embeddings(document: Document, request: Document) -> bytes:
    """The list of embeddings, in the order of the texts. Raises UpstreamBroken when one of them is missing."""
    asked = read_embeddings_request(request)
    vectors, tokens = _batch(document) if "embeddings" in document else _predictions(document)
    if len(vectors) != len(asked.texts):
        raise UpstreamBroken("The provider's answer does not hold an embedding for each text.")
    return encode_embeddings(vectors, str(request["model"]), tokens, is_base64=asked.is_base64)


def _batch(document: Document) -> tuple[list[list[float]], int]:
    embeddings = document["embeddings"]
    metadata = document.get("usageMetadata")
    tokens = metadata.get("promptTokenCount") if isinstance(metadata, dict) else 0
    vectors = [_vector(embedding) for embedding in embeddings] if isinstance(embeddings, list) else []
    return vectors, tokens if isinstance(tokens, int) else 0


def _predictions(document: Document) -> tuple[list[list[float]], int]:
    predictions = document.get("predictions")
    embeddings = [
        prediction.get("embeddings") if isinstance(prediction, dict) else None
        for prediction in (predictions if isinstance(predictions, list) else [])
    ]
    return [_vector(embedding) for embedding in embeddings], sum(map(_tokens, embeddings))


def _vector(embedding: object) -> list[float]:
    values = embedding.get("values") if isinstance(embedding, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise UpstreamBroken("The provider's answer holds an embedding that is no list of numbers.")
    return values


def _tokens(embedding: object) -> int:
    statistics = embedding.get("statistics") if isinstance(embedding, dict) else None
    count = statistics.get("token_count", statistics.get("tokenCount")) if isinstance(statistics, dict) else 0
    # Vertex writes whole numbers as 5.0.
    return int(count) if isinstance(count, int | float) and 0 <= count < 10**12 else 0
