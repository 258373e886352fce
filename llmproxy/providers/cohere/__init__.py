"""Cohere: its v2 API, which has a format of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from pydantic import Field

from llmproxy.config import ProviderConfig
from llmproxy.dialects.chat_answer import AnswerIdentity, new_identity
from llmproxy.dialects.chat_request import custom_tools
from llmproxy.dialects.embeddings import read_embeddings_request, split_batch
from llmproxy.dialects.openai_errors import error_of, stated_error
from llmproxy.errors import Failure, UpstreamError, UpstreamRefused
from llmproxy.exchange import Target
from llmproxy.providers import StreamDecoder
from llmproxy.providers.cohere.answer import translated_answer, translated_embeddings
from llmproxy.providers.cohere.models import load_models
from llmproxy.providers.cohere.request import MAX_TEXTS, chat_body, embeddings_body
from llmproxy.providers.cohere.stream import CohereStream
from llmproxy.providers.openai import OpenAI
from llmproxy.providers.vendor import Omissions, VendorConfig
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest

# Cohere's own: the request or the answer holds what the account does not allow.
_DENIED_TOKEN: Final = 498


class CohereConfig(VendorConfig):
    """A section for Cohere."""

    input_type: str = Field(
        default="search_document", description="What embeddings are for, where the client does not say `input_type`."
    )


class Cohere(OpenAI):
    """The Cohere API."""

    kind: ClassVar[str] = "cohere"
    Config: ClassVar[type[ProviderConfig]] = CohereConfig
    key_variables: ClassVar[tuple[str, ...]] = ("CO_API_KEY", "COHERE_API_KEY")
    price_provider: ClassVar[str | None] = "cohere"
    operations: ClassVar[frozenset[Operation]] = frozenset({Operation.CHAT, Operation.EMBEDDINGS})
    vendor_url: ClassVar[str] = "https://api.cohere.com"
    vendor_headers: ClassVar[Mapping[str, str]] = {}
    paths: ClassVar[Mapping[Operation, str]] = {Operation.CHAT: "/v2/chat", Operation.EMBEDDINGS: "/v2/embed"}

    def __init__(self, name: str, config: CohereConfig, services: Services) -> None:
        super().__init__(name, config, services)
        self._drop_params = config.drop_params
        self._input_type = config.input_type
        self._models = load_models()

    def split(self, request: Request) -> Sequence[Request]:
        """A large batch of texts in parts."""
        return split_batch(request, MAX_TEXTS)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The request in Cohere's form; what it does not have is named in `dropped`.

        Raises BadRequest when Cohere cannot do what is asked, UpstreamError when there is no key.
        """
        self.refuse_unserved(request)
        omissions = Omissions(drop_params=self._drop_params)
        document = request.document
        if request.operation is Operation.EMBEDDINGS:
            body = embeddings_body(document, read_embeddings_request(document), self._input_type, omissions)
        else:
            body = chat_body(document, self._models, omissions)
        return self.post(request, headers, body, omissions.names)

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """Cohere's answer in OpenAI's form. Raises an UpstreamError when it is none."""
        if error := stated_error(document):
            raise error
        if request.operation is Operation.EMBEDDINGS:
            asked = read_embeddings_request(request.document)
            return translated_embeddings(document, request.model, len(asked.texts), is_base64=asked.is_base64)
        return translated_answer(document, self._identity(request), custom_tools(request.document)).encode()

    def stream_decoder(self, request: Request) -> StreamDecoder | None:
        """A decoder for one streamed answer."""
        return CohereStream(self._identity(request), custom_tools(request.document))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Cohere's error response, classified."""
        if status != _DENIED_TOKEN:
            return super().error(status, headers, body)
        refused = error_of(400, headers, body)
        return UpstreamRefused(
            refused.message,
            failure=Failure.CONTENT_POLICY,
            upstream_status=status,
            status=400,
            code="content_policy_violation",
        )

    def _identity(self, request: Request) -> AnswerIdentity:
        return new_identity(request.model, self._now())
