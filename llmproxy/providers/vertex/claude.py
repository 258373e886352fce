"""Claude on Vertex AI: the Messages format, with the model's name in the address and a version in the body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmproxy.exchange import Target
from llmproxy.providers import StreamDecoder
from llmproxy.providers.anthropic import ClaudeConfig
from llmproxy.providers.anthropic.messages_format import MessagesFormat, merged_betas
from llmproxy.providers.anthropic.rules import load_models
from llmproxy.providers.headers import is_value
from llmproxy.request import Headers, Request

PUBLISHER: Final = "anthropic"
# Vertex AI has a name of its own for the older version of the API.
_VERSIONS: Final[Mapping[str, str]] = {"2023-06-01": "vertex-2023-10-16"}


def is_claude(model: str) -> bool:
    """Whether a model is one of Anthropic's."""
    return model.rpartition("/")[2].startswith("claude")


@dataclass(slots=True)
class ClaudeCall:
    """The method to call, with what, and which of the client's parameters that leaves out."""

    method: str
    body: bytes
    is_stream: bool
    dropped: tuple[str, ...]


class Claude:
    """Translates for one section."""

    def __init__(self, config: ClaudeConfig) -> None:
        self._format = MessagesFormat(load_models(), config.limits, drop_params=config.drop_params)
        self._betas = config.betas

    def takes_prefill(self, model: str) -> bool:
        """Whether a model goes on from a last message of its own."""
        return self._format.takes_prefill(_name(model))

    def call(self, request: Request, target: Target) -> ClaudeCall:
        """What to send. Raises BadRequest when the model cannot do what is asked."""
        native = self._format.request(request.document, _name(target.model))
        is_stream = request.is_stream or native.must_stream
        version = _VERSIONS.get(native.version, native.version)
        body = native.encode(anthropic_version=version, stream=is_stream)
        return ClaudeCall(":streamRawPredict" if is_stream else ":rawPredict", body, is_stream, native.dropped)

    def headers(self, client: Mapping[str, str]) -> Headers:
        """The beta features that the client and the section ask for."""
        betas = ",".join(merged_betas(client.get("anthropic-beta"), self._betas))
        return (("anthropic-beta", betas),) if betas and is_value(betas) else ()

    def answer(self, request: Request, message: dict[str, object], created: int) -> bytes:
        """The message as a chat completion. Raises an UpstreamError when it is an error, or no message."""
        return self._format.answer(request.document, _name(request.model), message, created)

    def stream_decoder(self, request: Request, created: int) -> StreamDecoder:
        """A decoder for the streamed message."""
        return self._format.stream_decoder(request.document, _name(request.model), created)


def _name(model: str) -> str:
    return model.rpartition("/")[2]
