"""Rules that hold across vendors, retries and lanes, where no vendor's own tests look."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from functools import partial

import orjson
import pytest

from llmproxy.api import Attempt, Chunk, Exchange, Retry, Section, Services, UpstreamError, hookimpl
from llmproxy.dialects.chat_collect import ChunkCollector
from llmproxy.dialects.media import decode_data_url
from llmproxy.dialects.openai_stream import StreamFacts
from llmproxy.errors import UpstreamCut
from llmproxy.request import Document, Operation
from llmproxy.testing import (
    Message,
    Reply,
    ScriptedUpstream,
    StartProxy,
    document,
    error_in_200,
    events,
    fail,
    reply,
    stream,
)
from llmproxy.testing.running_proxy import UPSTREAM_KEY
from tests import anthropic_messages as claude
from tests import bedrock
from tests.providers import KINDS, prepare
from tests.vendor_matrix import COLUMNS, TOOL, Column

DONE = b"data: [DONE]\n\n"
PNG = b"\x89PNG\r\n\x1a\n" + b"\xfb\xff\xfe\x00"
CALLING = {"id": "call_000000", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
THINKING = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}

each_column = pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.kind}/{column.model}")
# Mistral takes both forms itself.
each_translated_embedder = pytest.mark.parametrize(
    "column",
    [column for column in COLUMNS if column.embedding_model and column.kind != "mistral"],
    ids=lambda column: f"{column.kind}/{column.embedding_model}",
)


class Again:
    """Tries every failed attempt again, with the next target."""

    name = "again"
    after_seconds = 0.0

    def __init__(self, config: Section, services: Services) -> None:
        """Nothing to configure."""

    @hookimpl
    def on_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Retry:
        """Once more."""
        return Retry(self.after_seconds)


class Patient(Again):
    """The same, after a minute."""

    name = "patient"
    after_seconds = 60.0


class Rewriting(Again):
    """Takes each event apart and writes it anew."""

    name = "rewriting"

    @hookimpl
    def on_stream_chunk(self, exchange: Exchange, chunk: Chunk) -> Sequence[Chunk] | None:
        """The same event, re-encoded."""
        return None if chunk.last else [Chunk(document=dict(chunk.document or {}))]


def event(content: bytes = b"null", finish: bytes = b"null") -> bytes:
    """An event in the vendor's own bytes."""
    delta = b'{"index":0,"delta":{"content":%b},"finish_reason":%b}' % (content, finish)
    return b'data: {"id":"c","created":1,"model":"m","object":"chat.completion.chunk","choices":[%b]}\n\n' % delta


# Retries and fallbacks


START = claude.sse(claude.events_of(claude.message(claude.text("never seen")))[:1])
OVERLOADED = claude.sse([{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}])
BEFORE_CONTENT = {
    "a status": (fail(529), False),
    "an error inside 200": (error_in_200(), False),
    "an error inside 200 where a stream was asked for": (error_in_200(), True),
    "an overload after the start of a stream": (events(START, OVERLOADED), True),
    "a stream that ends before any content": (events(START), True),
}


def long_request(*, is_stream: bool) -> bytes:
    """A request that every translation would write otherwise: spaces, escapes, numbers, foreign ids, parts."""
    members = [
        b'{ "model":"test","messages" :[{"role":"user","content":"caf\\u00e9"},',
        b'{"role":"assistant","content":null,"tool_calls":[%b]},' % orjson.dumps(CALLING),
        b'{"role":"tool","tool_call_id":"call_000000","content":[{"type":"text","text":"rain"}]}],',
        b'"tools":[%b],"max_completion_tokens":5, "temperature":1.0,' % orjson.dumps(TOOL),
        b'"seed":123456789012345678901,"stream":%b}',
    ]
    return b"".join(members) % (b'true,"stream_options":{"include_usage":true}' if is_stream else b"false")


async def test_a_fallback_is_sent_what_the_client_wrote(proxy: StartProxy) -> None:
    """Until content was sent any failure is failed over, and the next vendor's body holds no trace of the first's."""
    replies = [each for failure, _ in BEFORE_CONTENT.values() for each in (failure, fail(503))]
    async with ScriptedUpstream(replies) as failing:
        address = {"base_url": failing.base_url, "api_key": "key"}
        # The one translates, the other edits the client's own members.
        providers = {"claude": {"kind": "anthropic", **address}, "accent": {"kind": "deepseek", **address}}
        fallbacks = ["accent/deepseek-chat", "upstream/test-model"]
        model = {"targets": [{"model": "claude/claude-sonnet-4-5"}], "fallbacks": fallbacks}
        config = {"providers": providers, "models": {"test": model}}
        async with proxy(Again, upstream=[reply("hi")] * len(BEFORE_CONTENT), config=config) as client:
            for name, (_, is_stream) in BEFORE_CONTENT.items():
                asked = long_request(is_stream=is_stream)
                response = await client.request("POST", "/v1/chat/completions", body=asked)
                assert (response.status, response.text, response.headers["x-llmproxy-attempts"]) == (200, "hi", "3"), (
                    name
                )
                assert client.upstream.requests[-1].body == asked.replace(b'"test"', b'"test-model"')
        assert len(failing.requests) == len(replies)


async def test_a_retry_does_not_outlive_the_clients_deadline(proxy: StartProxy) -> None:
    """A pause that ends after the client has stopped waiting is not begun: the failure is told at once."""
    async with proxy(Patient, upstream=[fail(429, retry_after=60)]) as client:
        async with asyncio.timeout(10):
            response = await client.chat(headers={"x-llmproxy-timeout": "20"})
        assert len(client.upstream.requests) == 1
    assert (response.status, response.headers["retry-after"]) == (429, "60")


@pytest.mark.parametrize("kind", sorted(kind for kind in KINDS if Operation.CHAT in KINDS[kind].operations))
def test_thinking_of_another_vendor_does_not_reach_a_compatible_one(kind: str) -> None:
    """Signed blocks that only Claude reads are left out for vendors that refuse unknown fields, and named."""
    turn = {"role": "assistant", "content": "Yes.", "thinking_blocks": [THINKING]}
    prepared = prepare(kind, {"model": "m", "messages": [{"role": "user", "content": "Hi"}, turn]})
    assert b"c2ln" not in prepared.body
    assert orjson.loads(prepared.body)["messages"][1] == {"role": "assistant", "content": "Yes."}
    assert prepared.dropped == ("messages.thinking_blocks",)


# Requests


TEXT_PART = {"type": "text", "text": "Rain."}
CONTENTS = {"text": "Rain.", "a part": [TEXT_PART], "parts": [TEXT_PART, {"type": "text", "text": "More."}]}


def conversation(role: str, content: object) -> list[Document]:
    """Turns in which a message of this role has this content."""
    said = {"role": role, "content": content}
    match role:
        case "tool":
            call = {"role": "assistant", "content": None, "tool_calls": [CALLING]}
            return [{"role": "user", "content": "Hi"}, call, {**said, "tool_call_id": CALLING["id"]}]
        case "assistant":
            return [{"role": "user", "content": "Hi"}, said, {"role": "user", "content": "Go on."}]
        case "user":
            return [said]
        case _:
            return [said, {"role": "user", "content": "Hi"}]


@each_column
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_content_of_any_form_reaches_every_vendor(column: Column, role: str, content: object) -> None:
    """Text, one part and several parts are accepted in every role, a tool's included."""
    asked = {"messages": conversation(role, content), "tools": [TOOL]}
    sent = column.prepare(column.request(Operation.CHAT, asked)).body
    assert b"Rain." in sent
    assert (b"More." in sent) == (content == CONTENTS["parts"])


@each_column
@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool", "user"])
@pytest.mark.parametrize("content", [None, "", []], ids=["null", "empty text", "no parts"])
def test_messages_without_content_are_accepted_by_every_vendor(column: Column, role: str, content: object) -> None:
    """A message that says nothing is no reason to refuse a conversation that says something."""
    asked = {"messages": [*conversation(role, content), {"role": "user", "content": "Rain."}], "tools": [TOOL]}
    assert b"Rain." in column.prepare(column.request(Operation.CHAT, asked)).body


@each_column
def test_stream_options_without_a_stream_are_not_sent(column: Column) -> None:
    """What only a stream may have is left out of a request for a whole answer, which it would make invalid."""
    members = {"messages": [{"role": "user", "content": "Hi"}], "stream_options": {"include_usage": True}}
    assert b"stream_options" not in column.prepare(column.request(Operation.CHAT, members)).body


async def test_only_what_is_meant_for_the_gateway_is_taken_out(proxy: StartProxy) -> None:
    """Models to fall back to stay here; members that nobody knows, and their numbers, travel on."""
    body = (
        b'{"fallbacks":["demo/echo"],"model":"test","x_new":{"b":1.0,"a":1e2,"a":18446744073709551616},"models":[],'
        b'"messages":[]}'
    )
    async with proxy(upstream=[reply("hi")]) as client:
        response = await client.request(
            "POST", "/v1/chat/completions", body=body, headers={"x-llmproxy-fallback": "demo/echo"}
        )
        (sent,) = client.upstream.requests
    assert response.status == 200
    assert sent.body == b'{"model":"test-model","x_new":{"b":1.0,"a":1e2,"a":18446744073709551616},"messages":[]}'
    assert b"x-llmproxy" not in sent.raw_head.lower()


NAMES = ("accounts/acme/models/llama-v3p1@2", "ft:gpt-4o:acme::Ab1", "a/b:c@d%2f", "arn:aws:bedrock:eu:1:x/y")


async def test_a_models_name_travels_as_it_is_in_a_body(proxy: StartProxy) -> None:
    """Only the part before the first slash is the gateway's; the rest is the vendor's, whatever letters it has."""
    async with proxy(upstream=[reply("hi")] * len(NAMES), config={"providers": {"upstream": {"models": []}}}) as client:
        for name in NAMES:
            response = await client.chat(model=f"upstream/{name}")
            assert response.headers["x-llmproxy-model"] == f"upstream/{name}"
        assert [request.document["model"] for request in client.upstream.requests] == list(NAMES)


SPELLINGS = {
    "capitals": ("DATA:Image/PNG;BASE64,", base64.b64encode(PNG)),
    "no type": ("data:;base64,", base64.b64encode(PNG)),
    "a charset": ("data:image/png;charset=utf-8;base64,", base64.b64encode(PNG)),
    "another type": ("data:image/jpg;base64,", base64.b64encode(PNG)),
    "url-safe": ("data:image/png;base64,", base64.urlsafe_b64encode(PNG)),
    "unpadded": ("data:image/png;base64,", base64.b64encode(PNG + b"1").rstrip(b"=")),
    "line breaks": ("data:image/png;base64,", base64.encodebytes(PNG)),
}


@pytest.mark.parametrize(("prefix", "data"), SPELLINGS.values(), ids=SPELLINGS)
def test_an_image_is_read_however_its_address_is_spelt(prefix: str, data: bytes) -> None:
    """Case, parameters, the alphabet of base64 and its padding do not matter, and the bytes say what the image is."""
    media_type, read = decode_data_url(prefix + data.decode(), "messages[0]")
    assert (media_type, read[: len(PNG)]) == ("image/png", PNG)
    assert decode_data_url("data:image/jpg;base64,AAAA", "messages[0]")[0] == "image/jpeg"


@each_translated_embedder
def test_one_text_is_a_list_of_one(column: Column) -> None:
    """A vendor is asked the same for a text and for a list that holds it alone."""
    alone, listed = (
        column.prepare(column.request(Operation.EMBEDDINGS, {"input": given})) for given in ("Rain.", ["Rain."])
    )
    assert b"Rain." in alone.body
    assert (alone.url, alone.body) == (listed.url, listed.body)


# Answers


NUMBERS = b'{"n":9223372036854775807,"x":1.0,"y":1,"s":"\xc3\xa9"}'


def test_arguments_that_come_as_an_object_keep_their_numbers() -> None:
    """64-bit integers, 1.0 beside 1, and letters are in the text that clients get as they were in Claude's answer."""
    call = {"name": "f", "input": orjson.loads(NUMBERS)}
    direct = claude.whole(claude.message({"type": "tool_use", "id": "toolu_1", **call}, stop_reason="tool_use"))
    hosted = bedrock.answered(bedrock.says({"toolUse": {"toolUseId": "tooluse_1", **call}}, stop_reason="tool_use"))
    for answer in (direct, hosted):
        made = [each.to_dict()["function"] for each in answer.choices[0].message.tool_calls or []]
        assert made == [{"name": "f", "arguments": NUMBERS.decode()}]


EXTRAS: Document = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": None,
    "model": "m",
    "system_fingerprint": None,
    "service_tier": "flex",
    "x_vendor": {"groq": 1.0},
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None, "annotations": []},
            "logprobs": {"content": [{"token": "hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}]},
            "finish_reason": "stop",
            "native_finish_reason": "STOP",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "cost": 0.1},
}


async def test_members_of_an_answer_are_null_or_there_as_the_vendor_had_them(proxy: StartProxy) -> None:
    """Log probabilities, tiers, fingerprints and what only one vendor has reach the client, and nothing is added."""
    async with proxy(upstream=[document(EXTRAS)]) as client:
        assert (await client.chat()).document == EXTRAS


async def test_an_answer_may_begin_with_blank_lines(proxy: StartProxy) -> None:
    """Vendors that keep a connection alive with line breaks before the JSON have answered all the same."""
    pieces = (b"\n", b"  \r\n\n", orjson.dumps(EXTRAS), b"\n")
    answer = Message(pieces=pieces, headers=(("Content-Type", "application/json"),))
    async with proxy(upstream=[Reply(lambda _: answer)]) as client:
        response = await client.chat()
    assert (response.status, response.text) == (200, "hi")


async def test_the_gateways_key_is_neither_answered_nor_logged_nor_kept(
    proxy: StartProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    """A vendor that repeats the key it was sent tells it to the gateway alone; a key in a query goes nowhere."""
    refusing = [fail(401, message=f"Incorrect API key provided: {UPSTREAM_KEY}"), fail(500, message=UPSTREAM_KEY)]
    async with proxy(upstream=refusing, config={"logging": {"level": "debug"}}) as client:
        path = "/v1/chat/completions?key=AIza-the-clients-key"
        told = [(await client.request("POST", path, {"model": "test", "messages": []})).body for _ in refusing]
        kept = repr(await client.rows())
        heads = b"".join(request.raw_head for request in client.upstream.requests)
    assert UPSTREAM_KEY.encode() not in b"".join(told)
    assert UPSTREAM_KEY not in kept + capfd.readouterr().err
    assert b"AIza" not in heads


# Streams


ODD = {
    "no choices": {"choices": []},
    "null choices": {"choices": None},
    "neither choices nor time": {"created": None},
    "no delta": {"choices": [{"index": 0}]},
    "a null delta": {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_chunks_are_neither_content_nor_the_end(odd: Document) -> None:
    """In a relayed stream and in one that is put together, a chunk that holds nothing changes nothing."""
    strange = b"data: %b\n\n" % orjson.dumps({"id": "c", "created": None, **odd})
    facts, collector = StreamFacts(hide_usage=True, choices=1), ChunkCollector()
    said = [strange, event(b'"h"'), strange, event(b'"i"'), strange]
    for piece in said:
        facts.feed(piece)
        collector.feed(piece)
    assert (facts.is_complete, facts.finish_reasons, facts.error) == (False, (), None)
    with pytest.raises(UpstreamCut):
        collector.finish()
    for piece in (event(finish=b'"stop"'), strange, DONE):
        facts.feed(piece)
        collector.feed(piece)
    assert (facts.is_complete, facts.finish_reasons) == (True, ("stop",))
    assert orjson.loads(collector.finish())["choices"][0]["message"]["content"] == "hi"


HALVES = (event(b'"a\\ud83d"'), event(b'"\\ude00b\\u0000"'), event(finish=b'"stop"'), DONE)


@pytest.mark.parametrize(
    ("plugins", "is_stream"),
    [((), True), ((Rewriting,), True), ((), False)],
    ids=["relayed", "rewritten", "put together"],
)
async def test_half_a_character_passes_through_and_is_recorded(
    proxy: StartProxy, plugins: Sequence[type], *, is_stream: bool
) -> None:
    """A pair of surrogates split over events, and a NUL, break neither the answer nor its record."""
    config = {"audit": {"bodies": "all"}}
    async with proxy(*plugins, upstream=[events(*HALVES)], config=config) as client:
        response = await client.chat(stream=is_stream)
        rows = await client.rows()
    assert response.status == 200
    assert response.is_done is is_stream
    assert (response.text[0], response.text[-2:]) == ("a", "b\0")
    assert [row["outcome"] for row in rows.requests] == ["succeeded"]


async def test_nul_in_a_request_costs_no_row_and_half_a_character_is_refused(proxy: StartProxy) -> None:
    """NUL is text for the vendor, and kept although the database has none; a lone surrogate is no text: a 400."""
    body = b'{"model":"test","messages":[{"role":"user","content":"a\\u0000"}]}'
    async with proxy(upstream=[reply("hi")], config={"audit": {"bodies": "all"}}) as client:
        chat = partial(client.request, "POST", "/v1/chat/completions")
        assert (await chat(body=body)).status == 200
        assert (await chat(body=body.replace(b"u0000", b"ud83d"))).status == 400
        assert [sent.body for sent in client.upstream.requests] == [body.replace(b'"test"', b'"test-model"')]
        assert len((await client.rows()).requests) == 1


async def test_a_stream_may_last_longer_than_any_of_its_waits(proxy: StartProxy) -> None:
    """What limits a stream is silence: one that goes on is not ended for its length."""
    config = {"timeouts": {"first_byte_seconds": 0.5, "idle_seconds": 0.5}}
    texts = tuple("abcdefghijkl")
    async with proxy(upstream=[stream(*texts, delay_seconds=0.05)], config=config) as client:
        response = await client.chat(stream=True)
    assert (response.text, response.is_done) == ("".join(texts), True)
