"""The rest of a shared stream that was cut: asked for once more, and told from where each listener had come to.

The leader's client may hang up, or its provider may fail, when others have heard half of the answer. They ask again,
as one; if the new answer begins as the old one did, each gets what it lacks. If not, nothing is made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import orjson

from llmproxy.api import Document, Exchange, Exchanges, LLMProxyError, UpstreamCut, completion_events
from llmproxy_plugins.caching.entries import shows_usage

# What an event may hold and still be taken up in the middle: text goes on where it stopped, arguments may not.
_CONTINUED: Final = frozenset({"role", "content"})
_ABOUT_STREAMS: Final = ("stream", "stream_options")
_DIFFERENT: Final = "The answer that this request shared was cut off, and asking again gave another one."


async def rest_of_stream(
    exchanges: Exchanges, exchange: Exchange, heard: bytes, patience_seconds: float | None
) -> bytes:
    """The events that a listener still lacks. Raises UpstreamCut when they cannot be had."""
    asked = {name: value for name, value in exchange.request.document.items() if name not in _ABOUT_STREAMS}
    try:
        async with asyncio.timeout(patience_seconds):
            answer = await exchanges.send(exchange, exchange.operation, asked, origin="caching")
    except (LLMProxyError, TimeoutError) as error:
        raise UpstreamCut("The answer that this request shared was cut off, and asking again failed.") from error
    rest = missing_events(heard, orjson.loads(answer.body), show_usage=shows_usage(exchange))
    if rest is None:
        raise UpstreamCut(_DIFFERENT)
    exchange.decide("caching", "asked again", "the answer that was shared was cut off")
    return rest


def missing_events(heard: bytes, completion: Document, *, show_usage: bool) -> bytes | None:
    """What follows on the events heard so far for the answer to be this one; None when they do not belong to it."""
    texts: dict[int, str] = {}
    head: Document = {}
    for event in _documents(heard):
        head = head or {name: event[name] for name in ("id", "created", "model") if name in event}
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(value and name not in _CONTINUED for name, value in delta.items()) or "text" in choice:
                return None
            index = choice.get("index", 0)
            texts[index] = texts.get(index, "") + (delta.get("content") or "")
    choices = completion.get("choices") or ()
    for choice in choices:
        message = choice.get("message") or {}
        text, said = message.get("content") or "", texts.pop(choice.get("index", 0), "")
        if not text.startswith(said):
            return None
        message["content"] = text[len(said) :]
    if texts:
        return None
    return b"".join(completion_events({**completion, **head}, show_usage=show_usage))


def _documents(events: bytes) -> Iterator[Document]:
    for line in events.splitlines():
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data.startswith(b"{"):
            yield orjson.loads(data)
