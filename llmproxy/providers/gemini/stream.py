"""What `streamGenerateContent?alt=sse` sends, as chat completion chunks.

Every event is a whole response with the next pieces in it. Nothing marks the end: the stream is complete when it is
over and every candidate has said why it finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from llmproxy.dialects.chat_answer import AnsweredCall, AnswerIdentity, ChunkWriter, FinishReason, custom_input
from llmproxy.dialects.objects import objects_in
from llmproxy.dialects.upstream_events import ObjectEvent, ObjectEvents, cut_short
from llmproxy.errors import UpstreamBroken
from llmproxy.providers.gemini import errors
from llmproxy.providers.gemini.answer import (
    call_of,
    failed,
    finish_reason,
    identified,
    image_of,
    is_failure,
    logprobs_of,
    parts_of,
    prompt_refusal,
    searches_of,
    signature_of,
    text_of,
    usage_of,
)
from llmproxy.providers.gemini.citations import citations_of
from llmproxy.providers.gemini.content import Issuer
from llmproxy.request import Document

_MAX_CANDIDATES: Final = 8


class GeminiStream:
    """One streamed answer.

    Args:
        identity: What its chunks repeat; the provider's own id and model name take its place when they come.
        customs: Names of the tools whose calls are to look like a custom tool's.
    """

    def __init__(self, identity: AnswerIdentity, issuer: Issuer, customs: frozenset[str] = frozenset()) -> None:
        self._identity = identity
        self._issuer = issuer
        self._customs = customs
        self._events = ObjectEvents()
        self._candidates: dict[int, _Candidate] = {}
        self._usage: Document = {}
        self._searches: dict[int, int] = {}
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The chunks for the events so far. Raises UpstreamRefused for an error event, UpstreamBroken for garbage."""
        for event in self._events.feed(data):
            yield from self._read(event)

    def finish(self) -> Sequence[bytes]:
        """What comes last: finish reasons, usage and the end mark. Raises UpstreamCut when the answer is not whole."""
        chunks = [chunk for event in self._events.finish() for chunk in self._read(event)]
        candidates = list(self._candidates.values())
        if not candidates or not all(candidate.reason for candidate in candidates):
            raise cut_short()
        chunks.extend(candidate.last() for candidate in candidates)
        usage = usage_of(self._usage, sum(self._searches.values())) if self._usage else None
        return [*chunks, ChunkWriter(self._identity).end(usage)]

    def _read(self, event: ObjectEvent) -> Iterator[bytes]:
        document = event.document
        if document is None:
            return
        if (error := errors.stated(document)) is not None:
            raise error
        self._begin(document)
        metadata = document.get("usageMetadata")
        if isinstance(metadata, dict):
            # Counts are cumulative, but not every event has all of them.
            self._usage |= metadata
        if (refusal := prompt_refusal(document)) is not None:
            yield from self._candidate(0).refuse(*refusal)
        for position, candidate in enumerate(objects_in(document.get("candidates"))):
            index = candidate.get("index", position)
            if not isinstance(index, int) or not 0 <= index < _MAX_CANDIDATES:
                raise UpstreamBroken("The provider's stream numbers its candidates wrongly.")
            # Some events repeat the queries of those before.
            searches = searches_of(candidate, self._identity.model)
            self._searches[index] = max(self._searches.get(index, 0), searches)
            yield from self._candidate(index).add(candidate)

    def _begin(self, document: Document) -> None:
        if not self._has_begun:
            self._has_begun = True
            known = self._identity
            self._identity = identified(document, known.model, known.created, known.id)

    def _candidate(self, index: int) -> _Candidate:
        if index not in self._candidates:
            writer = ChunkWriter(self._identity, index)
            self._candidates[index] = _Candidate(writer, self._issuer, self._customs)
        return self._candidates[index]


class _Candidate:
    """One choice of the answer as it grows."""

    def __init__(self, writer: ChunkWriter, issuer: Issuer, customs: frozenset[str]) -> None:
        self._writer = writer
        self._issuer: Issuer = issuer
        self._customs = customs
        self._call_ids: set[str] = set()
        self._texts: list[str] = []
        # Google's own word; the last one holds, for some models say STOP in every event.
        self.reason = ""
        self._refusal: FinishReason | None = None

    def add(self, candidate: Document) -> Iterator[bytes]:
        for part in parts_of(candidate):
            yield from self._part(part)
        if (logprobs := logprobs_of(candidate)) is not None:
            yield self._writer.logprobs(logprobs)
        if cited := citations_of(candidate, ["".join(self._texts)]):
            yield self._writer.delta(annotations=cited)
        reason = candidate.get("finishReason")
        if isinstance(reason, str) and reason:
            if is_failure(reason):
                raise failed(reason)
            self.reason = reason

    def refuse(self, reason: str, message: str) -> Iterator[bytes]:
        self.reason = reason
        self._refusal = "content_filter"
        yield self._writer.delta(refusal=message)

    def last(self) -> bytes:
        reason = self._refusal or finish_reason(self.reason, has_calls=bool(self._call_ids))
        return self._writer.finish(reason, self.reason)

    def _part(self, part: Document) -> Iterator[bytes]:
        text = text_of(part)
        if (call := call_of(part, self._issuer, self._customs, self._call_ids)) is not None:
            self._call_ids.add(call.id)
            yield from self._call(call)
            return
        if (image := image_of(part)) is not None:
            yield self._writer.delta(images=[image])
        elif text and part.get("thought") is True:
            yield self._writer.reasoning(text)
        elif text:
            self._texts.append(text)
            yield self._writer.text(text)
        if kept := signature_of(part, self._issuer):
            yield self._writer.delta(extra_content=kept)

    def _call(self, call: AnsweredCall) -> Iterator[bytes]:
        if call.is_custom:
            yield self._writer.custom_call(call.id, call.name, custom_input(call.arguments))
            return
        index = self._writer.tool_count
        yield self._writer.tool_start(call.id, call.name, call.extra_content)
        yield self._writer.tool_arguments(index, call.arguments)
