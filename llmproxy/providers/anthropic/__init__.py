"""Anthropic: Claude at its maker's own address, or any server that speaks the Messages format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

from pydantic import Field

from llmproxy.config import ProviderConfig
from llmproxy.errors import BadRequest
from llmproxy.exchange import Target
from llmproxy.model_facts import ModelFacts
from llmproxy.providers import Provider, StreamDecoder
from llmproxy.providers.anthropic.messages_format import MessagesFormat, merged_betas
from llmproxy.providers.anthropic.rules import load_models
from llmproxy.providers.anthropic.thinking import BUDGETS, Limits, ReasoningEffort
from llmproxy.providers.headers import RequestHeaders, is_value
from llmproxy.providers.vendor import VendorConfig
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest

_URL: Final = "https://api.anthropic.com"
_ALWAYS: Final = (("content-type", "application/json"), ("accept-encoding", "identity"))


class ClaudeConfig(VendorConfig):
    """What a section may hold for every host of Claude."""

    betas: tuple[str, ...] = Field(default=(), description="Beta features asked for with every request.")
    default_max_tokens: int | None = Field(
        default=None, ge=1, description="Limit of an answer when the request sets none; null: the model's own."
    )
    thinking_budgets: Mapping[ReasoningEffort, int] = Field(
        default_factory=dict, description="Tokens per reasoning effort, for models that want a number."
    )

    @property
    def limits(self) -> Limits:
        """The section's numbers, with the house's own where it sets none."""
        return Limits(self.default_max_tokens, {**BUDGETS, **self.thinking_budgets})


class AnthropicConfig(ClaudeConfig):
    """A section for Anthropic, or a server that speaks its format."""

    auth: Literal["x-api-key", "bearer"] = Field(default="x-api-key", description="How the key is sent.")


class Anthropic(Provider):
    """The Messages API. With another `base_url`, any server that speaks it; a key is then optional."""

    kind: ClassVar[str] = "anthropic"
    Config: ClassVar[type[ProviderConfig]] = AnthropicConfig
    key_variables: ClassVar[tuple[str, ...]] = ("ANTHROPIC_API_KEY",)
    price_provider: ClassVar[str | None] = "anthropic"
    priced_regions: ClassVar[tuple[str, ...]] = ("us",)
    operations: ClassVar[frozenset[Operation]] = frozenset({Operation.CHAT})

    def __init__(self, name: str, config: AnthropicConfig, services: Services) -> None:
        super().__init__(name, config, services)
        base = (config.base_url or _URL).rstrip("/").removesuffix("/v1")
        self._url = f"{base}/v1/messages"
        fixed = {field.lower(): value for field, value in config.headers.items()}
        self._betas = merged_betas(fixed.pop("anthropic-beta", None), config.betas)
        self._version = fixed.pop("anthropic-version", None)
        headers = (*_ALWAYS, *_authentication(config), *fixed.items())
        self._headers = RequestHeaders(headers, ("user-agent", *config.forward_headers))
        self._format = MessagesFormat(load_models(), config.limits, drop_params=config.drop_params)
        self._is_locked = config.api_key is None and config.base_url is None

    def model_facts(self, model: str) -> ModelFacts:
        """How much a model can answer with."""
        return self._format.facts(model)

    def takes_prefill(self, model: str) -> bool:
        """Whether a model goes on from a last message of its own; the newest do not."""
        return self._format.takes_prefill(model)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The request in the Messages format; long answers are asked for as a stream, also when the client did not.

        Raises BadRequest when the model cannot do what is asked, UpstreamError when there is no key.
        """
        if self._is_locked:
            raise self.missing_key()
        if request.operation not in self.operations:
            raise BadRequest(f"The provider '{self.name}' does not offer {request.operation.value.replace('_', ' ')}.")
        native = self._format.request(request.document, target.model)
        is_stream = request.is_stream or native.must_stream
        body = native.encode(model=target.model, stream=is_stream)
        fields = [*self._headers.build(headers, is_stream=is_stream)]
        fields.append(("anthropic-version", self._version or native.version))
        betas = ",".join(merged_betas(headers.get("anthropic-beta"), self._betas))
        if betas and is_value(betas):
            fields.append(("anthropic-beta", betas))
        return UpstreamRequest("POST", self._url, fields, body, native.dropped)

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """The message as a chat completion. Raises an UpstreamError when it is an error, or no message."""
        return self._format.answer(request.document, request.model, document, self._now())

    def stream_decoder(self, request: Request) -> StreamDecoder:
        """A decoder for the streamed message."""
        return self._format.stream_decoder(request.document, request.model, self._now())

    def _now(self) -> int:
        return int(self.services.clock.now().timestamp())


def _authentication(config: AnthropicConfig) -> tuple[tuple[str, str], ...]:
    if config.api_key is None:
        return ()
    key = config.api_key.get_secret_value()
    return (("authorization", f"Bearer {key}"),) if config.auth == "bearer" else (("x-api-key", key),)
