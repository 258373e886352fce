"""Embeddings through InvokeModel, where each family of models has a format of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from llmproxy.dialects.embeddings import EmbeddingsRequest, encode_embeddings
from llmproxy.dialects.openai_chat import token_count
from llmproxy.errors import BadRequest, UpstreamBroken
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document

# Vectors are whatever the provider sent: lists of numbers, when all is well.
_Vectors = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of models is asked.

    Attributes:
        max_texts: How many texts one call takes.
        members: Members of the client's request that the family takes as they are.
        body: The call, from what is asked and those members.
        vectors: The vectors in its answer.
    """

    max_texts: int
    members: tuple[str, ...]
    body: Callable[[EmbeddingsRequest, Document], Document]
    vectors: Callable[[Document], _Vectors]


def family_of(model: str) -> Family:
    """How a model is asked. Raises BadRequest when it makes no embeddings in a known format."""
    family = next((family for name, family in _FAMILIES.items() if name in model), None)
    if family is None:
        raise BadRequest(f"'{model[:200]}' makes no embeddings, as far as the gateway knows.", param="model")
    return family


def embedding_body(asked: EmbeddingsRequest, document: Document, family: Family, omissions: Omissions) -> bytes:
    """The body of the call, for no more texts than one call takes."""
    known = ("model", "input", "dimensions", "encoding_format", *family.members)
    for name, value in document.items():
        if value and name not in known:
            omissions.hint(name)
    given = {name: document[name] for name in family.members if document.get(name) is not None}
    body = family.body(asked, given)
    return orjson.dumps({name: value for name, value in body.items() if value is not None})


def embedding_list(asked: EmbeddingsRequest, answer: Document, family: Family, model: str) -> bytes:
    """The answer as OpenAI gives it. Raises UpstreamBroken when it does not hold a vector for each text.

    Only Titan tells how many tokens it read where it can be seen.
    """
    vectors = family.vectors(answer)
    if len(vectors) != len(asked.texts) or not all(_is_vector(vector) for vector in vectors):
        raise UpstreamBroken("The provider's answer does not hold one embedding for each text.")
    return encode_embeddings(vectors, model, token_count(answer, "inputTextTokenCount"), is_base64=asked.is_base64)


def _is_vector(vector: object) -> bool:
    return isinstance(vector, list) and bool(vector) and all(type(number) in (float, int) for number in vector)


def _titan(asked: EmbeddingsRequest, given: Document) -> Document:
    return {"inputText": asked.texts[0], "dimensions": asked.dimensions, **given}


def _titan_vectors(answer: Document) -> _Vectors:
    return [answer.get("embedding")]


def _cohere(asked: EmbeddingsRequest, given: Document) -> Document:
    body: Document = {"texts": asked.texts, "input_type": "search_document", "embedding_types": ["float"]}
    return {**body, "output_dimension": asked.dimensions, **given}


def _cohere_vectors(answer: Document) -> _Vectors:
    embeddings = answer.get("embeddings")
    found = embeddings.get("float") if isinstance(embeddings, dict) else embeddings
    return found if isinstance(found, list) else ()


def _nova(asked: EmbeddingsRequest, given: Document) -> Document:
    size = {} if asked.dimensions is None else {"embeddingDimension": asked.dimensions}
    text = {"truncationMode": "NONE", "value": asked.texts[0]}
    parameters = {"embeddingPurpose": "GENERIC_INDEX", **size, **given, "text": text}
    return {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": parameters}


def _nova_vectors(answer: Document) -> _Vectors:
    embeddings = answer.get("embeddings")
    entries = embeddings if isinstance(embeddings, list) else ()
    return [entry.get("embedding") for entry in entries if isinstance(entry, dict)]


# By what stands in the model's id.
_FAMILIES: Final[Mapping[str, Family]] = {
    "amazon.titan-embed-": Family(1, ("normalize",), _titan, _titan_vectors),
    "amazon.nova-2-multimodal-embeddings": Family(1, ("embeddingPurpose",), _nova, _nova_vectors),
    "cohere.embed-": Family(96, ("input_type", "truncate"), _cohere, _cohere_vectors),
}
