"""Streamed chunks as the one completion they amount to."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion

from llmproxy.dialects.chat_collect import ChunkCollector
from llmproxy.errors import UpstreamBroken, UpstreamCut, UpstreamError, UpstreamRefused


def collect(data: bytes, size: int | None = None) -> dict[str, Any]:
    """The completion for a stream that comes in pieces of some bytes. Raises what the collector raises."""
    collector = ChunkCollector()
    step = size or max(len(data), 1)
    for start in range(0, len(data), step):
        collector.feed(data[start : start + step])
    completion: dict[str, Any] = orjson.loads(collector.finish())
    return completion


def logprobs(token: str) -> dict[str, Any]:
    """Log probabilities of one token."""
    return {"content": [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []}], "refusal": None}


def chunk(**choice: Any) -> bytes:
    """An event with one choice."""
    return b"data: %b\n\n" % orjson.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice]})


def test_choices_are_collected_apart() -> None:
    """Several choices that come interleaved end up each on its own, with what log probabilities they had."""
    data = (
        chunk(index=1, delta={"content": "b"}, logprobs=logprobs("b"))
        + chunk(index=0, delta={"content": "a"})
        + chunk(index=1, delta={"content": "c"}, logprobs=logprobs("c"))
        + chunk(index=0, delta={}, finish_reason="stop")
        + chunk(index=1, delta={}, finish_reason="length")
        + b"data: [DONE]\n\n"
    )
    collected = collect(data)
    completion = ChatCompletion.model_validate(collected)
    assert [choice.message.content for choice in completion.choices] == ["a", "bc"]
    assert [choice.finish_reason for choice in completion.choices] == ["stop", "length"]
    assert [token["token"] for token in collected["choices"][1]["logprobs"]["content"]] == ["b", "c"]
    assert collect(data, 1) == collected


def test_calls_are_put_together() -> None:
    """Calls come in pieces, by index; their arguments are joined, and content is null beside them."""
    function = {"name": "weather", "arguments": ""}
    data = (
        chunk(index=0, delta={"role": "assistant", "content": None})
        + chunk(index=0, delta={"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": function}]})
        + chunk(index=0, delta={"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]})
        + chunk(index=0, delta={"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": function}]})
        + chunk(index=0, delta={"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
        + chunk(index=0, delta={}, finish_reason="tool_calls")
    )
    message = ChatCompletion.model_validate(collect(data)).choices[0].message
    calls = [call.to_dict() for call in message.tool_calls or ()]
    assert [(call["id"], call["function"]) for call in calls] == [
        ("a", {"name": "weather", "arguments": '{"x":1}'}),
        ("b", {"name": "weather", "arguments": ""}),
    ]
    assert message.content is None


@pytest.mark.parametrize(
    ("data", "raised"),
    [
        (b"", UpstreamCut),
        (chunk(index=0, delta={"content": "a"}), UpstreamCut),
        (b"data: {\n\n", UpstreamBroken),
        (b'data: {"error": {"message": "no"}}\n\n', UpstreamRefused),
    ],
)
def test_what_cannot_be_collected_is_an_error(data: bytes, raised: type[UpstreamError]) -> None:
    """A stream without its end, with garbage or with an error is no completion."""
    with pytest.raises(raised):
        collect(data)
