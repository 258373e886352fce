"""Amazon Bedrock: every model's chat through Converse, embeddings through InvokeModel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Final
from urllib.parse import quote

from llmproxy.config import ProviderConfig
from llmproxy.dialects.chat_answer import AnswerIdentity, new_identity
from llmproxy.dialects.embeddings import read_embeddings_request, split_batch
from llmproxy.dialects.media import image_addresses
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.errors import BadRequest, Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers import Provider, StreamDecoder
from llmproxy.providers.anthropic.messages_format import merged_betas
from llmproxy.providers.bedrock.answer import chat_answer
from llmproxy.providers.bedrock.config import BedrockConfig
from llmproxy.providers.bedrock.credentials import Authentication, BearerKey, Signatures
from llmproxy.providers.bedrock.embeddings import embedding_body, embedding_list, family_of
from llmproxy.providers.bedrock.failures import refusal
from llmproxy.providers.bedrock.models import RuleBook
from llmproxy.providers.bedrock.request import converse_body
from llmproxy.providers.bedrock.stream import ConverseDecoder
from llmproxy.providers.bedrock.tools import answer_plan
from llmproxy.providers.headers import RequestHeaders
from llmproxy.providers.vendor import Omissions
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest

_ALWAYS: Final = (("content-type", "application/json"), ("accept-encoding", "identity"))
_REMEMBERED_MODELS: Final = 1024
_STREAM_TYPE: Final = "application/vnd.amazon.eventstream"
# Where partitions of AWS other than the public one have their endpoints, by how their regions begin.
_DOMAINS: Final[Mapping[str, str]] = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
}
# A path step of dots alone would lead somewhere else.
_DOTS: Final = re.compile(r"\.*")


class Bedrock(Provider):
    """One region of Bedrock, or another address that answers like it."""

    kind: ClassVar[str] = "bedrock"
    Config: ClassVar[type[ProviderConfig]] = BedrockConfig
    key_variables: ClassVar[tuple[str, ...]] = ("AWS_BEARER_TOKEN_BEDROCK",)
    needs_key: ClassVar[bool] = False
    price_provider: ClassVar[str | None] = "aws"
    operations: ClassVar[frozenset[Operation]] = frozenset({Operation.CHAT, Operation.EMBEDDINGS})

    def __init__(self, name: str, config: BedrockConfig, services: Services) -> None:
        super().__init__(name, config, services)
        self._section = config
        self._limits = config.limits
        self._root = (config.base_url or _address(config.region)).rstrip("/") + "/model/"
        self._headers = RequestHeaders(
            (*_ALWAYS, *config.headers.items()), ("user-agent", *config.forward_headers), stream_type=_STREAM_TYPE
        )
        self._rule_book = RuleBook.load()
        # Clients choose what is looked up, so what is remembered has a limit.
        self._address = lru_cache(maxsize=_REMEMBERED_MODELS)(self._model_address)
        self._authentication = _authentication(name, config, services)

    async def startup(self) -> None:
        """Find credentials, where they are not in the section."""
        if self._authentication is not None:
            await self._authentication.startup()

    async def shutdown(self) -> None:
        """Renew credentials no more."""
        if self._authentication is not None:
            await self._authentication.shutdown()

    def price_model(self, model: str) -> str:
        """The model behind an ARN, as far as the section or the ARN itself says."""
        return self._section.base_models.get(model, model).rpartition("/")[2]

    def takes_prefill(self, model: str) -> bool:
        """Whether a model goes on from a last message of its own, as some of Claude's do."""
        claude = self._rule_book.rules(self._base_model(model)).claude
        return claude is not None and claude.prefill

    def remote_images(self, request: Request) -> Mapping[str, str]:
        """All of them: Bedrock reads nothing from the web."""
        is_wanted = self._section.fetch_images and request.operation is Operation.CHAT
        return image_addresses(request.document) if is_wanted else {}

    def split(self, request: Request) -> Sequence[Request]:
        """A batch of texts in parts, which for some models hold one text."""
        if request.operation is not Operation.EMBEDDINGS:
            return (request,)
        return split_batch(request, family_of(self._base_model(request.model)).max_texts)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The request in the model's form, signed.

        Raises BadRequest when the model cannot do what is asked, UpstreamError when there are no credentials.
        """
        if self._authentication is None:
            raise self._no_region()
        if request.operation not in self.operations:
            raise BadRequest(f"The provider '{self.name}' does not offer {request.operation.value.replace('_', ' ')}.")
        omissions = Omissions(drop_params=self._section.drop_params)
        address = self._address(target.model)
        method, body = self._call(request, target.model, headers, omissions)
        is_stream = request.is_stream
        url = f"{address}{method}-stream" if is_stream else address + method
        fields = self._headers.build(headers, is_stream=is_stream)
        credentials = self._authentication.headers(url, fields, body)
        return UpstreamRequest("POST", url, (*fields, *credentials), body, omissions.names)

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """The answer in OpenAI's form. Raises an UpstreamError when it is none."""
        if error := stated_error(document):
            raise error
        if request.operation is Operation.EMBEDDINGS:
            asked = read_embeddings_request(request.document)
            return embedding_list(asked, document, family_of(self._base_model(request.model)), request.model)
        rules = self._rule_book.rules(self._base_model(request.model))
        return chat_answer(document, answer_plan(request.document, rules), self._identity(request)).encode()

    def stream_decoder(self, request: Request) -> StreamDecoder:
        """A decoder for one streamed answer."""
        rules = self._rule_book.rules(self._base_model(request.model))
        return ConverseDecoder(answer_plan(request.document, rules), self._identity(request))

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Bedrock's exception, classified."""
        return refusal(status, headers, body)

    def _model_address(self, model: str) -> str:
        if _DOTS.fullmatch(model):
            raise BadRequest("'model' is not the id of a model, nor an ARN.", param="model")
        return self._root + quote(model, safe="")

    def _call(
        self, request: Request, model: str, headers: Mapping[str, str], omissions: Omissions
    ) -> tuple[str, bytes]:
        """The method of the model to call, as it is named where the answer comes whole, and what with."""
        base_model, document = self._base_model(model), request.document
        if request.operation is Operation.EMBEDDINGS:
            asked = read_embeddings_request(document)
            return "/invoke", embedding_body(asked, document, family_of(base_model), omissions)
        betas = merged_betas(headers.get("anthropic-beta"), self._section.betas)
        body = converse_body(document, self._rule_book.rules(base_model), omissions, limits=self._limits, betas=betas)
        return "/converse", body

    def _base_model(self, model: str) -> str:
        return self._section.base_models.get(model, model)

    def _identity(self, request: Request) -> AnswerIdentity:
        return new_identity(request.model, int(self.services.clock.now().timestamp()))

    def _no_region(self) -> UpstreamError:
        return UpstreamError(
            f"The provider '{self.name}' has no region; set AWS_REGION or providers.{self.name}.region.",
            failure=Failure.AUTH,
            code="upstream_auth_error",
        )


def _authentication(name: str, config: BedrockConfig, services: Services) -> Authentication | None:
    """How requests prove who is asking; None when there is no region to ask in, which each request then says."""
    if config.bearer_key is not None and (config.region or config.base_url):
        return BearerKey(config.bearer_key)
    return Signatures(name, config, config.region, services) if config.region else None


def _address(region: str | None) -> str:
    domain = next((domain for start, domain in _DOMAINS.items() if (region or "").startswith(start)), "amazonaws.com")
    return f"https://bedrock-runtime.{region}.{domain}"
