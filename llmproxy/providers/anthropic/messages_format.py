"""The Messages format, wherever Claude is hosted: chat completions in, chat completions out."""

from __future__ import annotations

from collections.abc import Sequence

from llmproxy.model_facts import ModelFacts
from llmproxy.providers.anthropic.answer import chat_answer
from llmproxy.providers.anthropic.request import NativeRequest, native_request
from llmproxy.providers.anthropic.rules import ModelTable
from llmproxy.providers.anthropic.stream import MessageEvents, MessagesDecoder
from llmproxy.providers.anthropic.thinking import Limits
from llmproxy.providers.anthropic.tools import answer_plan
from llmproxy.request import Document


class MessagesFormat:
    """Translates for one provider; addresses and credentials are the provider's business.

    `model` is always Claude's name, in any host's spelling; the rules for it come from the table.

    Args:
        drop_params: Leave out what a model cannot do, instead of refusing the request.
    """

    def __init__(self, models: ModelTable, limits: Limits, *, drop_params: bool = False) -> None:
        self._models = models
        self._limits = limits
        self._drop_params = drop_params

    def facts(self, model: str) -> ModelFacts:
        """What the table knows of a model."""
        rules = self._models.known(model)
        return ModelFacts(max_output_tokens=rules.max_output_tokens) if rules else ModelFacts()

    def takes_prefill(self, model: str) -> bool:
        """Whether a model goes on from a last message of its own."""
        return self._models.rules(model).prefill

    def request(self, document: Document, model: str) -> NativeRequest:
        """A chat completions request, translated. Raises BadRequest when the model cannot do what it asks."""
        return native_request(document, self._models.rules(model), self._limits, drop_params=self._drop_params)

    def answer(self, document: Document, model: str, message: Document, created: int) -> bytes:
        """The chat completion for a whole message; `document` is the request, `created` in Unix seconds.

        Raises UpstreamRefused when the message is an error, UpstreamBroken when it is none.
        """
        return chat_answer(message, answer_plan(document, self._models.rules(model)), model, created).encode()

    def events(self, document: Document, model: str, created: int) -> MessageEvents:
        """What turns the events of a streamed message into chunks, for hosts that wrap them in their own way."""
        return MessageEvents(answer_plan(document, self._models.rules(model)), model, created)

    def stream_decoder(self, document: Document, model: str, created: int) -> MessagesDecoder:
        """A decoder for a message streamed as server-sent events."""
        return MessagesDecoder(self.events(document, model, created))


def merged_betas(header: str | None, configured: Sequence[str]) -> tuple[str, ...]:
    """The beta features to ask for: the client's `anthropic-beta` header, then the operator's, each once."""
    if not header and not configured:
        return ()
    asked = [name.strip() for name in (header or "").split(",")]
    return tuple(dict.fromkeys(name for name in (*asked, *configured) if name))
