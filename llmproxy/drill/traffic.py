"""What clients are given in a drill: one request as an OpenAI SDK sends it, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from time import monotonic
from typing import Final
from uuid import uuid4

from llmproxy.drill.faults import STORY
from llmproxy.request import Document
from llmproxy.testing.proxy_client import ProxyClient
from llmproxy.testing.responses import ProxyResponse

# A cache would answer where a vendor is to be asked.
_HEADERS: Final = {"cache-control": "no-cache, no-store", "user-agent": "llmproxy-drill"}


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one request.

    Attributes:
        seconds: How long the client waited for all of it.
        served_by: The target that answered, as provider/model; None when none did.
        problem: What the client met with in place of the whole answer; None when it had that.
        is_told: Whether an answer that broke off after its beginning ended with an error the client can read.
    """

    seconds: float
    served_by: str | None = None
    attempts: int = 0
    problem: str | None = None
    is_told: bool = False


async def ask_together(
    client: ProxyClient, model: str, *, count: int, patience_seconds: float, only_streams: bool
) -> Sequence[Answered]:
    """What became of some requests sent at the same time, every other one for a stream unless all are."""
    forms = islice(cycle((True,) if only_streams else (True, False)), count)
    asking = (_ask(client, model, is_stream=is_stream, patience_seconds=patience_seconds) for is_stream in forms)
    return await asyncio.gather(*asking)


async def _ask(client: ProxyClient, model: str, *, is_stream: bool, patience_seconds: float) -> Answered:
    question = f"This is drill {uuid4().hex}. Tell a story of one sentence."
    asked: Document = {"model": model, "messages": [{"role": "user", "content": question}]}
    if is_stream:
        asked["stream"] = True
    began = monotonic()
    try:
        async with asyncio.timeout(patience_seconds):
            response = await client.request("POST", "/v1/chat/completions", asked, headers=_HEADERS)
    except TimeoutError:
        return Answered(monotonic() - began, problem="no_answer_in_time")
    except ConnectionError:
        return Answered(monotonic() - began, problem="connection_broken")
    return _judged(response, monotonic() - began, is_stream=is_stream)


def _judged(response: ProxyResponse, seconds: float, *, is_stream: bool) -> Answered:
    problem, is_told = _problem_of_stream(response) if is_stream else (_problem(response), False)
    return Answered(
        seconds,
        served_by=response.headers.get("x-llmproxy-model"),
        attempts=int(response.headers.get("x-llmproxy-attempts", "0")),
        problem=problem,
        is_told=is_told,
    )


def _problem(response: ProxyResponse) -> str | None:
    try:
        if response.status != 200:
            return _code(response.document) or f"status_{response.status}"
        return None if _is_whole(response.text) else "wrong_answer"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "unreadable_answer"


def _problem_of_stream(response: ProxyResponse) -> tuple[str | None, bool]:
    """What is wrong with a streamed answer, and whether the stream itself says so after its beginning."""
    if response.status != 200:
        return _problem(response), False
    try:
        errors = [event for event in response.events if "error" in event]
        if errors:
            return _code(errors[0]) or "error_event", bool(response.text)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "unreadable_answer", False
    return (_problem(response), False) if response.is_done else ("cut_off_silently", False)


def _code(document: Document) -> str | None:
    error = document.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return str(code) if code else None


def _is_whole(text: str) -> bool:
    """Whether this is the story, once and to its end, or what somebody says who is no part of the play."""
    is_played = STORY[0] in text or STORY[-1] in text
    return text.split() == "".join(STORY).split() if is_played else bool(text)
