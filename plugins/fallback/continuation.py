"""The streams of an answer that may be told by several attempts, so that the client sees one."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from llmproxy.api import AnswerStream, Document, SSEDecoder, encode_event, event_data
from llmproxy_plugins.fallback.seam import Seam
from llmproxy_plugins.fallback.story import MAX_EVENT_BYTES, REASONING, Story, choices_of, document_of


class FirstLeg:
    """The answer's beginning: its bytes pass as they came, and the story is kept."""

    def __init__(self, stream: AnswerStream, story: Story) -> None:
        self._stream = stream
        self._story = story

    async def read(self) -> bytes:
        """The next bytes. Raises an UpstreamError when cut."""
        data = await self._stream.read()
        self._story.hear(data)
        return data

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()


class LaterLeg:
    """What follows on a cut: chunks of the same answer, with nothing said twice."""

    def __init__(self, stream: AnswerStream, story: Story) -> None:
        self._stream = stream
        self._story = story
        self._seam = Seam(story.text)
        self._decoder = SSEDecoder(MAX_EVENT_BYTES)

    async def read(self) -> bytes:
        """The next events. Raises an UpstreamError when cut."""
        while data := await self._stream.read():
            if events := b"".join(self._joined(self._decoder.feed(data))):
                return events
        return b""

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()

    def _joined(self, raw_events: Iterable[bytes]) -> Iterable[bytes]:
        for raw in raw_events:
            document = document_of(raw)
            if document is None:
                yield self._held_back(raw) + raw
            elif (changed := self._as_the_same_answer(document)) is not None:
                self._story.learn(changed)
                yield encode_event(orjson.dumps(changed))

    def _held_back(self, raw: bytes) -> bytes:
        """What an answer that ends without a finish reason leaves at the seam."""
        text = self._seam.finish() if event_data(raw) == b"[DONE]" else ""
        if not text:
            return b""
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        return encode_event(orjson.dumps({**self._story.envelope, "choices": [choice]}))

    def _as_the_same_answer(self, document: Document) -> Document | None:
        """The chunk as one of the answer that was begun; None when nothing of it is new."""
        choices = choices_of(document)
        told = [self._new_part(choice) for choice in choices]
        if choices and not any(told):
            return None
        changed = {**document, **self._story.envelope}
        if choices:
            changed["choices"] = [choice for choice in told if choice]
        if any(choice.get("finish_reason") for choice in choices):
            changed["llmproxy"] = {"resumed": True}
        if isinstance(usage := document.get("usage"), dict):
            changed["usage"] = self._summed(usage)
        return changed

    def _new_part(self, choice: Document) -> Document | None:
        """A choice without what the client has; None when there is nothing left in it."""
        delta = {name: value for name, value in (choice.get("delta") or {}).items() if name not in ("role", *REASONING)}
        text = self._seam.feed(str(delta.pop("content", None) or ""))
        is_last = bool(choice.get("finish_reason"))
        if is_last or any(delta.values()):
            text += self._seam.finish()
        if text:
            delta["content"] = text
        return {**choice, "delta": delta} if is_last or any(delta.values()) else None

    def _summed(self, usage: Document) -> Document:
        """What all attempts at the answer took together."""
        spent = self._story.spent
        earlier = {
            "prompt_tokens": spent.input_tokens,
            "completion_tokens": spent.output_tokens,
            "total_tokens": spent.total_tokens,
        }
        counted = {name: usage[name] + count for name, count in earlier.items() if isinstance(usage.get(name), int)}
        return {**usage, **counted}
