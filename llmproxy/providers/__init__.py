"""What a provider is: one configured endpoint of a vendor, and how to speak with it.

A provider kind is a class; a section under `providers:` makes one instance of it. Ours register through the
same `register_providers` hook as a stranger's. Translation is sans-io: documents and bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from llmproxy.config import ProviderConfig, Timeouts
from llmproxy.dialects.openai_chat import usage_of
from llmproxy.dialects.openai_errors import error_in, error_of
from llmproxy.errors import Failure, UpstreamError
from llmproxy.exchange import Target
from llmproxy.model_facts import ModelFacts
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Services, UpstreamRequest, UpstreamResponse
from llmproxy.usage import Usage


class StreamDecoder(Protocol):
    """Turns a vendor's stream into OpenAI server-sent events, piece by piece."""

    def feed(self, data: bytes) -> Iterable[bytes]:
        """Whole OpenAI events for the bytes so far.

        Raises an UpstreamError on an error event or garbage; a generator does so after the events before it.
        """

    def finish(self) -> Iterable[bytes]:
        """The events that only the end brings. Raises UpstreamCut when the vendor's stream was not complete."""


class Transport(Protocol):
    """How a request reaches an upstream: core's HTTP engine, or a provider's own."""

    def send(self, request: UpstreamRequest, timeouts: Timeouts) -> Awaitable[UpstreamResponse]:
        """Send, and return once the response's head is there. Raises an UpstreamError."""


class Provider:
    """One configured endpoint. The base class speaks the OpenAI format; vendors override what differs.

    Class attributes:
        kind: What `kind:` names in a provider section.
        Config: The model of the section.
        key_variables: Environment variables that usually hold the key, the first that is set wins.
        needs_key: Whether the vendor's own address cannot be asked without a key in the section.
        price_provider: The vendor's id in the price data; None when nothing is known of its prices.
        priced_regions: Where an answer may say that it was computed, at a price of its own.
        has_own_names: Models are called what the customer likes: the price data's names mean nothing here.
        operations: What the endpoint can be asked for.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[ProviderConfig]] = ProviderConfig
    key_variables: ClassVar[tuple[str, ...]] = ()
    needs_key: ClassVar[bool] = True
    price_provider: ClassVar[str | None] = None
    priced_regions: ClassVar[tuple[str, ...]] = ()
    has_own_names: ClassVar[bool] = False
    operations: ClassVar[frozenset[Operation]] = frozenset(Operation)

    # None: core's HTTP engine sends what `prepare` made.
    transport: Transport | None = None

    def __init__(self, name: str, config: ProviderConfig, services: Services) -> None:
        self.name = name
        self.config = config
        self.services = services

    async def startup(self) -> None:
        """Open what requests will need, such as a first access token."""

    async def shutdown(self) -> None:
        """Close what `startup` opened."""

    def model_names(self) -> Sequence[str]:
        """The models to list in `/v1/models`: what the section names, or what the kind knows of itself."""
        return self.config.models

    def serves(self, model: str) -> bool:
        """Whether the endpoint may have this model; by default only the vendor knows.

        A kind that knows its models says no to others, so that a misspelt one is refused with the nearest names.
        """
        return True

    def price_model(self, model: str) -> str:
        """What the price data calls a model of this endpoint; by default what everybody calls it."""
        return model

    def price_region(self) -> str | None:
        """What tells where the endpoint computes, for vendors that charge more in some regions: by default its host."""
        return urlsplit(self.config.base_url).hostname if self.config.base_url else None

    def model_facts(self, model: str) -> ModelFacts:
        """What the kind itself knows of a model; what it leaves open is looked for in the tables."""
        return ModelFacts()

    def takes_prefill(self, model: str) -> bool:
        """Whether a model goes on from a last message of its own, which makes it the beginning of its answer."""
        return False

    def remote_images(self, request: Request) -> Mapping[str, str]:
        """Addresses of images of which the vendor takes the bytes only, each with where it stands in the request.

        They are fetched, and `split` and `prepare` then find data URLs in their place.
        """
        return {}

    def split(self, request: Request) -> Sequence[Request]:
        """The request in parts, each small enough for one call; itself alone unless it is a large embeddings batch.

        Each part is prepared, sent and answered on its own, and their answers become one again.
        Raises BadRequest when there would be too many.
        """
        return (request,)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The HTTP request for one attempt: address, credentials, translated body.

        `headers` are the client's; only those that may travel on are copied.
        Raises BadRequest when the vendor cannot do what is asked, UpstreamError when credentials are missing.
        """
        raise NotImplementedError

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """The vendor's whole answer to `request` as an OpenAI body; `document` is `body` decoded.

        Unchanged by default. Raises an UpstreamError when the answer holds an error, or is none.
        """
        if error := error_in(document, request.operation):
            raise error
        return body

    def stream_decoder(self, request: Request) -> StreamDecoder | None:
        """A decoder for the streamed answer to `request`; None when the vendor already sends OpenAI events."""
        return None

    def usage(self, document: Document) -> Usage | None:
        """Usage from an OpenAI-format answer or its usage chunk, None when it holds none."""
        return usage_of(document)

    def missing_key(self) -> UpstreamError:
        """The error for a request that cannot be sent because the section holds no key."""
        variables = " or ".join((*self.key_variables[:1], f"providers.{self.name}.api_key"))
        return UpstreamError(
            f"The provider '{self.name}' has no api_key; set {variables}.",
            failure=Failure.AUTH,
            code="upstream_auth_error",
        )

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """The vendor's error response as an UpstreamError, classified once for failover."""
        return error_of(status, headers, body)


# Every provider by its name and the label of one of its keys; None where it has one key, or none.
Endpoints = Mapping[tuple[str, str | None], Provider]
