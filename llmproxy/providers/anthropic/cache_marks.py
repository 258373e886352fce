"""Prompt-cache marks within the limits of the API: four of them, and those that last an hour before the others."""

from __future__ import annotations

from typing import Final

from llmproxy.request import Document

_MAX_MARKS: Final = 4


def limit_marks(body: Document) -> None:
    """Put the marks of a request in order, in place.

    Of too many, the first stays, which conversations share, and the last ones, which this conversation goes on from.
    """
    sections = [body.get("tools", ()), body.get("system", ()), *[turn["content"] for turn in body["messages"]]]
    marked = [block for blocks in sections for block in blocks if "cache_control" in block]
    if not marked:
        return
    room = _MAX_MARKS - ("cache_control" in body)
    for block in marked[1 : max(len(marked) - room + 1, 1)]:
        del block["cache_control"]
    lasts_an_hour = True
    for block in (block for block in marked if "cache_control" in block):
        lasts_an_hour = lasts_an_hour and block["cache_control"].get("ttl") == "1h"
        block["cache_control"] = {"type": "ephemeral", **({"ttl": "1h"} if lasts_an_hour else {})}
