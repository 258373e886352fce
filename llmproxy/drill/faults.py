"""The faults of a drill: what a vendor does in place of answering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from llmproxy.testing.faults import cut_after, hang
from llmproxy.testing.messages import Message, RecordedRequest, Reply, Script
from llmproxy.testing.vendor_formats import fail_inside, format_of, refuse, say

# In pieces, as it is streamed. No question that is asked in a drill has its beginning in it.
STORY: Final = (
    *("Seven", " brave", " swans", " crossed", " the", " silver", " lake"),
    *(" before", " the", " morning", " fog", " had", " lifted."),
)
_RETRY_AFTER_SECONDS: Final = 20
_CUT_AFTER_TOKENS: Final = 5
_SLOW_TOKEN_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at a vendor.

    Attributes:
        summary: What the vendor does.
        script: It, in whichever vendor's format a request comes.
        is_for_streams: Whether it is only streams that it strikes.
    """

    name: str
    summary: str
    script: Script
    is_for_streams: bool = False


def tell_story(request: RecordedRequest) -> Reply:
    """The story; to a request that holds the beginning of it, the rest."""
    told = next((count for count in range(len(STORY), 0, -1) if _holds(request, count)), 0)
    return say(*STORY[told:])(request)


def _holds(request: RecordedRequest, count: int) -> bool:
    return "".join(STORY[:count]).encode() in request.body


def _opening_count(request: RecordedRequest) -> int:
    spoken = format_of(request)
    return spoken.opening_count if spoken else 0


def _cut(request: RecordedRequest) -> Reply:
    return cut_after(_opening_count(request) + _CUT_AFTER_TOKENS, tell_story(request))


def _malformed(request: RecordedRequest) -> Reply:
    place = _opening_count(request)

    def spoil(message: Message) -> Message:
        pieces = list(message.pieces)
        pieces[place] = _spoilt(pieces[place])
        return replace(message, pieces=pieces)

    return tell_story(request).changed(spoil)


def _spoilt(event: bytes) -> bytes:
    """The first half of an event, ended as if it were whole."""
    return event[: len(event) // 2] + event[-2:]


def _slow(request: RecordedRequest) -> Reply:
    def slow_down(message: Message) -> Message:
        return replace(message, piece_delay_seconds=_SLOW_TOKEN_SECONDS)

    return tell_story(request).changed(slow_down)


def _hang(_request: RecordedRequest) -> Reply:
    return hang()


def _named(*faults: Fault) -> Mapping[str, Fault]:
    return {fault.name: fault for fault in faults}


_LATER: Callable[[RecordedRequest], Reply] = refuse(429, headers=(("Retry-After", str(_RETRY_AFTER_SECONDS)),))

FAULTS: Final = _named(
    Fault("503", "refuses everything with status 503", refuse(503)),
    Fault("429", f"refuses everything with status 429 and asks to wait {_RETRY_AFTER_SECONDS} s", _LATER),
    Fault("hang", "takes requests and never answers", _hang),
    Fault("error_in_200", "answers status 200 with an error in it", fail_inside()),
    Fault("malformed", "sends an event that cannot be read", _malformed, is_for_streams=True),
    Fault("cut", f"breaks streams off after {_CUT_AFTER_TOKENS} tokens", _cut, is_for_streams=True),
    Fault("slow", f"takes {_SLOW_TOKEN_SECONDS} s for each token", _slow, is_for_streams=True),
)
