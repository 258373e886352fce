"""The Responses API, asked in place of chat completions where a model refuses there what it can do here."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from llmproxy.providers.responses.answer import chat_answer
from llmproxy.providers.responses.models import load_models
from llmproxy.providers.responses.request import ResponsesRequest, responses_request
from llmproxy.providers.responses.stream import ResponseEvents, ResponsesDecoder
from llmproxy.request import Document, Operation, Request

ResponsesMode = Literal["auto", "never", "always"]
_REMEMBERED_MODELS = 256


class ResponsesBridge:
    """Chat completions over the Responses API.

    Args:
        issuer: The provider's name: reasoning that another one encrypted is not sent to it.
        mode: `auto` takes what chat completions would refuse, `always` every chat.
    """

    def __init__(self, issuer: str, mode: ResponsesMode) -> None:
        self._issuer = issuer
        self._mode = mode
        self._rules = lru_cache(_REMEMBERED_MODELS)(load_models().rules)

    def takes(self, request: Request, model: str) -> bool:
        """Whether a request goes this way.

        Args:
            model: What the vendor calls the model, also where the customer calls it something else.
        """
        if request.operation is not Operation.CHAT or self._mode == "never":
            return False
        rules = self._rules(model)
        return self._mode == "always" or (rules is not None and rules.refuses(request.document))

    def request(self, document: Document, model: str) -> ResponsesRequest:
        """A chat completions request, translated. Raises BadRequest when the Responses API cannot do what it asks."""
        return responses_request(document, self._issuer, reasons=self._rules(model) is not None)

    def answer(self, response: Document, model: str, created: int) -> bytes:
        """The answer as a chat completion. Raises an UpstreamError when it is an error, or no answer."""
        return chat_answer(response, self._issuer, model, created).encode()

    def stream_decoder(self, model: str, created: int) -> ResponsesDecoder:
        """A decoder for the streamed answer."""
        return ResponsesDecoder(ResponseEvents(self._issuer, model, created))
