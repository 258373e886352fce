"""A judge for the tests of the guard, served over HTTP by a scripted upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from llmproxy.request import Document
from llmproxy.testing import Reply, ScriptedUpstream, document
from llmproxy.testing.messages import RecordedRequest, Script

BAD = "forbidden"
REASON = "it speaks of the forbidden"


def judged(question: Document) -> Document:
    """Denies what is forbidden, flags what is odd, replaces what is rude, and allows the rest."""
    seen = [before + text for before, text in zip(question["before"] or [""] * 99, question["texts"], strict=False)]
    if any(BAD in text for text in seen):
        return {"verdict": "deny", "reason": REASON}
    if any("rude" in text for text in seen):
        return {"verdict": "replace", "texts": [text.replace("rude", "kind") for text in question["texts"]]}
    return {"verdict": "flag" if any("odd" in text for text in seen) else "allow"}


def verdicts(request: RecordedRequest) -> Reply:
    """The judge's answer to a question."""
    return document(judged(request.document))


@asynccontextmanager
async def judge(default: Script = verdicts) -> AsyncIterator[ScriptedUpstream]:
    """A judge who serves for as long as the block."""
    async with ScriptedUpstream(default=default) as server:
        yield server


def asking(server: ScriptedUpstream, **settings: object) -> Mapping[str, Any]:
    """A configuration of the plugin that asks this judge."""
    webhook = {"url": f"{server.origin}/judge", "headers": {"x-judge-key": "s3cret"}, "timeout_seconds": 2}
    return {"webhook": webhook, **settings}


def questions(server: ScriptedUpstream, subject: str) -> list[Document]:
    """What the judge was asked about one subject."""
    return [request.document for request in server.requests if request.document["subject"] == subject]
