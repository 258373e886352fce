"""Google's Vertex AI: Gemini and Claude at addresses of the customer's own project, with tokens that run out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote

import orjson
from pydantic import Field, SecretStr, model_validator

from llmproxy.config import ProviderConfig
from llmproxy.errors import Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers import StreamDecoder
from llmproxy.providers.access_token import RenewedToken
from llmproxy.providers.anthropic import ClaudeConfig
from llmproxy.providers.gemini import Gemini, GeminiConfig
from llmproxy.providers.gemini.content import Issuer
from llmproxy.providers.gemini.embeddings import asked_embeddings, predict_body, vertex_batch_body
from llmproxy.providers.openai import HEADER_WORD
from llmproxy.providers.vendor import Omissions
from llmproxy.providers.vertex.claude import PUBLISHER, Claude, is_claude
from llmproxy.providers.vertex.credentials import GoogleTokens, is_installed
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest

_EVERYWHERE: Final = "global"
_MULTI_REGIONS: Final = frozenset({"eu", "us"})
_LOCATION: Final = re.compile(r"[a-z0-9-]+")


class VertexConfig(ClaudeConfig, GeminiConfig):
    """A section for Vertex AI."""

    project: str | None = Field(
        default=None, pattern=r"^[a-z0-9][a-z0-9.:-]*$", description="Left out, the one the credentials belong to."
    )
    location: str | None = Field(
        default=None, description="Where the models run; left out, `region`, and without that `global`."
    )
    credentials_file: str | None = Field(
        default=None, description="A service account's key file; left out, whatever the machine offers."
    )
    credentials_json: SecretStr | None = Field(default=None, description="The same, as the file's content.")
    quota_project: str | None = Field(
        default=None, pattern=HEADER_WORD, description="The project whose quota is used, when it is another."
    )

    @model_validator(mode="after")
    def _can_be_used(self) -> VertexConfig:
        if not _LOCATION.fullmatch(self.place):
            raise ValueError(f"set location: {self.place!r} is none of Google's")
        if sum(key is not None for key in (self.api_key, self.credentials_file, self.credentials_json)) > 1:
            raise ValueError("set one of api_key, credentials_file and credentials_json")
        if self.api_key is None and not is_installed():
            raise ValueError("this needs the package google-auth: install llmproxy[vertex], or set api_key")
        self.account()
        return self

    @property
    def place(self) -> str:
        """The location that addresses name."""
        return self.location or self.region or _EVERYWHERE

    def account(self) -> Document | None:
        """The service account's key; None when the section names none. Raises ValueError when it is none."""
        if self.credentials_json is not None:
            return _account(self.credentials_json.get_secret_value(), "credentials_json")
        if self.credentials_file is None:
            return None
        try:
            return _account(Path(self.credentials_file).read_text("utf-8"), "credentials_file")
        except OSError as error:
            raise ValueError(f"credentials_file cannot be read: {error.strerror}") from error


class Vertex(Gemini):
    """One project in one location; with an api_key and no project, the express mode, which has neither."""

    kind: ClassVar[str] = "vertex"
    Config: ClassVar[type[ProviderConfig]] = VertexConfig
    key_variables: ClassVar[tuple[str, ...]] = ()
    issuer: ClassVar[Issuer] = "vertex"

    def __init__(self, name: str, config: VertexConfig, services: Services) -> None:
        self._quota_project = config.quota_project
        super().__init__(name, config, services)
        self._claude = Claude(config)
        self._root = (config.base_url or _host(config.place)).rstrip("/")
        self._place = config.place
        self._project = config.project
        self._has_key = config.api_key is not None
        self._tokens = GoogleTokens(config.account(), services.http)
        self._token = RenewedToken(name, self._tokens.fetch, services)

    async def startup(self) -> None:
        """Get the first access token, and keep one that is good."""
        if not self._has_key:
            await self._token.start()

    async def shutdown(self) -> None:
        """Renew the token no more."""
        await self._token.stop()

    def price_region(self) -> str | None:
        """The location: Claude costs more in some."""
        return self._place

    def takes_prefill(self, model: str) -> bool:
        """Whether a model goes on from a last message of its own, as some of Claude's do."""
        return is_claude(model) and self._claude.takes_prefill(model)

    def remote_images(self, request: Request) -> Mapping[str, str]:
        """Those whose type their address does not tell; Claude's are Anthropic's to fetch."""
        return {} if is_claude(request.model) else super().remote_images(request)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The request in the format of the model's maker; what it leaves out is named in `dropped`.

        Raises BadRequest when the model cannot do what is asked, UpstreamError when there is no valid token.
        """
        if not is_claude(target.model):
            return super().prepare(request, target, headers)
        if request.operation is not Operation.CHAT:
            raise self._not_offered(request.operation)
        call = self._claude.call(request, target)
        fields = (*self._headers.build(headers, is_stream=call.is_stream), *self._credentials())
        url = self._url(target.model) + call.method
        return UpstreamRequest("POST", url, (*fields, *self._claude.headers(headers)), call.body, call.dropped)

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """The answer as a chat completion or a list of embeddings. Raises an UpstreamError when it is none."""
        if is_claude(request.model):
            return self._claude.answer(request, document, self._now())
        return super().answer(request, body, document)

    def stream_decoder(self, request: Request) -> StreamDecoder:
        """A decoder for a streamed answer."""
        if is_claude(request.model):
            return self._claude.stream_decoder(request, self._now())
        return super().stream_decoder(request)

    def _embed(self, document: Document, target: Target, omissions: Omissions) -> tuple[str, bytes]:
        asked = asked_embeddings(document, omissions)
        if "gemini" in target.model:
            return ":batchEmbedContents", vertex_batch_body(asked)
        return ":predict", predict_body(asked)

    def _url(self, model: str) -> str:
        return self._address(model, self._project or self._tokens.project)

    def _model_address(self, model: str, project: str | None = None) -> str:
        named, _, name = model.rpartition("/")
        publisher = named or (PUBLISHER if is_claude(model) else "google")
        return f"{self._parent(project)}/publishers/{quote(publisher, safe='')}/models/{quote(name, safe='@')}"

    def _parent(self, project: str | None) -> str:
        if project is not None:
            return f"{self._root}/projects/{project}/locations/{self._place}"
        if self._has_key:
            return self._root
        raise UpstreamError(
            f"The provider '{self.name}' has no project; set providers.{self.name}.project.",
            failure=Failure.AUTH,
            code="upstream_auth_error",
        )

    def _fixed_headers(self) -> Sequence[tuple[str, str]]:
        quota = (("x-goog-user-project", self._quota_project),) if self._quota_project else ()
        return (*super()._fixed_headers(), *quota)

    def _credentials(self) -> Sequence[tuple[str, str]]:
        return () if self._has_key else (("authorization", f"Bearer {self._token.value}"),)


def _host(place: str) -> str:
    if place == _EVERYWHERE:
        return "https://aiplatform.googleapis.com/v1"
    if place in _MULTI_REGIONS:
        return f"https://aiplatform.{place}.rep.googleapis.com/v1"
    return f"https://{place}-aiplatform.googleapis.com/v1"


def _account(text: str, key: str) -> Document:
    try:
        account = orjson.loads(text)
    except orjson.JSONDecodeError:
        account = None
    if not isinstance(account, Mapping) or account.get("type") != "service_account":
        raise ValueError(f"{key} is not a service account's key in JSON")
    return dict(account)
