"""What a client of the gateway got, read to its end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmproxy.request import Document
from llmproxy.sse import SSEDecoder, event_data

_MAX_EVENT_BYTES = 16_777_216


@dataclass(frozen=True, slots=True)
class ProxyResponse:
    """One response. `headers` are looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Document:
        """The body as JSON. Raises ValueError when it is none."""
        document: Document = json.loads(self.body)
        return document

    @property
    def events(self) -> Sequence[Document]:
        """The documents of a streamed answer, in order, without `[DONE]`."""
        return [json.loads(data) for data in self._data() if data != b"[DONE]"]

    @property
    def is_done(self) -> bool:
        """Whether a streamed answer ended with `[DONE]`, as only a complete one does."""
        return list(self._data())[-1:] == [b"[DONE]"]

    @property
    def text(self) -> str:
        """What the model said, whole or streamed, in the first choice; empty when it said nothing."""
        return "".join(self._texts())

    @property
    def _is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def _data(self) -> Iterator[bytes]:
        for event in SSEDecoder(_MAX_EVENT_BYTES).feed(self.body):
            data = event_data(event)
            if data is not None:
                yield data

    def _texts(self) -> Iterator[str]:
        for document in self.events if self._is_stream else [self.document]:
            for choice in document.get("choices", [])[:1]:
                said = choice.get("delta") or choice.get("message") or {}
                yield said.get("content") or choice.get("text") or ""
