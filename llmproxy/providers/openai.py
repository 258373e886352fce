"""OpenAI, and any server that speaks its format: the client's own bytes with the gateway's credentials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from pydantic import Field, SecretStr, field_validator

from llmproxy.config import ProviderConfig
from llmproxy.errors import BadRequest
from llmproxy.exchange import Target
from llmproxy.providers import Provider, StreamDecoder
from llmproxy.providers.chat_completions import ChatCompletions
from llmproxy.providers.headers import RequestHeaders, checked_forwards, checked_headers, is_value
from llmproxy.providers.responses import ResponsesBridge, ResponsesMode
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest

PATHS: Final[Mapping[Operation, str]] = {
    Operation.CHAT: "/chat/completions",
    Operation.TEXT_COMPLETION: "/completions",
    Operation.EMBEDDINGS: "/embeddings",
}
HEADER_WORD: Final = r"^[!-~]+$"
_FORWARDED: Final = ("user-agent", "idempotency-key", "openai-beta")
_ALWAYS: Final = (("content-type", "application/json"), ("accept-encoding", "identity"))


class OpenAIConfig(ProviderConfig):
    """A section for a server that speaks the OpenAI format."""

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: Mapping[str, str]) -> Mapping[str, str]:
        return checked_headers(headers)

    @field_validator("forward_headers")
    @classmethod
    def _forwards_are_harmless(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_forwards(names))

    @field_validator("api_key")
    @classmethod
    def _key_is_one_line(cls, key: SecretStr | None) -> SecretStr | None:
        """Keys read from files often end in a line break, which no key contains."""
        stripped = key.get_secret_value().strip() if key else ""
        if not is_value(stripped):
            raise ValueError("the key has a line break in it")
        return SecretStr(stripped) if stripped else None


class OpenAIHostConfig(OpenAIConfig):
    """A section for a host of OpenAI's own models."""

    responses: ResponsesMode = Field(
        default="auto",
        description="Chats that go through the Responses API: auto (what chat completions refuse), never or always.",
    )


class OpenAIVendorConfig(OpenAIHostConfig):
    """A section for OpenAI itself."""

    organization: str | None = Field(
        default=None, pattern=HEADER_WORD, description="Whose account is charged, where a key has several."
    )
    project: str | None = Field(default=None, pattern=HEADER_WORD, description="The project of the organization.")


class OpenAI(Provider):
    """The OpenAI API. With another `base_url`, any server that speaks its format; a key is then optional.

    Class attributes, in which `{key}` stands for a key of the section:
        vendor_url: The vendor's own address.
        vendor_headers: What the vendor wants beside the key; a header whose key is unset is left out.
        paths: Where each operation is, below the address.
    """

    kind: ClassVar[str] = "openai"
    Config: ClassVar[type[ProviderConfig]] = OpenAIVendorConfig
    key_variables: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)
    price_provider: ClassVar[str | None] = "openai"
    vendor_url: ClassVar[str] = "https://api.openai.com/v1"
    vendor_headers: ClassVar[Mapping[str, str]] = {
        "openai-organization": "{organization}",
        "openai-project": "{project}",
    }
    paths: ClassVar[Mapping[Operation, str]] = PATHS

    def __init__(self, name: str, config: ProviderConfig, services: Services) -> None:
        super().__init__(name, config, services)
        base = (config.base_url or _filled(self.vendor_url, config) or "").rstrip("/")
        self._locate(base)
        fixed = (*_ALWAYS, *self._vendor_headers(), *self._authentication(), *config.headers.items())
        self._headers = RequestHeaders(fixed, (*_FORWARDED, *config.forward_headers))
        self._is_locked = self.needs_key and config.api_key is None and config.base_url is None
        hosted = config if isinstance(config, OpenAIHostConfig) else None
        self._bridge = ResponsesBridge(name, hosted.responses) if hosted else None
        self._chat_completions = ChatCompletions.load() if hosted else None

    def authorization(self, key: str) -> tuple[str, str]:
        """The header that carries the key."""
        return ("authorization", f"Bearer {key}")

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The client's body, byte for byte but for the edits made so far, with the gateway's key.

        What the model refuses on chat completions goes to the Responses API, translated, where that takes it; what
        OpenAI does not know of other vendors' conversations is left out, and named in `dropped`.
        Raises BadRequest for what the vendor does not have, UpstreamError when there is no key.
        """
        self.refuse_unserved(request)
        if not request.is_stream:
            # Beside a whole answer they are an error.
            request.remove("stream_options")
        if (bridge := self._bridge_for(request)) is None:
            dropped = self._adapted(request)
            return self.post(request, headers, request.encode(), dropped)
        native = bridge.request(request.document, self.price_model(request.model))
        return replace(self.post(request, headers, native.encode(), native.dropped), url=self._responses_url)

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """The vendor's answer, unchanged; one from the Responses API as a chat completion. Raises an UpstreamError."""
        if (bridge := self._bridge_for(request)) is None:
            return super().answer(request, body, document)
        return bridge.answer(document, request.model, self._now())

    def stream_decoder(self, request: Request) -> StreamDecoder | None:
        """A decoder for what comes from the Responses API; None for chat completions."""
        bridge = self._bridge_for(request)
        return None if bridge is None else bridge.stream_decoder(request.model, self._now())

    def refuse_unserved(self, request: Request) -> None:
        """Raise BadRequest for an operation that the vendor does not have, UpstreamError when there is no key."""
        if self._is_locked:
            raise self.missing_key()
        if request.operation not in self.operations:
            raise BadRequest(f"The provider '{self.name}' does not offer {request.operation.value.replace('_', ' ')}.")

    def post(
        self, request: Request, headers: Mapping[str, str], body: bytes, dropped: tuple[str, ...] = ()
    ) -> UpstreamRequest:
        """`body` on its way to where `request` belongs, with the gateway's key and what the client's headers add."""
        fields = self._headers.build(headers, is_stream=request.is_stream)
        return UpstreamRequest("POST", self._urls[request.operation], fields, body, dropped)

    def _locate(self, base: str) -> None:
        """Settle where requests go, below this address."""
        self._urls = {operation: base + path for operation, path in self.paths.items()}
        self._responses_url = f"{base}/responses"

    def _adapted(self, request: Request) -> tuple[str, ...]:
        """What was left out of a request for OpenAI's own models to accept it."""
        rules = self._chat_completions
        return () if rules is None else rules.adapt(request, self.price_model(request.model))

    def _bridge_for(self, request: Request) -> ResponsesBridge | None:
        """The way over the Responses API, for a request that takes it."""
        bridge = self._bridge
        return bridge if bridge is not None and bridge.takes(request, self.price_model(request.model)) else None

    def _now(self) -> int:
        return int(self.services.clock.now().timestamp())

    def _vendor_headers(self) -> Iterator[tuple[str, str]]:
        for name, template in self.vendor_headers.items():
            if value := _filled(template, self.config):
                yield name, value

    def _authentication(self) -> Sequence[tuple[str, str]]:
        key = self.config.api_key
        return (self.authorization(key.get_secret_value()),) if key else ()


def _filled(template: str, config: ProviderConfig) -> str | None:
    """A template with the section's keys in it; None when one that it needs is unset."""
    try:
        return template.format_map({name: value for name, value in config if value is not None})
    except KeyError:
        return None
