"""A vendor without a network: deterministic models that answer, and others that fail or dawdle on request."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Final

import orjson
from multidict import CIMultiDict

from llmproxy.config import ProviderConfig, Timeouts
from llmproxy.errors import BadRequest, UpstreamError
from llmproxy.exchange import Target
from llmproxy.pricing import FREE
from llmproxy.providers import Provider
from llmproxy.providers.demo_answers import Completion, embeddings, usage_of
from llmproxy.providers.demo_models import MODELS, speeches
from llmproxy.request import Document, Operation, Request
from llmproxy.services import Clock, Services, UpstreamRequest, UpstreamResponse

FOREVER: Final = math.inf
_SLOW_CHUNK_SECONDS: Final = 0.1
_SLOW_FIRST_BYTE_SECONDS: Final = 3.0
_RETRY_AFTER_SECONDS: Final = "2"
_CUT_AFTER: Final = re.compile(r"cut-after-(\d{1,6})")
_FAILURES: Final[Mapping[str, tuple[int, str, str]]] = {
    "fail-400": (400, "invalid_request_error", "invalid_value"),
    "fail-401": (401, "authentication_error", "invalid_api_key"),
    "fail-404": (404, "invalid_request_error", "model_not_found"),
    "fail-429": (429, "rate_limit_error", "rate_limit_exceeded"),
    "fail-500": (500, "server_error", "server_error"),
    "fail-503": (503, "server_error", "service_unavailable"),
    "fail-529": (529, "overloaded_error", "overloaded"),
}
_ANSWERING: Final = ("echo", "story", "tools", "json", "reasoning", "embed", "slow", "slow-first-byte")
_MISBEHAVING: Final = ("hang", *_FAILURES, "error-in-200", "garbage", "cut-after-3")

# What a response does next: send bytes, or wait so many seconds.
Step = bytes | float


@dataclass(frozen=True, slots=True)
class Script:
    """A response as it will be played."""

    steps: Iterable[Step]
    status: int = 200
    content_type: str = "application/json"
    retry_after: str | None = None


class Demo(Provider):
    """The demo provider: no key, no network, no cost."""

    kind: ClassVar[str] = "demo"
    price_provider: ClassVar[str | None] = FREE

    def __init__(self, name: str, config: ProviderConfig, services: Services) -> None:
        super().__init__(name, config, services)
        self.transport = DemoTransport(services.clock)

    def model_names(self) -> Sequence[str]:
        """What the section names, else every model there is."""
        return self.config.models or (*_ANSWERING, *_MISBEHAVING)

    def serves(self, model: str) -> bool:
        """Only what it has."""
        return model in (*_ANSWERING, *_MISBEHAVING) or _CUT_AFTER.fullmatch(model) is not None

    def prepare(self, request: Request, target: Target, headers: Mapping[str, str]) -> UpstreamRequest:
        """The client's request, as it stands."""
        return UpstreamRequest("POST", f"demo:{request.operation.value}", (), request.encode())


class DemoTransport:
    """Plays responses from memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def send(self, request: UpstreamRequest, timeouts: Timeouts) -> UpstreamResponse:
        """The response of the model that the body names."""
        operation = Operation(request.url.removeprefix("demo:"))
        answer_id = hashlib.blake2b(request.body, digest_size=8).hexdigest()
        created = int(self._clock.now().timestamp())
        try:
            script = _script(operation, orjson.loads(request.body), answer_id, created)
        except BadRequest as error:
            script = _failure(400, error.type, error.error_code, error.message, error.param)
        return DemoResponse(script, answer_id, self._clock)


class DemoResponse:
    """A response whose body comes from a script, at the script's pace."""

    def __init__(self, script: Script, answer_id: str, clock: Clock) -> None:
        self.status = script.status
        self.headers: Mapping[str, str] = _head(script, answer_id)
        self._steps = iter(script.steps)
        self._clock = clock
        self._error: UpstreamError | None = None
        self._reader: asyncio.Task[object] | None = None

    async def read(self) -> bytes:
        """The next piece of the body; b"" at its end. Raises the error that the response was aborted with."""
        for step in self._steps:
            if self._error is not None:
                raise self._error
            if isinstance(step, bytes):
                return step
            await self._wait(step)
        if self._error is not None:
            raise self._error
        return b""

    def abort(self, error: UpstreamError) -> None:
        """Make the pending read, and every later one, raise `error`."""
        self._error = error
        if self._reader is not None:
            self._reader.cancel()

    def close(self) -> None:
        """Give the response up."""
        self._steps = iter(())

    async def _wait(self, seconds: float) -> None:
        reader = self._reader = asyncio.current_task()
        cancelled_before = reader.cancelling() if reader else 0
        try:
            await (asyncio.get_running_loop().create_future() if seconds == FOREVER else self._clock.sleep(seconds))
        except asyncio.CancelledError:
            # Cancelled by `abort` alone, it is that error; cancelled from outside as well, it stays a cancellation.
            if self._error is None or reader is None or reader.uncancel() > cancelled_before:
                raise
            raise self._error from None
        finally:
            self._reader = None


def _head(script: Script, answer_id: str) -> Mapping[str, str]:
    head = CIMultiDict({"content-type": script.content_type, "x-request-id": f"demo-{answer_id}"})
    if script.retry_after:
        head["retry-after"] = script.retry_after
    return head


def _script(operation: Operation, document: Document, answer_id: str, created: int) -> Script:
    model = str(document.get("model"))
    is_stream = document.get("stream") is True and operation is not Operation.EMBEDDINGS
    if (misbehaviour := _misbehaviour(model, is_stream=is_stream)) is not None:
        return misbehaviour
    if (model == "embed") != (operation is Operation.EMBEDDINGS):
        raise BadRequest(f"The model '{model[:100]}' cannot do this.", code="unsupported_operation", param="model")
    if model == "embed":
        return Script([embeddings(model, document)])
    cut = _CUT_AFTER.fullmatch(model)
    speaker = "cut-after" if cut else model
    if speaker not in MODELS:
        return _failure(404, "invalid_request_error", "model_not_found", f"There is no model '{model[:100]}'.", "model")
    said = speeches(speaker, document)
    usage = usage_of(document, said, is_cached=model == "reasoning")
    is_chat = operation is Operation.CHAT
    prefix = "chatcmpl" if is_chat else "cmpl"
    completion = Completion(is_chat, f"{prefix}-{answer_id}", created, model, said, usage)
    steps = _streamed(completion, document) if is_stream else iter([completion.whole()])
    if cut:
        steps = _cut(steps, int(cut[1]), is_chat=is_chat, is_stream=is_stream)
    return Script(_paced(model, steps), content_type="text/event-stream" if is_stream else "application/json")


def _streamed(completion: Completion, document: Document) -> Iterator[bytes]:
    options = document.get("stream_options")
    return completion.events(include_usage=isinstance(options, dict) and options.get("include_usage") is True)


def _cut(steps: Iterator[bytes], count: int, *, is_chat: bool, is_stream: bool) -> Iterator[bytes]:
    """The first events, or half of the body, and then the end: nothing tells that more was to come."""
    if not is_stream:
        return (body[: len(body) // 2] for body in steps)
    return islice(steps, count + is_chat)  # a chat's first event holds the role and no content


def _paced(model: str, steps: Iterator[bytes]) -> Iterator[Step]:
    if model == "slow-first-byte":
        yield _SLOW_FIRST_BYTE_SECONDS
    for step in steps:
        if model == "slow":
            yield _SLOW_CHUNK_SECONDS
        yield step


def _misbehaviour(model: str, *, is_stream: bool) -> Script | None:
    content_type = "text/event-stream" if is_stream else "application/json"
    if model in _FAILURES:
        status, kind, code = _FAILURES[model]
        return _failure(status, kind, code, f"The demo model '{model}' always fails.", None)
    match model:
        case "hang":
            return Script([FOREVER], content_type=content_type)
        case "garbage":
            body = b"<html>This is not JSON.</html>"
            return Script([b"data: " + body + b"\n\n" if is_stream else body], content_type=content_type)
        case "error-in-200":
            body = _error_body("server_error", "server_error", "The demo model failed after it had begun.", None)
            return Script([b"data: " + body + b"\n\n" if is_stream else body], content_type=content_type)
        case _:
            return None


def _failure(status: int, kind: str, code: str, message: str, param: str | None) -> Script:
    retry_after = _RETRY_AFTER_SECONDS if status == 429 else None
    return Script([_error_body(kind, code, message, param)], status, retry_after=retry_after)


def _error_body(kind: str, code: str, message: str, param: str | None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
