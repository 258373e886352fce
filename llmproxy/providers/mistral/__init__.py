"""Mistral: nearly OpenAI's format. What differs is edited into requests and out of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import orjson

from llmproxy.config import ProviderConfig
from llmproxy.dialects.chat_request import custom_tools
from llmproxy.dialects.embeddings import as_base64
from llmproxy.exchange import Target
from llmproxy.providers import StreamDecoder
from llmproxy.providers.mistral.answer import translated_answer
from llmproxy.providers.mistral.models import load_models
from llmproxy.providers.mistral.request import translated_chat, translated_embeddings
from llmproxy.providers.mistral.stream import MistralStream
from llmproxy.providers.openai import OpenAI
from llmproxy.providers.vendor import Omissions, VendorConfig
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest


class Mistral(OpenAI):
    """The Mistral API."""

    kind: ClassVar[str] = "mistral"
    Config: ClassVar[type[ProviderConfig]] = VendorConfig
    key_variables: ClassVar[tuple[str, ...]] = ("MISTRAL_API_KEY",)
    price_provider: ClassVar[str | None] = "mistral"
    operations: ClassVar[frozenset[Operation]] = frozenset({Operation.CHAT, Operation.EMBEDDINGS})
    vendor_url: ClassVar[str] = "https://api.mistral.ai/v1"
    vendor_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, name: str, config: VendorConfig, services: Services) -> None:
        super().__init__(name, config, services)
        self._drop_params = config.drop_params
        self._models = load_models()

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The client's body with what Mistral needs otherwise; what it does not have is named in `dropped`.

        Raises BadRequest when Mistral cannot do what is asked, UpstreamError when there is no key.
        """
        self.refuse_unserved(request)
        omissions = Omissions(drop_params=self._drop_params)
        if request.operation is Operation.EMBEDDINGS:
            edited = translated_embeddings(request, omissions)
        else:
            edited = translated_chat(request, self._models.rules(target.model), omissions)
        return self.post(request, headers, edited.encode(), omissions.names)

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """Mistral's answer, byte for byte where it is one of OpenAI's already. Raises an UpstreamError."""
        super().answer(request, body, document)
        if request.operation is Operation.EMBEDDINGS:
            answered = _encoded_as_asked(request, document)
        else:
            answered = translated_answer(document, custom_tools(request.document))
        return body if answered == document else orjson.dumps(answered)

    def stream_decoder(self, request: Request) -> StreamDecoder | None:
        """A decoder for one streamed answer."""
        choices = request.document.get("n")
        return MistralStream(custom_tools(request.document), choices if isinstance(choices, int) else 1)


def _encoded_as_asked(request: Request, document: Document) -> Document:
    """Vectors in base64 where the client asked for that, whatever the model gave."""
    data = document.get("data")
    if request.document.get("encoding_format") != "base64" or not isinstance(data, list):
        return document
    return {**document, "data": [_in_base64(item) if isinstance(item, dict) else item for item in data]}


def _in_base64(item: Document) -> Document:
    vector = item.get("embedding")
    return {**item, "embedding": as_base64(vector)} if isinstance(vector, list) else item
