"""The traffic of the load test: a fixed mix of requests in an order that a seed decides, and the upstream's part."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from llmproxy.request import Document
from llmproxy.testing import (
    RecordedRequest,
    Reply,
    completion,
    cut_after,
    embeddings,
    end_without_done,
    error_event_after,
    error_in_200,
    fail,
    garbage,
    hang,
    nothing,
    reply,
    slow_head,
    stream,
)
from llmproxy.testing.chat import model_of

WORDS: Final = ("one ", "two ", "three ", "four ")
# The upstream does what the model's name says.
REPLIES: Final[Mapping[str, Reply]] = {
    "chat": reply("A whole answer."),
    "stream": stream(*WORDS),
    "embedding": embeddings(),
    "completion": completion(*WORDS),
    "slow": slow_head(reply("At last."), 0.3),
    "slow-stream": stream(*WORDS * 5, delay_seconds=0.05),
    "fail-400": fail(400, code="invalid_value"),
    "fail-429": fail(429, retry_after=1),
    "fail-500": fail(500),
    "fail-503": fail(503),
    "error-in-200": error_in_200(),
    "nothing": nothing(),
    "garbage": garbage(),
    "hang": hang(),
    "cut-whole": cut_after(1, reply("Half an answer.")),
    "cut-early": cut_after(1),
    "cut-late": cut_after(4),
    "no-done": end_without_done(3),
    "error-event": error_event_after(3),
}
FAILURES: Final = tuple(REPLIES)[tuple(REPLIES).index("fail-400") :]
_STREAMED: Final = frozenset({"stream", "slow-stream", "cut-early", "cut-late", "no-done", "error-event"})


class HangUp(StrEnum):
    """When a client hangs up."""

    SENT = "the request was sent"
    UPSTREAM = "the upstream had the request"
    EVENT = "the first event of the answer was there"


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and whether it has to be let in. `session` is its own, so that its row can be told."""

    session: str
    path: str
    body: bytes
    is_let_in: bool = True
    has_key: bool = True
    hang_up: HangUp | None = None


def answer(request: RecordedRequest) -> Reply:
    """The upstream's script."""
    return REPLIES[model_of(request)]


def session_of(request: RecordedRequest) -> str:
    """Whose request it is that reached the upstream: `user` travels with the body."""
    return str(request.document["user"])


def make_cases(count: int, seed: int) -> list[Case]:
    """`count` requests: 10 % hang up, 10 % meet a failing upstream, 8 % are refused, the others are served."""
    cases = [_case(number) for number in range(count)]
    random.Random(seed).shuffle(cases)  # noqa: S311 - an order that can be had again, not a secret
    return cases


def _case(number: int) -> Case:
    kind, turn = number % 100, number // 100
    session = f"session-{number}"
    if kind < 10:
        return _hanging_up(session, tuple(HangUp)[kind % 3])
    if kind < 20:
        return asking(session, FAILURES[(kind + turn) % len(FAILURES)])
    if kind < 28:
        return _refused(session, kind)
    return asking(
        session, "chat" if kind < 60 else "stream" if kind < 88 else "embedding" if kind < 96 else "completion"
    )


def _hanging_up(session: str, hang_up: HangUp) -> Case:
    model = "slow-stream" if hang_up is HangUp.EVENT else "slow"
    case = asking(session, model)
    return Case(session, case.path, case.body, hang_up=hang_up)


def _refused(session: str, kind: int) -> Case:
    """Without a key, without a model, without sense: no row. A model that nobody has: a row."""
    case = asking(session, "chat")
    match kind % 4:
        case 0:
            return Case(session, case.path, case.body, is_let_in=False, has_key=False)
        case 1:
            return Case(session, case.path, b'{"messages": []}', is_let_in=False)
        case 2:
            return Case(session, case.path, case.body[:-1], is_let_in=False)
        case _:
            return Case(session, case.path, _encode(session, "nobody/has-this"))


def asking(session: str, model: str) -> Case:
    """A request that the upstream treats as `model` says."""
    operation = {"embedding": "embeddings", "completion": "completions"}.get(model, "chat/completions")
    return Case(session, f"/v1/{operation}", _encode(session, f"upstream/{model}"))


def _encode(session: str, model: str) -> bytes:
    return json.dumps(dict(_members(session, model))).encode()


def _members(session: str, model: str) -> Iterator[tuple[str, object]]:
    kind = model.partition("/")[2]
    yield "model", model
    yield "user", session
    match kind:
        case "embedding":
            yield "input", "some text"
        case "completion":
            yield "prompt", "Say something."
        case _:
            yield "messages", [Document(role="user", content="Say something.")]
    if kind in _STREAMED:
        yield "stream", True
