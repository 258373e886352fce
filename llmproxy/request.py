"""The client's request, as it came and as it was edited since."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from llmproxy.splice import REMOVED, splice

# A decoded JSON object. Its values are whatever the client sent, so `Any` is the truth.
Document = dict[str, Any]
Headers = Sequence[tuple[str, str]]


class Operation(StrEnum):
    """What is asked for, in the words of `gen_ai.operation.name`."""

    CHAT = "chat"
    TEXT_COMPLETION = "text_completion"
    EMBEDDINGS = "embeddings"


class Request:
    """The client's request: its bytes as they came, the decoded document, and the edits made since.

    Read its attributes, and edit with `set` and `remove`, so that every member nobody touched keeps its bytes.

    Attributes:
        document: The request as JSON, edits included.
        model: The model name as it stands in the document.
        is_stream: Whether the client asked for server-sent events.
    """

    # Attributes rather than properties: they are read a dozen times for each request.
    __slots__ = ("_body", "_edits", "_encoded", "document", "is_stream", "model", "operation")

    def __init__(self, operation: Operation, body: bytes, document: Document) -> None:
        self.operation: Final = operation
        self._body = body
        self._edits: dict[str, Any] = {}
        # The body with the edits in it, as long as none is added: it is measured before it is sent.
        self._encoded: bytes | None = body
        self._read(document)

    @property
    def size_bytes(self) -> int:
        """The size of the body as the client sent it."""
        return len(self._body)

    @property
    def is_edited(self) -> bool:
        """Whether anything differs from what the client sent."""
        return bool(self._edits)

    def set(self, name: str, value: object) -> None:
        """Replace or add a top-level member."""
        self._edit(name, value, {**self.document, name: value})

    def remove(self, name: str) -> None:
        """Take a top-level member out; absent is fine."""
        if name in self.document:
            self._edit(name, REMOVED, {key: value for key, value in self.document.items() if key != name})

    def copy(self) -> Request:
        """The same request, edits included, to be edited on its own."""
        twin = Request(self.operation, self._body, self.document)
        twin._edits = dict(self._edits)
        twin._encoded = self._encoded
        return twin

    def encode(self) -> bytes:
        """The body to send: the client's own bytes with only the edited members replaced."""
        if self._encoded is None:
            self._encoded = splice(self._body, self._edits)
        return self._encoded

    def _edit(self, name: str, value: object, document: Document) -> None:
        self._edits[name] = value
        self._encoded = None
        self._read(document)

    def _read(self, document: Document) -> None:
        self.document = document
        self.model = str(document.get("model"))
        self.is_stream = document.get("stream") is True and self.operation is not Operation.EMBEDDINGS
