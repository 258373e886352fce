"""Google's Gemini API: its address, its key, and its own format, translated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Final
from urllib.parse import quote

from llmproxy.config import ProviderConfig
from llmproxy.dialects.chat_answer import new_identity
from llmproxy.dialects.chat_request import custom_tools
from llmproxy.dialects.embeddings import split_batch
from llmproxy.dialects.media import image_addresses
from llmproxy.errors import BadRequest, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers import Provider, StreamDecoder
from llmproxy.providers.gemini import errors
from llmproxy.providers.gemini.answer import identified, translate_answer
from llmproxy.providers.gemini.content import FILE_API, Issuer, is_read_by_google
from llmproxy.providers.gemini.embeddings import MAX_TEXTS, asked_embeddings, batch_body, translate_embeddings
from llmproxy.providers.gemini.models import load_models
from llmproxy.providers.gemini.request import generate_body
from llmproxy.providers.gemini.stream import GeminiStream
from llmproxy.providers.headers import RequestHeaders
from llmproxy.providers.vendor import FetchesImages, Omissions, VendorConfig
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest
from llmproxy.usage import Usage

_ALWAYS: Final = (("content-type", "application/json"), ("accept-encoding", "identity"))
_REMEMBERED_MODELS: Final = 1024
_FORWARDED: Final = ("user-agent",)


class GeminiConfig(VendorConfig, FetchesImages):
    """A section for the Gemini API."""


class Gemini(Provider):
    """The Gemini API.

    Class attributes:
        issuer: Which of Google's endpoints this is: thought signatures of one are none to another.
    """

    kind: ClassVar[str] = "gemini"
    Config: ClassVar[type[ProviderConfig]] = GeminiConfig
    key_variables: ClassVar[tuple[str, ...]] = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
    price_provider: ClassVar[str | None] = "google"
    operations: ClassVar[frozenset[Operation]] = frozenset({Operation.CHAT, Operation.EMBEDDINGS})
    issuer: ClassVar[Issuer] = "gemini"

    def __init__(self, name: str, config: GeminiConfig, services: Services) -> None:
        super().__init__(name, config, services)
        self._drop_params = config.drop_params
        self._base = (config.base_url or FILE_API).rstrip("/")
        # Clients choose what is looked up, so what is remembered has a limit.
        self._address = lru_cache(maxsize=_REMEMBERED_MODELS)(self._model_address)
        self._fetch_images = config.fetch_images
        self._is_locked = config.api_key is None and config.base_url is None
        self._models = load_models()
        fixed = (*_ALWAYS, *self._fixed_headers(), *config.headers.items())
        self._headers = RequestHeaders(fixed, (*_FORWARDED, *config.forward_headers))

    def remote_images(self, request: Request) -> Mapping[str, str]:
        """Those that Google does not read by itself."""
        if not self._fetch_images or request.operation is not Operation.CHAT:
            return {}
        addresses = image_addresses(request.document)
        return {url: path for url, path in addresses.items() if not is_read_by_google(url, self.issuer)}

    def split(self, request: Request) -> Sequence[Request]:
        """A large batch of texts in parts."""
        return split_batch(request, MAX_TEXTS)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The request in Google's format; what it leaves out is named in `dropped`.

        Raises BadRequest when the model cannot do what is asked, UpstreamError when credentials are missing.
        """
        if request.operation not in self.operations:
            raise self._not_offered(request.operation)
        omissions = Omissions(drop_params=self._drop_params)
        method, body = self._call(request, target, omissions)
        fields = (*self._headers.build(headers, is_stream=request.is_stream), *self._credentials())
        return UpstreamRequest("POST", self._url(target.model) + method, fields, body, omissions.names)

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """The answer as a chat completion or a list of embeddings. Raises an UpstreamError when it is none."""
        if (error := errors.stated(document)) is not None:
            raise error
        if request.operation is Operation.EMBEDDINGS:
            return translate_embeddings(document, request.document)
        identity = identified(document, request.model, self._now())
        return translate_answer(document, identity, self.issuer, custom_tools(request.document))

    def stream_decoder(self, request: Request) -> StreamDecoder:
        """A decoder for a streamed answer."""
        return GeminiStream(new_identity(request.model, self._now()), self.issuer, custom_tools(request.document))

    def usage(self, document: Document) -> Usage | None:
        """Usage; None when Google told none, which it does for some embedding models."""
        usage = super().usage(document)
        return usage if usage and usage.total_tokens else None

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Google's error response, classified."""
        return errors.refused(status, headers, body)

    def _call(self, request: Request, target: Target, omissions: Omissions) -> tuple[str, bytes]:
        """The method of the model to call, and what with."""
        if request.operation is Operation.EMBEDDINGS:
            return self._embed(request.document, target, omissions)
        body = generate_body(request.document, self._models, self.issuer, omissions)
        return ":streamGenerateContent?alt=sse" if request.is_stream else ":generateContent", body

    def _embed(self, document: Document, target: Target, omissions: Omissions) -> tuple[str, bytes]:
        asked = asked_embeddings(document, omissions)
        return ":batchEmbedContents", batch_body(_resource(target.model), asked)

    def _url(self, model: str) -> str:
        return self._address(model)

    def _model_address(self, model: str) -> str:
        collection, _, name = _resource(model).partition("/")
        return f"{self._base}/{collection}/{quote(name, safe='')}"

    def _fixed_headers(self) -> Sequence[tuple[str, str]]:
        key = self.config.api_key
        return (("x-goog-api-key", key.get_secret_value()),) if key else ()

    def _credentials(self) -> Sequence[tuple[str, str]]:
        """Headers that differ from request to request. Raises UpstreamError when there are no credentials."""
        if self._is_locked:
            raise self.missing_key()
        return ()

    def _now(self) -> int:
        return int(self.services.clock.now().timestamp())

    def _not_offered(self, operation: Operation) -> BadRequest:
        return BadRequest(f"The provider '{self.name}' does not offer {operation.value.replace('_', ' ')}.")


def _resource(model: str) -> str:
    """A model's full name, such as `models/gemini-2.5-pro` or `tunedModels/mine`."""
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
