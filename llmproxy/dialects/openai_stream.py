"""What must be known of a stream that nobody inspects, learned without decoding most of its events."""

from __future__ import annotations

import re
from typing import Final

from llmproxy.dialects.objects import objects_in
from llmproxy.dialects.openai_chat import reported_usage
from llmproxy.dialects.openai_errors import stated_error
from llmproxy.dialects.upstream_events import object_or_none
from llmproxy.errors import UpstreamBroken, UpstreamError
from llmproxy.request import Document
from llmproxy.sse import event_data

# Keys whose value is not null. Inside a string the quotes would be escaped, so a match is a key, or a value as short.
_MARKER: Final = re.compile(rb'"(?:error"|usage"(?!: ?null)|finish_reason"(?!: ?null))')
_DONE: Final = b"[DONE]"
# How every event that is not [DONE] ends.
_OBJECT_END: Final = b"}\n\n"
# An event's JSON around its text, until a smaller one has been seen.
_USUAL_ENVELOPE_BYTES: Final = 300
_BYTES_PER_TOKEN: Final = 4
# So much of its beginning tells what a stream is like: some sixteen events.
_SAMPLE_BYTES: Final = 4096
_CONTENT_MEMBERS: Final = (
    "content",
    "tool_calls",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "refusal",
    "audio",
    "function_call",
    "images",
)


class StreamFacts:
    """Reads along with a stream of OpenAI events.

    Args:
        hide_usage: Leave out the extra event that only carries usage: the client did not ask for it.
        choices: How many choices the answer will have.

    Attributes:
        usage: A document whose `usage` is what the provider told so far; None when it told nothing.
        error: The error that ends the stream; it is not relayed, and nothing should be fed after it.
        event_count: How many events have passed, comments and `[DONE]` aside.
        size_bytes: The size of them all.
        saw_done: Whether `[DONE]` has passed.
        has_content: Whether anything a user could notice has passed; from then on events are no longer decoded.
    """

    __slots__ = (
        "_choices",
        "_envelope_bytes",
        "_finish_reasons",
        "_hide_usage",
        "_sample",
        "_sample_room",
        "error",
        "event_count",
        "has_content",
        "saw_done",
        "size_bytes",
        "usage",
    )

    def __init__(self, *, hide_usage: bool, choices: int = 1) -> None:
        self._hide_usage = hide_usage
        self._choices = choices
        self._finish_reasons: dict[int, str] = {}
        self._sample: list[bytes] = []
        self._sample_room = _SAMPLE_BYTES
        self._envelope_bytes = _USUAL_ENVELOPE_BYTES
        self.usage: Document | None = None
        self.error: UpstreamError | None = None
        self.event_count = self.size_bytes = 0
        self.saw_done = False
        self.has_content = False

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Each choice's finish reason, in the order of the choices."""
        return tuple(reason for _, reason in sorted(self._finish_reasons.items()))

    @property
    def is_complete(self) -> bool:
        """Whether the answer has come to its end: `[DONE]`, or a finish reason for every choice."""
        return self.saw_done or len(self._finish_reasons) >= self._choices

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens have passed: one an event, and more where events hold more than their envelope."""
        return self.event_count + max(0, self.size_bytes - self.event_count * self._envelope_bytes) // _BYTES_PER_TOKEN

    @property
    def sample(self) -> bytes:
        """The first events with content: as many whole ones as tell what the others are like."""
        return b"".join(self._sample)

    def feed(self, events: bytes) -> bytes:
        """What to relay of these whole events: mostly, exactly these."""
        count = self.event_count
        relayed = self._pass_on(events)
        count = self.event_count - count
        if count:
            self.size_bytes += len(events)
            self._envelope_bytes = min(self._envelope_bytes, len(events) // count)
            if self._sample_room > 0 and self.has_content:
                self._keep(relayed)
        return relayed

    def _keep(self, events: bytes) -> None:
        """Add whole events to the sample, up to the first that there is no room for."""
        end = events.find(b"\n\n", self._sample_room)
        self._sample.append(events if end < 0 else events[: end + 2])
        self._sample_room -= len(events)

    def _pass_on(self, events: bytes) -> bytes:
        if self.has_content and events[-3:] == _OBJECT_END and not _MARKER.search(events):
            if events.find(b"\n") == len(events) - 2:
                self.event_count += 1
                return events
            if events.find(_DONE) == -1:
                self.event_count += events.startswith(b"data:") + events.count(b"\ndata:")
                return events
        return self._read(events)

    def _read(self, events: bytes) -> bytes:
        relayed = []
        for piece in events.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
            event = piece.lstrip(b"\n")
            is_hidden = self._learn_event(event + b"\n\n") if event else True
            if self.error is not None:
                break
            if not is_hidden:
                relayed.append(event + b"\n\n")
        return b"".join(relayed)

    def _learn_event(self, event: bytes) -> bool:
        """Learn from an event; True when the client should not see it."""
        data = event_data(event)
        if data is None:
            return False
        if data.startswith(_DONE):
            self.saw_done = True
            return False
        self.event_count += 1
        document = object_or_none(data)
        if document is None and not self.has_content:
            # Another target may still answer; once the client has part of the answer, it is the client's to judge.
            self.error = UpstreamBroken("The provider's stream began with something that is not an event.")
            return False
        document = document or {}
        self.error = stated_error(document)
        if self.error is not None:
            return False
        choices = objects_in(document.get("choices"))
        for position, choice in enumerate(choices):
            self._learn_choice(position, choice)
        return self._learn_usage(document) and self._hide_usage and not choices

    def _learn_usage(self, document: Document) -> bool:
        usage = reported_usage(document)
        if usage is None:
            return False
        known = self.usage or {"usage": {}}
        # The tier decides the price of what is counted.
        served = {"service_tier": document["service_tier"]} if document.get("service_tier") else {}
        self.usage = {**known, **served, "usage": {**known["usage"], **usage}}
        return True

    def _learn_choice(self, position: int, choice: Document) -> None:
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            index = choice.get("index")
            self._finish_reasons[index if isinstance(index, int) else position] = reason
        if not self.has_content:
            self.has_content = bool(reason) or _is_content(choice)


def _is_content(choice: Document) -> bool:
    delta = choice.get("delta")
    if isinstance(delta, dict) and any(delta.get(name) for name in _CONTENT_MEMBERS):
        return True
    return bool(choice.get("text"))
