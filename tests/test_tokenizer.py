"""Usage that no provider told, counted by a tokenizer: as OpenAI counts it, in a bounded time, whatever came."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.config import EstimatesConfig, TokenizerName
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.dialects.texts import streamed_texts
from llmproxy.estimate import Estimator
from llmproxy.request import Operation, Request
from llmproxy.testing import StartProxy, cut_after, hang, reply, stream
from llmproxy.tokenizer import tokenizer

# The messages whose tokens OpenAI's cookbook tells ("How to count tokens with tiktoken").
JARGON = [
    (
        "system",
        None,
        "You are a helpful, pattern-following assistant that translates corporate jargon into plain English.",
    ),
    ("system", "example_user", "New synergies will help drive top-line growth."),
    ("system", "example_assistant", "Things working well together will increase revenue."),
    (
        *("system", "example_user"),
        "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
    ),
    ("system", "example_assistant", "Let's talk later when we're less busy about how to do better."),
    ("user", None, "This late pivot means we don't have time to boil the ocean for the client deliverable."),
]
MESSAGES = [{"role": role, "content": text} | ({"name": name} if name else {}) for role, name, text in JARGON]
# As vendors of other models send them: several tokens an event.
PIECES = [f"Clause {number}: whatever was agreed upon here shall hold. " for number in range(400)]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
MEMBERS = st.sampled_from(["messages", "prompt", "input", "instructions", "tools", "functions", "response_format"])


def request(document: dict[str, Any]) -> Request:
    """A request for a chat."""
    return Request(Operation.CHAT, orjson.dumps(document), document)


def fed(text: list[str]) -> StreamFacts:
    """What is known of a stream of these pieces that was cut."""
    facts = StreamFacts(hide_usage=True)
    for event in events(text):
        facts.feed(event)
    return facts


def events(text: list[str]) -> list[bytes]:
    """An event for each piece."""
    documents = [{"choices": [{"index": 0, "delta": {"content": each}, "finish_reason": None}]} for each in text]
    return [b"data: %b\n\n" % orjson.dumps(each) for each in documents]


@pytest.mark.parametrize(("name", "tokens"), [("cl100k_base", 129), ("o200k_base", 124)])
def test_messages_are_counted_as_openai_counts_them(name: TokenizerName, tokens: int) -> None:
    """OpenAI's cookbook gives 129 tokens for GPT-4 and 124 for GPT-4o; by their size it would be half as many again."""
    assert Estimator(tokenizer(name)).input_tokens(request({"messages": MESSAGES})) == tokens
    assert Estimator().input_tokens(request({"messages": MESSAGES})) > 1.4 * tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("tiktoken is great!", 6), ("2 + 2 = 4", 7), ("お誕生日おめでとう", 8), ("<|endoftext|>", 7), ("half\ud800", 2)],
)
def test_a_text_has_as_many_tokens_as_openai_says(text: str, tokens: int) -> None:
    """By the cookbook for GPT-4o; what looks like a special token is text, and what is no text harms nobody."""
    assert tokenizer("o200k_base")(text) == tokens


def test_what_models_read_is_counted_and_what_they_do_not_is_not() -> None:
    """Tools, calls, reasoning and prompts are text; names of kinds are not, and images count as images."""
    words = Estimator(len)
    plain = words.input_tokens(request({"messages": [{"role": "user", "content": "12345"}]}))
    parts = [{"type": "text", "text": "12345"}, {"type": "image_url", "image_url": {"url": "data:" + "x" * 9000}}]
    assert words.input_tokens(request({"messages": [{"role": "user", "content": parts}]})) == plain + 1000
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert words.input_tokens(request({"messages": [asked]})) == plain - len("12345") + len('f{"a":1}')
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert words.input_tokens(request({"tools": tools})) == len(orjson.dumps(tools))
    assert words.input_tokens(request({"prompt": ["one", "three"], "input": [17, 4, 9]})) == len("onethree") + 3


def test_a_cut_stream_is_counted_by_its_beginning() -> None:
    """Of 400 events with a dozen tokens each, some thirty are kept, and tell what the others hold."""
    count = tokenizer("o200k_base")
    exactly, facts = count("".join(PIECES)), fed(PIECES)
    assert 20 < facts.sample.count(b"data:") < 40
    assert Estimator(count).streamed_tokens(facts) == pytest.approx(exactly, rel=0.03)
    assert Estimator().streamed_tokens(facts) == pytest.approx(len("".join(PIECES)) / 4, rel=0.03)
    # One token in each event, as OpenAI sends them.
    assert (
        Estimator(count).streamed_tokens(fed([" word"] * 300)) == Estimator().streamed_tokens(fed([" w"] * 300)) == 300
    )


@given(st.lists(st.text(max_size=400), min_size=1), st.integers(1, 7))
def test_a_stream_that_came_at_once_has_the_tokens_of_one_that_came_piecemeal(text: list[str], at_once: int) -> None:
    """However its events are packed, the sample is small and made of whole events."""
    facts, packed = fed(["begin", *text]), StreamFacts(hide_usage=True)
    whole = events(["begin", *text])
    for start in range(0, len(whole), at_once):
        packed.feed(b"".join(whole[start : start + at_once]))
    assert (packed.event_count, packed.size_bytes) == (facts.event_count, facts.size_bytes)
    assert packed.sample == facts.sample
    assert b"".join(whole).startswith(facts.sample)
    assert len(facts.sample) <= 4096 + max(map(len, whole))


def test_choices_are_put_together_one_by_one() -> None:
    """Two answers that come in turns are no mixture of both."""
    facts = StreamFacts(hide_usage=True, choices=2)
    for first, second in zip(["un", "believ", "ably"], ["inter", "nation", "al"], strict=True):
        for index, piece in enumerate((first, second)):
            facts.feed(b'data: {"choices":[{"index":%d,"delta":{"content":"%b"}}]}\n\n' % (index, piece.encode()))
    assert list(streamed_texts(facts.sample)) == ["unbelievably", "international"]


@given(st.dictionaries(MEMBERS, VALUES, max_size=4))
def test_counting_is_bounded_whatever_a_client_wrote(document: dict[str, Any]) -> None:
    """Nothing it can send makes estimating fail, or look at more than a part of it."""
    asked: list[int] = []

    def count(text: str) -> int:
        asked.append(len(text))
        return len(text)

    estimator = Estimator(count)
    assert estimator.input_tokens(request(document)) >= 1
    texts = ["x" * 50_000, *["y"] * 20_000]
    found = estimator.input_tokens(request({**document, "prompt": texts}))
    assert (found >= 70_000, sum(asked) <= 2 * 32_768, len(asked) <= 2 * 512 + 8) == (True, True, True)


@given(st.binary(max_size=60) | VALUES.map(orjson.dumps) | VALUES.map(lambda value: orjson.dumps({"choices": [value]})))
def test_answers_of_any_shape_are_estimated(body: bytes) -> None:
    """What is no answer is estimated by its size, and what has no text has none."""
    assert 0 <= Estimator(len).answer_tokens(body) <= len(body)
    assert Estimator(len).answer_tokens(orjson.dumps(chat_answer("four"))) == 4


def chat_answer(text: str) -> dict[str, Any]:
    """A whole answer."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


async def test_the_gateway_counts_what_nobody_told(proxy: StartProxy) -> None:
    """A cut stream, a whole answer without usage, and one that was given up: each row has counted tokens."""
    count = tokenizer("o200k_base")
    cut, whole, unseen = cut_after(200, stream(*PIECES)), reply(PIECES[0], usage=None), hang()
    config = {"estimates": {"tokenizer": "o200k_base"}, "timeouts": {"total_seconds": 0.5}}
    async with proxy(upstream=[cut, whole, unseen], config=config) as client:
        await client.chat(stream=True, messages=MESSAGES)
        await client.chat(messages=MESSAGES)
        await client.chat(messages=MESSAGES)
        rows = (await client.rows()).requests
    assert {row["uncached_input_tokens"] for row in rows} == {124}
    assert [row["usage_provenance"] for row in rows] == ["estimated", "estimated", "assumed"]
    # The role has an event of its own.
    assert rows[0]["text_output_tokens"] == pytest.approx(count("".join(PIECES[:199])), rel=0.03)
    assert rows[1]["text_output_tokens"] == count(PIECES[0])


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever configures a tokenizer that is not installed is told what to install."""
    monkeypatch.setattr("llmproxy.config.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"install llmproxy\[tokenizer\]"):
        EstimatesConfig(tokenizer="o200k_base")
