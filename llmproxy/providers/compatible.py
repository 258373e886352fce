"""Vendors that speak the OpenAI format with an accent: one class, and a row of `compatible.toml` for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, create_model, model_validator

from llmproxy.config import ProviderConfig
from llmproxy.dialects.upstream_events import MAX_EVENT_BYTES, is_whole
from llmproxy.exchange import Target
from llmproxy.providers import Provider, StreamDecoder
from llmproxy.providers.openai import OpenAI, OpenAIConfig
from llmproxy.providers.quirks import adapt
from llmproxy.providers.vendors import Vendor, load_vendors
from llmproxy.request import Document, Request
from llmproxy.services import UpstreamRequest
from llmproxy.sse import SSEDecoder
from llmproxy.usage import Usage

# Parts of a host name or path: nothing in them can lead to another host.
_PART: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# With its colon this is always a key: within a string the quotes would be escaped.
_REASONING: Final = b'"reasoning":'
_REASONING_CONTENT: Final = b'"reasoning_content":'


class Compatible(OpenAI):
    """An OpenAI-compatible vendor, as its row says."""

    vendor: ClassVar[Vendor]

    def authorization(self, key: str) -> tuple[str, str]:
        """The header that carries the key."""
        header = self.vendor.key_header
        return super().authorization(key) if header == "authorization" else (header, key)

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The client's body with what the vendor needs otherwise; what it does not have is named in `dropped`.

        Raises BadRequest when the vendor cannot do what is asked, UpstreamError when there is no key.
        """
        dropped = adapt(request, self.vendor)
        prepared = super().prepare(request, target, headers)
        return replace(prepared, dropped=dropped) if dropped else prepared

    def answer(self, request: Request, body: bytes, document: Document) -> bytes:
        """The vendor's answer, with reasoning text where clients look for it."""
        answered = super().answer(request, body, document)
        return answered if self.vendor.reasoning_field == "reasoning_content" else _renamed(answered)

    def stream_decoder(self, request: Request) -> StreamDecoder | None:
        """A decoder where reasoning text has another name, otherwise None."""
        return None if self.vendor.reasoning_field == "reasoning_content" else RenamedReasoning()

    def usage(self, document: Document) -> Usage | None:
        """Usage as the vendor counts it."""
        return super().usage(_with_reasoning(document) if self.vendor.reasoning_apart else document)


class RenamedReasoning:
    """A stream whose reasoning text gets the field name that clients know."""

    def __init__(self) -> None:
        self._events = SSEDecoder(MAX_EVENT_BYTES)

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The whole events so far. Raises UpstreamBroken when one does not end."""
        return [_renamed(event) for event in self._events.feed(data)]

    def finish(self) -> Sequence[bytes]:
        """The last event, when only its blank line was missing."""
        return [_renamed(event) for event in self._events.finish() if is_whole(event)]


def compatible_kinds() -> Sequence[type[Provider]]:
    """One provider kind for each row."""
    return [_kind(name, vendor) for name, vendor in load_vendors().items()]


def _kind(name: str, row: Vendor) -> type[Provider]:
    class Kind(Compatible):
        """One vendor."""

        vendor = row
        kind = name
        Config = _config(name, row)
        key_variables = row.key_variables
        price_provider = row.price_provider
        operations = row.operations
        vendor_url = row.base_url
        vendor_headers = row.headers
        needs_key = row.needs_key

    return Kind


class _PlacedConfig(OpenAIConfig):
    """A section for a vendor whose address has parts that differ from customer to customer."""

    parts: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _is_somewhere(self) -> _PlacedConfig:
        missing = [part for part in self.parts if getattr(self, part) is None]
        if missing and self.base_url is None:
            raise ValueError(f"set {' and '.join(missing)}, or base_url")
        return self


def _config(kind: str, row: Vendor) -> type[ProviderConfig]:
    names = row.parameters()
    if not names:
        return OpenAIConfig
    # create_model takes a field's type and default as a tuple, which its own signature can only call Any.
    fields: dict[str, Any] = {
        name: (Annotated[str | None, Field(pattern=_PART)], row.defaults.get(name)) for name in names
    }
    config = create_model(f"{kind}_config", __base__=_PlacedConfig, **fields)
    config.parts = names
    return config


def _renamed(data: bytes) -> bytes:
    if data.find(_REASONING) < 0 or data.find(_REASONING_CONTENT) >= 0:
        return data
    return data.replace(_REASONING, _REASONING_CONTENT)


def _with_reasoning(document: Document) -> Document:
    """The document with its reasoning tokens in `completion_tokens`, where every other vendor has them."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return document
    details = usage.get("completion_tokens_details")
    reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (isinstance(prompt, int) and isinstance(completion, int) and isinstance(reasoning, int)):
        return document
    if reasoning <= 0 or usage.get("total_tokens") == prompt + completion:
        return document
    return {**document, "usage": {**usage, "completion_tokens": completion + reasoning}}
