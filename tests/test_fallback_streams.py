from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionUserMessageParam

from llmproxy.errors import UpstreamCut
from llmproxy.exchange import Answer, Attempt
from llmproxy.request import Document
from llmproxy.testing import (
    ProxyClient,
    RecordedRequest,
    Reply,
    StartProxy,
    ToolCall,
    call_hook,
    cut_after,
    error_event_after,
    events,
    hang_after,
    make_exchange,
    make_services,
    reasoning,
    stream,
    tools,
)
from llmproxy.testing.clock import START
from llmproxy.testing.messages import Ending
from llmproxy_plugins.fallback import Fallback
from llmproxy_plugins.fallback.config import FallbackConfig
from llmproxy_plugins.fallback.seam import Seam

STORY = "On the first day the little gateway carried one more question over the hills, and very very late it came home."
WORDS = [f"{word} " for word in STORY.split()]
CONTINUE: Document = {
    "stream_failure": "continue",
    "backoff_seconds": 0.001,
    "health": {"cool_down_seconds": 0.0001, "max_cool_down_seconds": 0.0001},
}


def said_before(request: RecordedRequest) -> str:
    """The beginning of the answer that a request hands over."""
    turns = [message for message in request.document["messages"] if message["role"] == "assistant"]
    return str(turns[-1]["content"])


def go_on(request: RecordedRequest, *, repeated_words: int = 0) -> Reply:
    """An upstream that continues the story from where the request leaves it, perhaps with some words again."""
    told = len(said_before(request).split())
    return stream(*WORDS[max(told - repeated_words, 0) :])


def text_and_ends(documents: Sequence[Document]) -> tuple[str, list[str]]:
    """What a stream's chunks say, and its finish reasons."""
    choices = [choice for document in documents for choice in document["choices"]]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices), ends


def sdk(client: ProxyClient) -> openai.AsyncOpenAI:
    """OpenAI's own client of the gateway."""
    return openai.AsyncOpenAI(base_url=client.base_url, api_key=client.key, max_retries=0)


async def read_stream(user: openai.AsyncOpenAI, seen: list[str]) -> None:
    """Put the texts of a streamed answer into `seen`, as they come. Raises what the SDK raises."""
    asked: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Tell."}]
    async for chunk in await user.chat.completions.create(model="test", messages=asked, stream=True):
        seen += [choice.delta.content or "" for choice in chunk.choices]


CUTS: Mapping[str, Callable[[int], Reply]] = {
    "reset": lambda count: cut_after(count + 1, stream(*WORDS)),
    "closed": lambda count: cut_after(count + 1, stream(*WORDS), ending=Ending.CLOSE),
    "error event": lambda count: error_event_after(count + 1, stream(*WORDS)),
    "silence": lambda count: hang_after(count + 1, stream(*WORDS)),
}
IMPATIENT: Document = {"timeouts": {"idle_seconds": 0.2}}


async def test_a_cut_stream_is_an_exception_in_the_sdk(proxy: StartProxy) -> None:
    """Where nothing else is configured, an answer that breaks off never looks like one that is complete."""
    async with proxy(Fallback, config=IMPATIENT) as client, sdk(client) as user:
        for cut in CUTS.values():
            for count in (1, 7, len(WORDS)):
                client.upstream.replies.append(cut(count))
                seen: list[str] = []
                with pytest.raises(openai.APIError):
                    await read_stream(user, seen)
                assert "".join(seen) == "".join(WORDS[:count])


@pytest.mark.parametrize("repeated_words", [0, 3], ids=["exactly", "with words again"])
async def test_a_cut_stream_is_told_to_its_end(proxy: StartProxy, repeated_words: int) -> None:
    """Wherever a story is cut, the client gets the whole of it, each word once, as one answer."""
    async with proxy(Fallback, CONTINUE, config=IMPATIENT) as client:
        for count in range(1, len(WORDS)):
            cut = list(CUTS.values())[count % 3]
            client.upstream.replies += [cut(count), lambda request: go_on(request, repeated_words=repeated_words)]
            response = await client.chat("Tell.", stream=True)
            text, ends = text_and_ends(response.events)
            assert (text, ends, response.is_done) == ("".join(WORDS), ["stop"], True)
            assert len({(each["id"], each["created"], each["model"]) for each in response.events}) == 1
            assert [each for each in response.events if "llmproxy" in each] == [response.events[-1]]
            roles = [choice["delta"].get("role") for each in response.events for choice in each["choices"]]
            assert roles.count("assistant") == 1


async def test_a_story_that_is_cut_again_is_told_to_its_end(proxy: StartProxy) -> None:
    """A continuation may be cut as well, as long as there are attempts left."""

    def cut_again(request: RecordedRequest) -> Reply:
        told = len(said_before(request).split())
        return cut_after(3, stream(*WORDS[told:]))

    async with proxy(Fallback, {**CONTINUE, "attempts": 6}) as client:
        client.upstream.replies += [CUTS["reset"](4), cut_again, cut_again, cut_again, go_on]
        response = await client.chat("Tell.", stream=True)
        rows = await client.rows()
    assert text_and_ends(response.events) == ("".join(WORDS), ["stop"])
    assert [attempt["failure"] for attempt in rows.attempts] == ["cut"] * 4 + [None]
    assert len(rows.ledger) == 5


async def test_a_story_that_is_cut_too_often_ends_with_an_error(proxy: StartProxy) -> None:
    """Continuations are attempts like all others: the budget holds for them too."""
    async with proxy(Fallback, {**CONTINUE, "attempts": 2}) as client:
        client.upstream.default = CUTS["reset"](4)
        response = await client.chat("Tell.", stream=True)
        assert len(client.upstream.requests) == 2
    assert "error" in response.events[-1]
    assert not response.is_done


async def test_the_usage_of_a_continued_answer_is_that_of_all_its_attempts(proxy: StartProxy) -> None:
    """What the client is told it took is what it took, the part that was cut included."""
    async with proxy(Fallback, CONTINUE) as client:
        client.upstream.replies += [CUTS["reset"](9), go_on]
        response = await client.chat("Tell.", stream=True, stream_options={"include_usage": True}, max_tokens=100)
        rows = await client.rows()
        again = client.upstream.requests[1].document
    charged = [(row["uncached_input_tokens"], row["text_output_tokens"]) for row in rows.ledger]
    usage = response.events[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == tuple(map(sum, zip(*charged, strict=True)))
    assert 80 <= again["max_tokens"] < 100


CLAUDE_END = (
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
)


def claude(words: Sequence[str], *, is_cut: bool = False) -> Reply:
    """A streamed message as Anthropic sends it."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 9}}
    deltas = [{"type": "text_delta", "text": word} for word in words]
    documents = (
        {"type": "message_start", "message": {**message, "model": "claude"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        *(() if is_cut else CLAUDE_END),
    )
    return events(*(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in documents))


@pytest.mark.parametrize(
    ("model", "last_role", "fields"),
    [
        ("claude-3-7-sonnet-20250219", "assistant", {}),
        ("claude-3-7-sonnet-20250219", "user", {"reasoning_effort": "low"}),
        ("claude-opus-4-8", "user", {}),
    ],
)
async def test_a_model_that_takes_prefill_is_given_the_beginning_and_no_more(
    proxy: StartProxy, model: str, last_role: str, fields: Document
) -> None:
    """Some go on from a last message of their own; the others, and those that think first, are told in words."""
    config = {"providers": {"upstream": {"kind": "anthropic"}}, "models": {"test": f"upstream/{model}"}}
    async with proxy(Fallback, CONTINUE, config=config) as client:
        client.upstream.replies += [claude(WORDS[:5], is_cut=True), claude([" question", " more."])]
        response = await client.chat("Tell.", stream=True, **fields)
        asked = client.upstream.requests[1].document["messages"]
    assert text_and_ends(response.events) == ("".join(WORDS[:5]) + "question more.", ["stop"])
    beginning = next(message for message in asked if message["role"] == "assistant")
    assert beginning["content"][0]["text"].rstrip() == "".join(WORDS[:5]).rstrip()
    assert asked[-1]["role"] == last_role


OTHERWISE: Mapping[str, tuple[Reply, Document]] = {
    "a tool call": (cut_after(2, tools(ToolCall("look", {"a": 1}))), {}),
    "reasoning": (cut_after(2, reasoning("Let me think.", "Yes.")), {}),
    "structured output": (CUTS["reset"](4), {"response_format": {"type": "json_object"}}),
    "several choices": (CUTS["reset"](4), {"n": 2}),
    "log probabilities": (CUTS["reset"](4), {"logprobs": True}),
}


async def test_what_cannot_be_told_in_parts_ends_with_an_error(proxy: StartProxy) -> None:
    """Half a tool call, half a JSON document or half a thought cannot be gone on with, so nobody tries."""
    async with proxy(Fallback, CONTINUE) as client:
        for name, (reply, fields) in OTHERWISE.items():
            client.upstream.replies.append(reply)
            response = await client.chat("Tell.", stream=True, **fields)
            assert (name, "error" in response.events[-1], response.is_done) == (name, True, False)
        assert len(client.upstream.requests) == len(OTHERWISE)


async def test_streams_are_continued_only_for_the_models_that_are_named(proxy: StartProxy) -> None:
    """Opting in is by model: the alias `test` is told to its end, the same target under its own name is not."""
    section = {"models": {"test": {"stream_failure": "continue"}}}
    async with proxy(Fallback, section) as client:
        client.upstream.replies += [CUTS["reset"](4), go_on, CUTS["reset"](4)]
        assert (await client.chat("Tell.", stream=True)).is_done
        assert not (await client.chat("Tell.", stream=True, model="upstream/test-model")).is_done


def joined(said: str, pieces: Sequence[str]) -> str:
    """A text and its continuation, as the client gets them."""
    seam = Seam(said)
    return said + "".join([*map(seam.feed, pieces), seam.finish()])


TEXT = st.text(alphabet="ab c", max_size=30)


@given(said=TEXT.filter(bool), rest=TEXT, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_a_seam_does_not_depend_on_how_the_rest_is_cut_up(said: str, rest: str, cuts: list[int]) -> None:
    """The text is the same however it comes in pieces, begins with what was said, and ends with what came."""
    places = sorted({min(cut, len(rest)) for cut in (0, *cuts, len(rest))})
    pieces = [rest[start:end] for start, end in pairwise(places)]
    whole = joined(said, pieces)
    assert whole == joined(said, [rest])
    assert whole.startswith(said)
    assert rest.endswith(whole[len(said) :])


@pytest.mark.parametrize(
    ("said", "rest", "whole"),
    [
        ("It was very ", "very late.", "It was very very late."),
        ("once upon a ", "upon a time", "once upon a time"),
        ("once upon a", " upon a time", "once upon a time"),
        ("once upon a", " a time", "once upon a a time"),
        ("He said ", " hello", "He said hello"),
        ("unbeliev", "able", "unbelievable"),
        ("internationalisation", "internationalisations", "internationalisations"),
        ("Once", "Once upon a time", "Once upon a time"),
        ("a b ", "something else", "a b something else"),
    ],
)
def test_only_what_can_be_no_coincidence_is_taken_for_a_repetition(said: str, rest: str, whole: str) -> None:
    """Two words and more, or a long one, or all that was said: a single short word may be meant twice."""
    assert joined(said, [rest]) == whole


class Told:
    """A stream of which something has come, and that is cut."""

    def __init__(self, text: str) -> None:
        chunk = {"id": text, "choices": [{"index": 0, "delta": {"content": text}}]}
        self._data = b"data: " + json.dumps(chunk).encode() + b"\n\n"

    async def read(self) -> bytes:
        return self._data

    def close(self) -> None:
        pass


async def test_of_two_attempts_that_race_the_one_that_is_heard_is_gone_on_with() -> None:
    """A hedge whose first content came at the same moment, and that nobody read, changes nothing."""
    plugin = Fallback(FallbackConfig.model_validate(CONTINUE), make_services())
    exchange = make_exchange("Tell.", stream=True)
    attempts = [Attempt(number, exchange.targets[0], exchange.request, START, 0) for number in (1, 2)]
    answers = [Answer(stream=Told(f"This is {attempt.number}.")) for attempt in attempts]
    for attempt, answer in zip(attempts, answers, strict=True):
        await call_hook(plugin, "on_answer", exchange, attempt, answer)
    assert answers[0].stream is not None
    await answers[0].stream.read()
    resume = await call_hook(plugin, "on_stream_error", exchange, attempts[0], UpstreamCut("Cut."))
    assert resume.request.document["messages"][-1] == {"role": "assistant", "content": "This is 1."}
