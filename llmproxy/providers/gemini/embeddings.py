"""Embeddings: OpenAI's request and answer, and Google's three ways of doing the same."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Final

import orjson

from llmproxy.errors import BadRequest, UpstreamBroken
from llmproxy.exchange import Document
from llmproxy.providers.vendor import Omissions

# How many texts one call may hold.
MAX_TEXTS: Final = 100
_TRANSLATED: Final = frozenset({"model", "input", "dimensions", "encoding_format"})


def texts_of(document: Document, omissions: Omissions) -> Sequence[str]:
    """The texts to embed, one or many. Raises BadRequest when they are no texts, or too many for one call."""
    given = document.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest(
            "'input' must be a text or a list of texts; this provider takes no token numbers.", param="input"
        )
    if len(texts) > MAX_TEXTS:
        raise BadRequest(
            f"'input' holds {len(texts)} texts, and this provider takes {MAX_TEXTS} at most; send several requests.",
            param="input",
        )
    for name, value in document.items():
        if name not in _TRANSLATED and value:
            omissions.hint(name)
    return texts


def dimensions_of(document: Document) -> int | None:
    """How long the vectors shall be. Raises BadRequest when it is no positive number."""
    dimensions = document.get("dimensions")
    if dimensions is None:
        return None
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1:
        raise BadRequest("'dimensions' must be a positive integer.", param="dimensions")
    return dimensions


def batch_body(model: str, texts: Sequence[str], dimensions: int | None) -> bytes:
    """The body of the Gemini API's `batchEmbedContents`."""
    size = {} if dimensions is None else {"outputDimensionality": dimensions}
    requests = [{"model": model, "content": {"parts": [{"text": text}]}, **size} for text in texts]
    return orjson.dumps({"requests": requests})


def vertex_batch_body(texts: Sequence[str], dimensions: int | None) -> bytes:
    """The body of Vertex AI's `batchEmbedContents`."""
    size = {} if dimensions is None else {"embedContentConfig": {"outputDimensionality": dimensions}}
    return orjson.dumps({"requests": [{"content": {"parts": [{"text": text}]}, **size} for text in texts]})


def predict_body(texts: Sequence[str], dimensions: int | None) -> bytes:
    """The body of Vertex AI's `predict`, which its older embedding models have."""
    size = {} if dimensions is None else {"parameters": {"outputDimensionality": dimensions}}
    return orjson.dumps({"instances": [{"content": text} for text in texts], **size})


def translate_embeddings(document: Document, request: Document) -> bytes:
    """The list of embeddings, in the order of the texts. Raises UpstreamBroken when one of them is missing."""
    vectors, tokens = _batch(document) if "embeddings" in document else _predictions(document)
    given = request.get("input")
    if len(vectors) != (1 if isinstance(given, str) else len(given or ())):
        raise UpstreamBroken("The provider's answer does not hold an embedding for each text.")
    as_base64 = request.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": request.get("model"), "usage": usage})


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


def _packed(vector: Sequence[float]) -> str:
    """Little-endian 32-bit floats, as OpenAI packs them."""
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except OverflowError as error:
        raise UpstreamBroken("The provider's answer holds a number that is no 32-bit float.") from error
