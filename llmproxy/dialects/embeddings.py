"""Embeddings requests taken apart and answers put together, for vendors whose embeddings have another form.

A batch that is too large for one call of the vendor's goes in parts, whose answers become one again.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import orjson

from llmproxy.errors import BadRequest, UpstreamBroken
from llmproxy.request import Document, Operation, Request

# As many as OpenAI takes: where each text is a call of its own, one request must not become any number of them.
MAX_INPUTS: Final = 2048


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


def split_batch(request: Request, max_inputs: int) -> Sequence[Request]:
    """A batch of texts in parts of at most so many, in their order; any other request is its own only part.

    Raises BadRequest when it holds more texts than any request may.
    """
    inputs = request.document.get("input") if request.operation is Operation.EMBEDDINGS else None
    if not isinstance(inputs, list) or len(inputs) <= max_inputs or not all(isinstance(each, str) for each in inputs):
        return (request,)
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(
            f"'input' holds {len(inputs)} texts, and a request may hold {MAX_INPUTS} at most; send several requests.",
            code="unsupported_value",
            param="input",
        )
    return [_part(request, inputs[start : start + max_inputs]) for start in range(0, len(inputs), max_inputs)]


def merge_embeddings(answers: Sequence[Document]) -> Document:
    """One answer out of those to the parts of a batch, in their order: numbered anew, usage summed.

    Raises UpstreamBroken when an answer holds no list of embeddings.
    """
    vectors = chain.from_iterable(_in_order(answer.get("data")) for answer in answers)
    rest = {name: value for name, value in answers[0].items() if name != "usage"}
    data = [{**vector, "index": index} for index, vector in enumerate(vectors)]
    return {**rest, "data": data, **summed_usage(answers)}


def summed_usage(answers: Iterable[Document]) -> Document:
    """The usage of several answers as the `usage` of one.

    Nothing when one of them tells none: a sum of the others would pass for all.
    """
    usages = [answer.get("usage") for answer in answers]
    return {"usage": _sum(usages)} if all(isinstance(usage, dict) for usage in usages) else {}


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


def _part(request: Request, inputs: Sequence[object]) -> Request:
    part = request.copy()
    part.set("input", inputs)
    return part


# What follows reads whatever the provider sent.


def _in_order(vectors: Any) -> Iterable[Document]:
    if not isinstance(vectors, list) or not all(isinstance(vector, dict) for vector in vectors):
        raise UpstreamBroken("The provider's answer holds no list of embeddings.")
    is_numbered = all(type(vector.get("index")) is int for vector in vectors)
    return sorted(vectors, key=lambda vector: vector["index"]) if is_numbered else vectors


def _sum(values: Sequence[Any]) -> Any:
    """Numbers added up, objects member by member; of anything else the first."""
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(chain.from_iterable(values))
        return {name: _sum([value[name] for value in values if name in value]) for name in names}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sum(values)
    return values[0]
