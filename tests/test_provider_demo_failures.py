"""The demo models that fail or dawdle, and what it takes to stop them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from llmproxy.errors import UpstreamCut
from llmproxy.request import Operation
from tests.demo_provider import Clock, read_all, send


@pytest.mark.parametrize("model", ["fail-400", "fail-401", "fail-404", "fail-429", "fail-500", "fail-503", "fail-529"])
@pytest.mark.parametrize("members", [{}, {"stream": True}])
async def test_failures_are_the_vendors_own(model: str, members: Mapping[str, Any]) -> None:
    """A failing model answers with its status and an error in the OpenAI shape, streamed or not."""
    response = await send(model, **members)
    assert response.status == int(model[-3:])
    assert response.headers["content-type"] == "application/json"
    assert response.headers.get("Retry-After") == ("2" if model == "fail-429" else None)
    assert orjson.loads(b"".join(await read_all(response)))["error"]["message"]


async def test_an_unknown_model_is_a_404() -> None:
    """A model that the demo provider does not have is not found."""
    assert (await send("no-such")).status == 404


@pytest.mark.parametrize(
    ("model", "operation", "members"),
    [
        ("echo", Operation.CHAT, {"n": 0}),
        ("echo", Operation.CHAT, {"n": "2"}),
        ("echo", Operation.CHAT, {"n": 10**9}),
        ("echo", Operation.CHAT, {"max_tokens": -1}),
        ("embed", Operation.CHAT, {}),
        ("echo", Operation.EMBEDDINGS, {}),
        ("embed", Operation.EMBEDDINGS, {"dimensions": 0}),
        ("embed", Operation.EMBEDDINGS, {"input": []}),
    ],
)
async def test_wrong_requests_are_refused_as_a_vendor_would(model: str, operation: Operation, members: Any) -> None:
    """A parameter out of range, or a model asked for what it cannot do, is a 400 that names it."""
    response = await send(model, operation, **members)
    error = orjson.loads(b"".join(await read_all(response)))["error"]
    assert response.status == 400
    assert error["param"] in {*members, "model"}


@pytest.mark.parametrize("members", [{}, {"stream": True}])
async def test_an_error_can_hide_in_a_200(members: Mapping[str, Any]) -> None:
    """The error-in-200 model answers 200 with an error inside."""
    response = await send("error-in-200", **members)
    body = b"".join(await read_all(response)).removeprefix(b"data: ")
    assert response.status == 200
    assert orjson.loads(body)["error"]["code"] == "server_error"


async def test_garbage_is_not_json() -> None:
    """The garbage model answers 200 with something that cannot be decoded."""
    response = await send("garbage")
    assert response.status == 200
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"".join(await read_all(response)))


@pytest.mark.parametrize("count", [0, 1, 3, 20])
async def test_a_cut_stream_just_ends(count: int) -> None:
    """cut-after-N gives N chunks of content and then nothing: no finish reason, no end mark."""
    events = await read_all(await send(f"cut-after-{count}", stream=True))
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    assert sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks) == count
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)


async def test_a_cut_body_is_half_of_one() -> None:
    """cut-after-N without a stream gives a body that breaks off."""
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"".join(await read_all(await send("cut-after-3"))))


async def test_slow_models_take_their_time() -> None:
    """slow waits before each chunk and slow-first-byte before the first, by the clock they were given."""
    slow, late = Clock(), Clock()
    events = await read_all(await send("slow", clock=slow, stream=True))
    await read_all(await send("slow-first-byte", clock=late, stream=True))
    assert slow.slept == [0.1] * len(events)
    assert late.slept == [3.0]


async def test_an_abort_ends_a_pending_read() -> None:
    """A read that hangs raises the error that the response is aborted with, and so does every later one."""
    response, error = await send("hang"), UpstreamCut("too late")

    async def abort() -> None:
        response.abort(error)

    raised, _ = await asyncio.gather(response.read(), abort(), return_exceptions=True)
    assert raised is error
    with pytest.raises(UpstreamCut):
        await response.read()


async def test_an_aborted_reader_can_go_on() -> None:
    """An abort leaves no cancellation behind in the task that was reading."""
    response = await send("hang")

    async def read_and_go_on() -> int:
        with pytest.raises(UpstreamCut):
            await response.read()
        await asyncio.sleep(0)
        task = asyncio.current_task()
        return task.cancelling() if task else -1

    async def abort() -> None:
        response.abort(UpstreamCut("too late"))

    cancellations, _ = await asyncio.gather(read_and_go_on(), abort())
    assert cancellations == 0


async def test_an_abort_between_reads_ends_the_next() -> None:
    """An aborted response gives nothing more."""
    response = await send("story", stream=True)
    await response.read()
    response.abort(UpstreamCut("too late"))
    with pytest.raises(UpstreamCut):
        await response.read()


@pytest.mark.parametrize("is_aborted", [False, True])
async def test_a_cancellation_from_outside_stays_one(*, is_aborted: bool) -> None:
    """A reader that is cancelled is cancelled, also when the response is aborted at the same moment."""
    response = await send("hang")

    async def cancel_the_reader() -> None:
        readers[0].cancel()
        if is_aborted:
            response.abort(UpstreamCut("too late"))

    readers: list[asyncio.Task[Any]] = []

    async def read() -> bytes:
        readers.extend(task for task in [asyncio.current_task()] if task)
        return await response.read()

    ended, _ = await asyncio.gather(read(), cancel_the_reader(), return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)


async def test_a_closed_response_is_empty() -> None:
    """After `close` there is nothing more to read."""
    response = await send("story", stream=True)
    response.close()
    assert await response.read() == b""
