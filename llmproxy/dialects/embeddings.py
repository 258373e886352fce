"""Embeddings requests taken apart and answers put together, for vendors whose embeddings have another form."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from llmproxy.errors import BadRequest, UpstreamBroken
from llmproxy.exchange import Document


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """What is to be embedded, and in which form the vectors are wanted."""

    texts: tuple[str, ...]
    dimensions: int | None
    is_base64: bool


def read_embeddings_request(document: Document) -> EmbeddingsRequest:
    """Take a request apart. Raises BadRequest naming the member that is wrong; only OpenAI reads tokens as input."""
    dimensions = document.get("dimensions")
    if dimensions is not None and (not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1):
        raise BadRequest("'dimensions' must be a positive integer.", param="dimensions")
    encoding = document.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise BadRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    return EmbeddingsRequest(_texts(document.get("input")), dimensions, encoding == "base64")


def encode_embeddings(
    vectors: Sequence[Sequence[float]], model: str, input_tokens: int | None, *, is_base64: bool
) -> bytes:
    """The embeddings object, vectors in the order of the inputs; without usage when that is not known."""
    data = [
        {"object": "embedding", "index": index, "embedding": as_base64(vector) if is_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    answer: Document = {"object": "list", "data": data, "model": model}
    if input_tokens is not None:
        answer["usage"] = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
    return orjson.dumps(answer)


def as_base64(vector: Sequence[float]) -> str:
    """A vector as OpenAI writes it in base64: little-endian 32-bit floats. Raises UpstreamBroken when it is none."""
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (struct.error, OverflowError) as error:
        raise UpstreamBroken("The provider sent an embedding that is no vector of numbers.") from error


def _texts(given: object) -> tuple[str, ...]:
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed:
        raise BadRequest("'input' must be a text or a list of texts.", param="input")
    if not all(isinstance(text, str) for text in listed):
        raise BadRequest("'input' must be text: this model takes no tokens.", param="input")
    return tuple(listed)
