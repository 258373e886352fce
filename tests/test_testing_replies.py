"""Every reply of the scripted upstream that the OpenAI SDK can read is judged by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Literal

import httpx2
import openai
import pytest
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
)

from llmproxy.testing import (
    Reply,
    ScriptedUpstream,
    ToolCall,
    completion,
    cut_after,
    embeddings,
    end_without_done,
    error_event_after,
    error_in_200,
    fail,
    garbage,
    gzip,
    one_byte_at_a_time,
    reasoning,
    reply,
    slow_head,
    stream,
    tokens,
    tools,
)

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
INCLUDE_USAGE: ChatCompletionStreamOptionsParam = {"include_usage": True}


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """Run an upstream whose script the test fills."""
    async with ScriptedUpstream() as running:
        yield running


@pytest.fixture
async def sdk(upstream: ScriptedUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    """Make an SDK client that never tries again."""
    async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key="sk-test", max_retries=0, timeout=5) as client:
        yield client


async def ask(sdk: openai.AsyncOpenAI) -> ChatCompletion:
    """Ask for a whole answer."""
    return await sdk.chat.completions.create(model="gpt-test", messages=USER)


async def ask_stream(sdk: openai.AsyncOpenAI, into: list[ChatCompletionChunk], *, includes_usage: bool = False) -> None:
    """Collect the chunks in `into`, which keeps those that came before an error."""
    options = INCLUDE_USAGE if includes_usage else openai.omit
    chunks = await sdk.chat.completions.create(model="gpt-test", messages=USER, stream=True, stream_options=options)
    async with chunks:
        async for chunk in chunks:
            into.append(chunk)  # noqa: PERF401 an error must not lose the chunks before it


def text_of(chunks: Sequence[ChatCompletionChunk]) -> str:
    """Join what the chunks say."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# Answers


async def test_reply_is_a_complete_answer_with_usage_that_adds_up(
    upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI
) -> None:
    """A reply is a whole chat answer under the model asked for, whose usage adds up."""
    upstream.replies.append(reply("hi", usage=tokens(7, 4, cached_tokens=2)))
    answer = await ask(sdk)
    assert (answer.model, answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "gpt-test",
        "hi",
        "stop",
    )
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_one_default_serves_whole_answers_and_streams(
    upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI
) -> None:
    """A reply is sent as a stream to who asks for one, and a stream as a whole answer to who does not."""
    upstream.default = reply("hi", finish_reason="length")
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks)
    assert text_of(chunks) == (await ask(sdk)).choices[0].message.content == "hi"
    assert chunks[-1].choices[0].finish_reason == "length"
    upstream.default = stream("a", "b")
    assert (await ask(sdk)).choices[0].message.content == "ab"


async def test_stream_sends_one_event_per_text_after_the_role(
    upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI
) -> None:
    """A stream is the role, each text, the finish reason, and no word of usage unless asked."""
    upstream.replies.append(stream("a", "b", "c"))
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks)
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "a", "b", "c", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, None, "stop"]
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


async def test_stream_can_leave_the_role_out(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """A stream without the role begins with its first text."""
    upstream.replies.append(stream("a", include_role=False))
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks)
    assert chunks[0].choices[0].delta.content == "a"
    assert chunks[0].choices[0].delta.role is None


@pytest.mark.parametrize("kind", [stream("a", "b", usage=tokens(3, 2)), reply("ab", usage=tokens(3, 2))])
async def test_stream_reports_usage_as_openai_does(
    upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI, kind: Reply
) -> None:
    """With include_usage every chunk says `usage: null` and a last one without choices has the tokens."""
    upstream.replies.append(kind)
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks, includes_usage=True)
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5


async def test_usage_can_be_withheld(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """With usage None neither an answer nor a stream that asked for it reports any."""
    upstream.default = reply("hi", usage=None)
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks, includes_usage=True)
    assert (await ask(sdk)).usage is None
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_tools_are_called_whole_and_in_pieces(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """Tool calls arrive complete in an answer, and in a stream add up to the same."""
    upstream.default = tools(ToolCall("weather", {"city": "Paris"}), ToolCall("time", "not json", id="call_x"))
    choice = (await ask(sdk)).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    called = [call for call in choice.message.tool_calls or () if call.type == "function"]
    assert [(call.id, call.function.name) for call in called] == [("call_1", "weather"), ("call_x", "time")]
    assert json.loads(called[0].function.arguments) == {"city": "Paris"}
    async with sdk.chat.completions.stream(model="gpt-test", messages=USER) as streamed:
        whole = await streamed.get_final_completion()
    streamed_calls = whole.choices[0].message.tool_calls or ()
    assert [call.function.arguments for call in streamed_calls] == [call.function.arguments for call in called]


async def test_reasoning_stands_beside_the_text(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """Thoughts come in reasoning_content, before the text, and are counted within the output tokens."""
    upstream.default = reasoning("hm", "yes")
    answer = await ask(sdk)
    assert answer.choices[0].message.model_extra == {"reasoning_content": "hm"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks)
    assert chunks[1].choices[0].delta.model_extra == {"reasoning_content": "hm"}
    assert text_of(chunks[2:]) == "yes"


async def test_completion_serves_the_older_endpoint(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """A completion is text with usage, whole or streamed."""
    upstream.default = completion("a", "b", usage=tokens(2, 2))
    answer = await sdk.completions.create(model="gpt-test", prompt="x")
    assert (answer.choices[0].text, answer.usage and answer.usage.total_tokens) == ("ab", 4)
    streamed = await sdk.completions.create(model="gpt-test", prompt="x", stream=True, stream_options=INCLUDE_USAGE)
    chunks = [chunk async for chunk in streamed]
    assert [choice.text for chunk in chunks for choice in chunk.choices] == ["a", "b", ""]
    assert chunks[-1].usage is not None


@pytest.mark.parametrize("encoding", ["float", None])
async def test_embeddings_give_one_vector_per_input(
    upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI, encoding: Literal["float"] | None
) -> None:
    """Each input gets its vector, as floats or as the base64 that the SDK asks for by itself."""
    upstream.default = embeddings((1.0, 0.5), (0.25, -2.0), input_tokens=6)
    chosen = encoding or openai.omit
    answer = await sdk.embeddings.create(model="embed", input=["a", "b", "c"], encoding_format=chosen)
    assert [item.embedding for item in answer.data] == [[1.0, 0.5], [0.25, -2.0], [1.0, 0.5]]
    assert answer.usage.prompt_tokens == 6
    assert len((await sdk.embeddings.create(model="embed", input=[1, 2, 3], encoding_format=chosen)).data) == 1


# Errors


async def test_fail_is_an_error_as_openai_words_it(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """A failure carries status, type, code, message and retry-after."""
    upstream.replies.append(fail(429, code="slow_down", message="Slow down.", retry_after=1, headers=[("x-a", "b")]))
    with pytest.raises(openai.RateLimitError) as caught:
        await ask(sdk)
    assert (caught.value.code, caught.value.type) == ("slow_down", "rate_limit_error")
    assert caught.value.body == {
        "message": "Slow down.",
        "type": "rate_limit_error",
        "param": None,
        "code": "slow_down",
    }
    assert (caught.value.response.headers["retry-after"], caught.value.response.headers["x-a"]) == ("1", "b")


async def test_an_exhausted_script_says_so(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """A request beyond the script gets an error that nobody retries and that names the reason."""
    with pytest.raises(openai.BadRequestError, match="no reply left"):
        await ask(sdk)


async def test_error_in_200_is_an_error_document_under_success(
    upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI
) -> None:
    """An error can come under status 200, to a request for a stream too."""
    upstream.default = error_in_200("Overloaded.", code="overloaded")
    for is_stream in (True, False):
        response = await sdk.chat.completions.with_raw_response.create(
            model="gpt-test", messages=USER, stream=is_stream
        )
        assert response.status_code == 200
        assert json.loads(await response.http_response.aread())["error"]["code"] == "overloaded"


async def test_error_event_comes_after_n_events(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """An error event ends a stream after as many events as were asked for."""
    upstream.default = error_event_after(2, stream("a", "b"), message="Broken.", code="broken")
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(openai.APIError, match="Broken") as caught:
        await ask_stream(sdk, chunks)
    assert (text_of(chunks), caught.value.code) == ("a", "broken")


# Ends that are missing


async def test_cut_after_resets_after_n_events(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """A cut lets exactly n events through, the role among them, and then breaks the connection."""
    upstream.default = cut_after(3)
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises((openai.APIConnectionError, httpx2.ReadError)):
        await ask_stream(sdk, chunks)
    assert text_of(chunks) == "word1 word2 "
    with pytest.raises(openai.APIConnectionError):
        await ask(sdk)


async def test_end_without_done_looks_complete_to_http(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """The stream ends cleanly after n events, with neither a finish reason nor [DONE]."""
    upstream.default = end_without_done(2)
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks)
    assert text_of(chunks) == "word1 "
    assert chunks[-1].choices[0].finish_reason is None
    with pytest.raises(json.JSONDecodeError):
        await ask(sdk)


async def test_garbage_is_no_response(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """Garbage is nothing an HTTP client can read."""
    upstream.default = garbage()
    with pytest.raises(openai.APIConnectionError):
        await ask(sdk)


# Good replies sent badly


async def test_one_byte_at_a_time_changes_nothing_but_the_pace(
    upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI
) -> None:
    """A reply sent byte by byte is the same reply, and its end is no hang-up."""
    upstream.default = one_byte_at_a_time(stream("a", "b"))
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks)
    assert text_of(chunks) == (await ask(sdk)).choices[0].message.content == "ab"
    await upstream.wait_for(lambda: all(exchange.is_ended for exchange in upstream.exchanges))
    assert upstream.cancelled == []


async def test_gzip_compresses_unasked(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """A compressed reply says so and unpacks to the same, whole or streamed."""
    upstream.default = gzip(stream("a", "b"))
    response = await sdk.chat.completions.with_raw_response.create(model="gpt-test", messages=USER)
    assert response.headers["content-encoding"] == "gzip"
    assert response.parse().choices[0].message.content == "ab"
    chunks: list[ChatCompletionChunk] = []
    await ask_stream(sdk, chunks)
    assert text_of(chunks) == "ab"


@pytest.mark.parametrize(
    "slow", [slow_head(reply("hi"), 0.1), reply("hi", delay_seconds=0.1), stream("hi", delay_seconds=0.03)]
)
async def test_delays_are_kept(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI, slow: Reply) -> None:
    """A slow head, a slow answer and slow events take at least as long as they say."""
    upstream.default = slow
    began = asyncio.get_running_loop().time()
    await ask_stream(sdk, [])
    assert asyncio.get_running_loop().time() - began >= 0.1


# The script


async def test_a_function_can_choose_the_reply(upstream: ScriptedUpstream, sdk: openai.AsyncOpenAI) -> None:
    """A script may hold functions, which see the request."""
    upstream.default = lambda request: reply(f"{request.document['model']} {request.headers['authorization']}")
    assert (await ask(sdk)).choices[0].message.content == "gpt-test Bearer sk-test"
