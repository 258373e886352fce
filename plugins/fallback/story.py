"""What a client has had of a streamed answer, so that another attempt can go on from there."""

from __future__ import annotations

from typing import Any, Final

import orjson

from llmproxy.api import Document, Exchange, Operation, Request, Resume, SSEDecoder, Usage, event_data

# Far more than any event of text has.
MAX_EVENT_BYTES: Final = 16_777_216
REASONING: Final = ("reasoning_content", "reasoning", "reasoning_details")
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_INSTRUCTION: Final = (
    "Your answer above was cut off by a technical fault. Go on exactly where it stops, as if nothing had happened: "
    "repeat nothing of it, say nothing about the interruption, and begin with the very next character, "
    "which is a space if a new word is due."
)


class Story:
    """One answer's text so far, and what its chunks have in common.

    Attributes:
        envelope: The members that all chunks of the answer share: `id`, `created` and `model`.
        spent: The usage of the attempts that have told of it and were cut.
    """

    def __init__(self) -> None:
        self.envelope: Document = {}
        self.spent = Usage()
        self._pieces: list[str] = []
        self._decoder = SSEDecoder(MAX_EVENT_BYTES)
        self._obstacle: str | None = None
        self._is_thinking = False

    @property
    def text(self) -> str:
        """All that was said so far."""
        return "".join(self._pieces)

    @property
    def obstacle(self) -> str | None:
        """Why no other attempt can go on with it; None when one can."""
        is_without_text = self._is_thinking or not self._pieces
        return self._obstacle or ("it was cut in the middle of its reasoning" if is_without_text else None)

    def hear(self, data: bytes) -> None:
        """Read along with some bytes of the stream."""
        for raw in self._decoder.feed(data):
            document = document_of(raw)
            if document is not None:
                self.learn(document)

    def learn(self, document: Document) -> None:
        """Take note of one chunk as the client gets it."""
        if not self.envelope:
            self.envelope = {name: document[name] for name in ("id", "created", "model") if name in document}
        for choice in choices_of(document):
            self._learn_choice(choice)

    def cut(self, usage: Usage | None) -> None:
        """The attempt that told of it so far has ended too soon."""
        self._decoder = SSEDecoder(MAX_EVENT_BYTES)
        if usage is not None:
            self.spent = Usage(
                uncached_input_tokens=self.spent.input_tokens + usage.input_tokens,
                text_output_tokens=self.spent.output_tokens + usage.output_tokens,
            )

    def _learn_choice(self, choice: Document) -> None:
        if choice.get("index") or choice.get("logprobs"):
            self._obstacle = "it has more than one text, or log probabilities"
        delta = choice.get("delta") or {}
        if content := delta.get("content"):
            self._pieces.append(str(content))
            self._is_thinking = False
        if any(delta.get(name) for name in REASONING):
            self._is_thinking = True
        if any(value for name, value in delta.items() if name not in ("role", "content", *REASONING)):
            self._obstacle = "it was cut in a tool call, or in something else than text"


def can_be_told_in_parts(request: Request) -> bool:
    """Whether the answer to a request is one plain text, of which the rest can be asked for."""
    document = request.document
    shape = document.get("response_format")
    return (
        request.operation is Operation.CHAT
        and document.get("n") in (None, 1)
        and not document.get("logprobs")
        and (shape is None or (isinstance(shape, dict) and shape.get("type") == "text"))
        and isinstance(document.get("messages"), list)
    )


def ask_for_the_rest(exchange: Exchange, story: Story) -> Resume:
    """A request for what comes after the text so far, which stands in it as the beginning of the answer."""
    request = exchange.request.copy()
    document = request.document
    request.set("messages", [*document["messages"], {"role": "assistant", "content": story.text}])
    for name in _LIMITS:
        if isinstance(limit := document.get(name), int):
            request.set(name, max(limit - story.spent.output_tokens, 1))
    return Resume(request)


def instruct(request: Request) -> None:
    """Tell a model that would not go on from a beginning by itself what to do with it."""
    request.set("messages", [*request.document["messages"], {"role": "user", "content": _INSTRUCTION}])


def asks_for_reasoning(request: Request) -> bool:
    """Whether the model may think first, and then cannot be given the beginning of its answer."""
    document = request.document
    return any(document.get(name) not in (None, "none") for name in ("reasoning_effort", "reasoning", "thinking"))


def document_of(raw: bytes) -> Document | None:
    """The object in an event; None for comments and `[DONE]`."""
    data = event_data(raw)
    try:
        document = orjson.loads(data or b"null")
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def choices_of(document: Document) -> list[Document]:
    """The choices of a chunk."""
    # The value is whatever the provider sent.
    choices: Any = document.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
